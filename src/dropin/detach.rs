//! Moves the daemon into the background: a process in a session of its own. The process that was called waits until it
//! listens. EFFECT.
use std::fs::OpenOptions;
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::fs::Mode;
use rustix::process::{Pid, WaitOptions, chdir, setsid, umask, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use sys::{Fork, Registered};

use crate::exit::{Exit, Fatal};

/// The umask of the daemon: the log and the pid file must not be writable for others.
const UMASK: Mode = Mode::WGRP.union(Mode::WOTH);

/// Which of the two processes returns.
#[derive(Debug)]
#[must_use = "both processes return from detach()"]
pub enum Process {
    /// The process that was called: the daemon has started, or has ended with this status.
    Called(Exit),
    /// The daemon, which has not started yet.
    Daemon(Starting),
}

/// A starting daemon. It keeps the terminal for error messages, and the process that was called waits for it.
#[derive(Debug)]
pub struct Starting {
    waiting: Registered<PipeWriter>,
}

/// Forks the daemon's process. There must be no other thread, because none survives a fork.
///
/// # Errors
/// Fails if a process cannot be made, or if the daemon was killed while it started.
pub fn detach() -> Result<Process, Fatal> {
    let (daemon, waiting) = io::pipe().map_err(failed("making a pipe"))?;
    match sys::fork().map_err(failed("making a process for the background"))? {
        Fork::Parent(pid) => {
            drop(waiting);
            let pid = Pid::from_raw(pid.get());
            wait_for(daemon, pid).map(Process::Called)
        }
        Fork::Child => {
            drop(daemon);
            // A new session has no terminal. It never gets one, because the daemon opens nothing that could become one.
            setsid().map_err(|err| failed("leaving the session")(err.into()))?;
            chdir("/").map_err(|err| failed("going to /")(err.into()))?;
            umask(UMASK);
            Ok(Process::Daemon(Starting { waiting: Registered::new(waiting) }))
        }
    }
}

impl Starting {
    /// Gives up the terminal, and lets the process that waits return.
    ///
    /// # Errors
    /// Fails if /dev/null cannot be opened.
    pub fn finish(self) -> Result<(), Fatal> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let null = null.map_err(failed("opening /dev/null"))?;
        dup2_stdin(&null)
            .and_then(|()| dup2_stdout(&null))
            .and_then(|()| dup2_stderr(&null))
            .map_err(|err| failed("leaving the terminal")(err.into()))?;
        // Ignore write errors: the process that waits may have been killed.
        let _ = (&*self.waiting).write_all(&[1]);
        Ok(())
    }
}

/// Waits until the daemon has started or ended. If it has ended, its error message is on the terminal, and its status
/// is the result.
fn wait_for(mut daemon: PipeReader, pid: Option<Pid>) -> Result<Exit, Fatal> {
    let mut begun = Vec::new();
    daemon.read_to_end(&mut begun).map_err(failed("waiting for the daemon"))?;
    if !begun.is_empty() {
        return Ok(Exit::Ok);
    }
    let ended = rustix::io::retry_on_intr(|| waitpid(pid, WaitOptions::empty()));
    let status = ended.ok().flatten().map(|(_, status)| status);
    match status.and_then(|status| Exit::from_status(status.exit_status()?)) {
        Some(exit) => Ok(exit),
        None => {
            Err(Fatal::new(Exit::Software, format!("the daemon ended while it started ({status:?}); try -f")))
        }
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Fatal {
    move |err| Fatal::new(Exit::OsErr, format!("{what}: {err}; -f needs none of this"))
}
