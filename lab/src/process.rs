//! A guarded process: its output is captured, and dropping the guard kills it.
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::becomes;

/// A running program. Dropping it kills the program.
#[derive(Debug)]
pub struct Proc {
    name: String,
    child: Child,
    stdout: Captured,
    stderr: Captured,
}

impl Proc {
    /// Starts `command` without input and captures its output.
    pub fn start(name: &str, mut command: Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|err| panic!("{name} cannot be started: {err}"));
        let stdout = Captured::of(child.stdout.take());
        let stderr = Captured::of(child.stderr.take());
        Self { name: name.to_owned(), child, stdout, stderr }
    }

    /// Returns its standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Returns its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Returns its process ID (in the lab's own PID namespace).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a line of its output contains `text`. Panics with the output if the program ends or `limit` expires.
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let start = Instant::now();
        loop {
            let ended = self.try_wait();
            if self.stdout().contains(text) || self.stderr().contains(text) {
                return;
            }
            let why = match ended {
                Some(status) => format!("ended ({status}) without"),
                None if start.elapsed() > limit => format!("did not print in {limit:?}"),
                None => {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                }
            };
            panic!("{} {why} `{text}`:\n{}{}", self.name, self.stdout(), self.stderr());
        }
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // A process that has already ended takes no signal, and needs none.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Returns its exit status if it has ended; its output is then complete.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap_or_else(|err| panic!("{}: {err}", self.name))?;
        self.stdout.finish();
        self.stderr.finish();
        Some(status)
    }

    /// Waits for its end. Panics with its output if it does not end within `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        becomes(limit, || {
            status = self.try_wait();
            status.is_some()
        });
        status.unwrap_or_else(|| {
            panic!("{} did not end in {limit:?}:\n{}{}", self.name, self.stdout(), self.stderr())
        })
    }

    /// Kills the program and its worker, and waits until both are gone.
    pub fn kill(&mut self) {
        let worker = find_worker(self.pid());
        // The guardian first, because it would start another worker.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(worker) = worker {
            let pid = i32::try_from(worker).ok().and_then(Pid::from_raw);
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            becomes(Duration::from_secs(5), || !runs(worker));
        }
    }
}

/// Returns the child of `guardian` that has the name of a worker.
pub fn find_worker(guardian: u32) -> Option<u32> {
    find_child(guardian, "tcp-int-worker")
}

/// Returns the process that writes the log of the daemon whose guardian is `guardian`.
pub fn find_log_writer(guardian: u32) -> Option<u32> {
    find_child(guardian, "tcp-int-log")
}

fn find_child(of: u32, called: &str) -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.find_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let (name, state, parent) = stat(pid)?;
        (name == called && state != "Z" && parent == of).then_some(pid)
    })
}

/// Returns the process that does the work: the worker of `pid`, or `pid` itself if it has no worker.
pub fn working(pid: u32) -> u32 {
    find_worker(pid).unwrap_or(pid)
}

/// Returns whether process `pid` still runs. Its first thread can be gone while other threads keep its descriptors
/// open.
pub(crate) fn runs(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1 || stat(pid).is_some_and(|(_, state, _)| state != "Z")
}

/// Whether every thread of the process is stopped by a signal.
pub(crate) fn all_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    let mut states = stats.map(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')));
    states.all(|stopped| stopped)
}

/// Returns name, state and parent from /proc/PID/stat: proc(5).
fn stat(pid: u32) -> Option<(String, String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((name.to_owned(), fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The output of a stream that a thread reads to its end.
#[derive(Debug)]
struct Captured {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    fn of(stream: Option<impl Read + Send + 'static>) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let copy = Arc::clone(&text);
        let reader = stream.map(|stream| {
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                let mut line = Vec::new();
                while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
                    let mut text = copy.lock().unwrap_or_else(PoisonError::into_inner);
                    text.push_str(&String::from_utf8_lossy(&line));
                    line.clear();
                }
            })
        });
        Self { text, reader }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits briefly for the stream's end: a child that outlives the process may keep it open.
    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let done = || reader.is_finished();
            let _ = becomes(Duration::from_millis(500), done);
        }
    }
}
