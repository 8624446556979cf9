//! System calls that fail in a running program: `strace` injects their errors. This avoids using up resources that are
//! global to a machine (files, memory).
use std::fs;
use std::time::Duration;

use rustix::process::Signal;

use crate::host::Host;
use crate::process::Proc;

const ATTACHED: Duration = Duration::from_secs(20);

/// A fault that lasts until [`Fault::end`] or drop.
#[derive(Debug)]
pub struct Fault {
    tracer: Proc,
}

impl Fault {
    /// Makes system calls of the process `pid` fail as `what` says in strace's syntax: `accept4:error=ENFILE`,
    /// `splice:error=ENOMEM:when=1+3`. Applies to all present threads of the process, and to no child.
    pub fn inject(host: &Host, pid: u32, what: &str) -> Self {
        Self::attach(host, pid, what, &[])
    }

    /// Like [`Fault::inject`], for the process and every process that it starts later. Each thread counts its calls
    /// separately.
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

    /// Returns how many calls have failed so far.
    pub fn count(&self) -> usize {
        self.tracer.stderr().matches("(INJECTED)").count()
    }

    /// Ends the fault and returns how many calls have failed.
    pub fn end(mut self) -> usize {
        self.tracer.signal(Signal::INT);
        self.tracer.wait(ATTACHED);
        self.count()
    }
}
