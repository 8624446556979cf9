//! The tcp-intercept daemon as a guarded process: starts it, waits until it is ready, reads its log, stops it.
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::host::Host;
use crate::namespaces::INSIDE;
use crate::process::{Proc, all_stopped, find_worker};
use crate::wait::{becomes, wait_until};

const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(20);

/// A running `tcp-intercept run`: the guardian, which this process started, and its worker. Dropping it kills both with
/// SIGKILL.
#[derive(Debug)]
pub struct Daemon {
    process: Proc,
}

impl Daemon {
    /// Runs the program `binary` on `host` with one `--set` for each of `settings` (`server.mptcp=true`). The daemon
    /// logs JSON to standard error. Returns when the daemon reports that it is ready.
    pub fn start(host: &Host, binary: impl AsRef<Path>, settings: &[&str]) -> Self {
        let mut daemon = Self::launch(host, binary, settings);
        daemon.process.wait_for("ready", START);
        daemon
    }

    /// Like [`Daemon::start`], with `variables` in the daemon's environment.
    pub fn start_with(
        host: &Host,
        binary: impl AsRef<Path>,
        settings: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut daemon = Self::spawn(host, binary.as_ref(), settings, variables);
        daemon.process.wait_for("ready", START);
        daemon
    }

    /// Like [`Daemon::start`], without waiting: for a start that must fail.
    pub fn launch(host: &Host, binary: impl AsRef<Path>, settings: &[&str]) -> Self {
        Self::spawn(host, binary.as_ref(), settings, &[])
    }

    fn spawn(host: &Host, binary: &Path, settings: &[&str], variables: &[(&str, &str)]) -> Self {
        let binary = reachable(binary);
        let mut command = host.cmd(&binary.display().to_string());
        command.arg("run").envs(variables.iter().copied());
        for setting in ["log.target=stderr", "log.format=json"].iter().chain(settings) {
            command.args(["--set", setting]);
        }
        Self { process: Proc::start(&format!("{host}: tcp-intercept"), command) }
    }

    /// Returns the log so far, as the daemon wrote it.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Returns the close records so far: the JSON lines of the log that have a client and a server.
    pub fn close_records(&self) -> Vec<Value> {
        let log = self.log();
        let records = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.filter(|record| record.get("client").is_some() && record.get("server").is_some()).collect()
    }

    /// Waits until there are `count` close records. Panics with the log if they do not arrive in time.
    pub fn wait_for_records(&self, count: usize) -> Vec<Value> {
        let came = becomes(STOP, || self.close_records().len() >= count);
        assert!(came, "{count} close records did not come:\n{}", self.log());
        self.close_records()
    }

    /// Waits for the close record of the connection from `client` to `server`. Panics unless there is exactly one.
    pub fn record_of(&self, client: SocketAddr, server: SocketAddr) -> Value {
        let flow = format!("{client} {server}");
        let ours = || {
            let records = self.close_records().into_iter();
            records.filter(|record| words(record, "client server") == flow).collect::<Vec<_>>()
        };
        let came = becomes(STOP, || !ours().is_empty());
        assert!(came, "no close record of {flow} came:\n{}", self.log());
        let mut records = ours();
        assert_eq!(records.len(), 1, "{flow}: {records:?}");
        records.remove(0)
    }

    /// Returns the guarded process of the guardian.
    pub fn process(&mut self) -> &mut Proc {
        &mut self.process
    }

    /// Sends a signal to the guardian.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends the daemon as an operator does, and returns its exit status and its whole log.
    pub fn stop(mut self) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        let status = self.process.wait(STOP);
        (status, self.log())
    }

    /// Kills the guardian and the worker with SIGKILL.
    pub fn kill9(self) {
        drop(self);
    }

    /// Sends a signal to the current worker, which carries the sessions.
    pub fn signal_worker(&self, signal: Signal) {
        self.signal_process(self.worker(), signal);
    }

    /// Stops the worker with SIGSTOP, and waits until each of its threads has stopped. kill(2) returns before that, and
    /// the threads may still work for a while on a busy machine.
    pub fn pause_worker(&self) {
        let worker = self.worker();
        self.signal_process(worker, Signal::STOP);
        wait_until("the worker's threads are stopped", STOP, || all_stopped(worker));
    }

    /// Sends a signal to one of the daemon's processes.
    pub fn signal_process(&self, pid: u32, signal: Signal) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // A process that has just ended takes no signal.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// Returns the process ID of the guardian, which outlives the workers.
    pub fn guardian(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the process ID of the current worker; waits until there is one.
    pub fn worker(&self) -> u32 {
        worker_of(self.process.pid())
    }
}

/// Returns the worker of the daemon whose guardian is `pid`; waits until there is one.
pub fn worker_of(pid: u32) -> u32 {
    let mut worker = None;
    let there = becomes(START, || {
        worker = find_worker(pid);
        worker.is_some()
    });
    worker.filter(|_| there).unwrap_or_else(|| panic!("process {pid} has no worker"))
}

/// Returns the values of `keys` in `record`: `words(&record, "by phase cause")` returns `client relay eof`.
pub fn words(record: &Value, keys: &str) -> String {
    let word = |key| match &record[key] {
        Value::String(word) => word.clone(),
        other => other.to_string(),
    };
    keys.split_ascii_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// Returns `binary`, or the copy of it that the current user may execute, if one had to be made.
pub fn reachable(binary: &Path) -> PathBuf {
    let copies = std::env::var_os(INSIDE).map(PathBuf::from).unwrap_or_default();
    match binary.file_name().map(|name| copies.join(name)) {
        Some(copy) if copy.is_absolute() && copy.exists() => copy,
        _ => binary.to_owned(),
    }
}
