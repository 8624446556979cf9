//! Shared parts of these tests: the program called with 1.1.0's options, and its observable effects.
use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use lab::{Host, Lab, Proc, wait_until};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
pub const SOON: Duration = Duration::from_secs(20);
pub const PID_FILE: &str = "/run/ti.pid";
pub const LOG: &str = "/run/ti.log";

/// Runs the program on `host` until it returns. Returns its exit status and its output.
pub fn call(host: &Host, options: &[&str]) -> (i32, String) {
    let output = host.cmd(BIN).args(options).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// Runs the program with `options`, once in the foreground and once in the background. Each time it must exit by itself
/// with `code` and print all of `words`. It must leave no listener, no process and no pid file behind.
pub fn refused(lab: &Lab, options: &[&str], code: i32, words: &[&str]) {
    let before = left_behind(lab);
    for foreground in [&["-f"][..], &[]] {
        let (exit, said) = call(&lab.gateway, &[options, foreground].concat());
        assert_eq!(exit, code, "{options:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{options:?}: no {word:?} in {said}");
        }
        assert_eq!(left_behind(lab), before, "{options:?}: {said}");
    }
}

fn left_behind(lab: &Lab) -> String {
    lab.gateway.run(&format!(
        "ss -Htlnp; cat {PID_FILE} 2>&1 || true; cat /proc/[0-9]*/comm 2>&1 | grep tcp-int || true"
    ))
}

/// Installs the rules that direct forwarded connections to port 5000.
pub fn install_rules(lab: &Lab) {
    lab.gateway.run(&format!("{BIN} rules install"));
}

/// Runs mount(8) in the test's own mount namespace, which all hosts share.
pub fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().unwrap().success(), "{arguments:?}");
}

/// A daemon in the background.
pub struct Daemon(Pid);

impl Daemon {
    /// Starts the daemon on the box with a pid file, a log, and `options`.
    pub fn start(lab: &Lab, options: &str) -> Self {
        lab.gateway.run(&format!("{BIN} -p {PID_FILE} -l {LOG} {options}"));
        Self::in_pid_file()
    }

    /// Returns the daemon whose process ID is in the pid file.
    pub fn in_pid_file() -> Self {
        Self(Pid::from_raw(fs::read_to_string(PID_FILE).unwrap().trim_end().parse().unwrap()).unwrap())
    }

    pub fn pid(&self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    pub fn signal(&self, signal: Signal) {
        let worker = lab::find_worker(self.pid().cast_unsigned());
        kill_process(self.0, signal).unwrap();
        // SIGKILL must also end the worker.
        if let (Signal::KILL, Some(worker)) = (signal, worker) {
            kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), signal).unwrap();
        }
    }

    /// Waits for its end and returns its exit status, or `None` if it was killed. The test is the first process of its
    /// PID namespace, so an orphan becomes its child.
    pub fn wait(&self) -> Option<i32> {
        let mut ended = None;
        wait_until("the daemon's end", SOON, || {
            ended = waitpid(Some(self.0), WaitOptions::NOHANG).unwrap();
            ended.is_some()
        });
        ended.unwrap().1.exit_status()
    }

    /// Ends it with SIGTERM and returns its exit status.
    pub fn stop(self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.wait()
    }
}

/// Starts the daemon on the box in the foreground, and waits until it listens.
pub fn foreground(lab: &Lab, options: &[&str]) -> Proc {
    let mut daemon = lab.gateway.spawn(BIN, &[&["-f"], options].concat());
    daemon.wait_for("ready", SOON);
    daemon
}

pub fn log() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

/// Waits for the close record of the connection from `client`, and returns its values of `keys`.
pub fn closed(client: SocketAddr, keys: &str) -> String {
    let start = format!(" closed client={client} ");
    let line = || log().lines().find(|line| line.contains(&start)).map(str::to_owned);
    wait_until(&start, SOON, || line().is_some());
    let line = line().unwrap();
    let value = |key: &str| {
        let value = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {key} in {line}")).trim_matches('"').to_owned()
    };
    keys.split_ascii_whitespace().map(value).collect::<Vec<_>>().join(" ")
}

/// Returns the peer address that the server at the other end reports.
pub fn seen_by(mut stream: &TcpStream) -> SocketAddr {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    said.parse().unwrap()
}
