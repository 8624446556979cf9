//! Into the background: a process of its own session, which the one that was called waits for until it listens. EFFECT.
use std::fs::OpenOptions;
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::fs::Mode;
use rustix::process::{Pid, WaitOptions, chdir, setsid, umask, waitpid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use sys::{Fork, Registered};

use crate::exit::{Exit, Fatal};

/// What the log and the pid file are never made with: the right of others to write them.
const UMASK: Mode = Mode::WGRP.union(Mode::WOTH);

/// Which of the two processes goes on.
#[derive(Debug)]
#[must_use = "both processes come back from detach()"]
pub enum Process {
    /// The one that was called: the other is there, or has ended so.
    Called(Exit),
    /// The daemon, which has not yet begun.
    Daemon(Starting),
}

/// A daemon that keeps the terminal, for its complaints, and the one who waits for it, until it has begun.
#[derive(Debug)]
pub struct Starting {
    waiting: Registered<PipeWriter>,
}

/// Starts the daemon's process. Nothing else may run yet: no thread survives this.
///
/// # Errors
/// When there is no process to be had, or the daemon was killed while it started.
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
            // A session of its own has no terminal, and gets none, as nothing is opened that could become it.
            setsid().map_err(|err| failed("leaving the session")(err.into()))?;
            chdir("/").map_err(|err| failed("going to /")(err.into()))?;
            umask(UMASK);
            Ok(Process::Daemon(Starting { waiting: Registered::new(waiting) }))
        }
    }
}

impl Starting {
    /// Lets go of the terminal, and of the one who waits: from here on the daemon is on its own.
    ///
    /// # Errors
    /// When there is no /dev/null.
    pub fn finish(self) -> Result<(), Fatal> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null");
        let null = null.map_err(failed("opening /dev/null"))?;
        dup2_stdin(&null)
            .and_then(|()| dup2_stdout(&null))
            .and_then(|()| dup2_stderr(&null))
            .map_err(|err| failed("leaving the terminal")(err.into()))?;
        // Who waited may have been killed; the daemon does not mind.
        let _ = (&*self.waiting).write_all(&[1]);
        Ok(())
    }
}

/// Waits until the daemon has begun, or for its end: then its complaint is on the terminal, and its status is ours.
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
