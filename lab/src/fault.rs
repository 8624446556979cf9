//! System calls that fail in a running program: `strace` injects their errors. What is global on a machine (files, memory) need
//! not be used up for it.
use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::host::Host;
use crate::process::Proc;

const ATTACHED: Duration = Duration::from_secs(20);

/// A fault that lasts until it is [ended](Fault::end), or dropped.
#[derive(Debug)]
pub struct Fault {
    tracer: Proc,
}

impl Fault {
    /// From now on, system calls of the process `pid` fail as `what` says in strace's words: `accept4:error=ENFILE`,
    /// `splice:error=ENOMEM:when=1+3`. All threads that it has now are concerned, and no child.
    pub fn inject(host: &Host, pid: u32, what: &str) -> Self {
        Self::attach(host, pid, what, &[])
    }

    /// As [`Fault::inject`], for the process and each process that it begins from now on. Each thread counts its calls by itself.
    pub fn inject_into_children(host: &Host, pid: u32, what: &str) -> Self {
        Self::attach(host, pid, what, &["--follow-forks"])
    }

    fn attach(host: &Host, pid: u32, what: &str, options: &[&str]) -> Self {
        let call = what.split(':').next().unwrap_or(what);
        let tasks =
            fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|err| panic!("process {pid}: {err}"));
        let tasks: Vec<String> =
            tasks.flatten().map(|task| format!("--attach={}", task.file_name().display())).collect();
        let (trace, inject) = (format!("--trace={call}"), format!("--inject={what}"));
        let mut arguments = vec![trace.as_str(), &inject];
        arguments.extend(options);
        arguments.extend(tasks.iter().map(String::as_str));
        let mut tracer = host.spawn("strace", &arguments);
        for task in &tasks {
            let task = task.trim_start_matches("--attach=");
            tracer.wait_for(&format!("Process {task} attached"), ATTACHED);
        }
        Self { tracer }
    }

    /// How many calls have failed so far.
    pub fn count(&self) -> usize {
        self.tracer.stderr().matches("(INJECTED)").count()
    }

    /// Has the calls go through again, and says how many have failed.
    pub fn end(mut self) -> usize {
        self.tracer.signal(Signal::INT);
        self.tracer.wait(ATTACHED);
        self.count()
    }
}
