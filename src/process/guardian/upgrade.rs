//! Upgrades: a new program is tried in a child process, and then replaces this one. WIRING.
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use socket2::Socket;
use sys::Registered;

use super::control_socket::Caller;
use super::handover::{Handover, Inherited, command, own_arguments};
use super::resources::OwnResources;
use crate::exit::{Exit, Fatal};
use crate::host::kernel::Kernel;
use crate::process::daemon::listeners::Listeners;
use crate::process::daemon::{Setup, os};
use crate::process::takeover::{Death, Inventory};
use crate::process::worker::Prepared;
use crate::session::listener;
use crate::session::shared::Shared;
use crate::state::table::Table;

/// The longest time that a trial may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The start of the line with which a program reports a successful trial. Other programs do not print it by chance. The
/// two programs may have different versions, so it must not change.
const FIT: &str = "fit to go on with the sessions of tcp-intercept:";

/// The trial of a program.
pub struct Trial {
    pub binary: PathBuf,
    pub caller: Option<Caller>,
    child: Child,
    output: Registered<File>,
    since: Instant,
}

impl Trial {
    /// Starts `binary` as an upgrade would, with copies of all descriptors, and tells it that this is a trial.
    ///
    /// # Errors
    /// Fails if it cannot be started. Returns `caller`, who must be told.
    pub fn start(
        binary: PathBuf,
        handover: &Handover,
        caller: Option<Caller>,
    ) -> Result<Self, (String, Option<Caller>)> {
        let started = || -> io::Result<(Child, File)> {
            let file = Handover { trial: true, ..handover.clone() }.write()?;
            let output = File::from(memfd_create("tcp-intercept-trial", MemfdFlags::CLOEXEC)?);
            let mut command = command(&binary, &own_arguments(), file.as_raw_fd());
            command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
            // The list includes what this process has just opened for the child, so the child inherits that, too.
            let child = sys::inherit(&mut command, sys::open_descriptors()?).spawn()?;
            Ok((child, output))
        };
        match started() {
            Ok((child, output)) => {
                Ok(Self { binary, caller, child, output: Registered::new(output), since: Instant::now() })
            }
            Err(err) => Err((format!("{} cannot be started: {err}", binary.display()), caller)),
        }
    }

    /// Returns the outcome; `None` while the trial runs.
    pub fn outcome(&mut self) -> Option<Result<String, String>> {
        let name = self.binary.display();
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) if self.since.elapsed() < PATIENCE => return None,
            Ok(None) => return Some(Err(format!("{name} was not ready after {PATIENCE:?}"))),
            Err(err) => return Some(Err(format!("{name} cannot be waited for: {err}"))),
        };
        let mut output = Vec::new();
        let _ = (&*self.output).rewind().and_then(|()| (&*self.output).take(4096).read_to_end(&mut output));
        let output = String::from_utf8_lossy(&output);
        let fit = output.lines().find_map(|line| line.strip_prefix(FIT));
        Some(match fit {
            Some(fit) if status.success() => Ok(fit.trim().to_owned()),
            _ => Err(format!(
                "the trial of {name} failed ({status}): {}",
                if output.trim().is_empty() { "it said nothing" } else { output.trim() }
            )),
        })
    }
}

impl Drop for Trial {
    /// Kills the child and waits for its end. It has copies of every socket, and a connection ends only when its last
    /// copy is closed.
    fn drop(&mut self) {
        // Ignore the error: a child that has ended cannot be killed.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Returns the path that this program was started from. Another program may be at that path by now.
///
/// # Errors
/// Fails if /proc is not mounted.
pub fn own_path() -> io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?.into_os_string();
    let path = path.as_bytes().strip_suffix(b" (deleted)").unwrap_or(path.as_bytes()).to_vec();
    Ok(std::ffi::OsString::from_vec(path).into())
}

/// Does in a trial what an upgrade would do, with copies of the descriptors and of the table. Returns the text for
/// standard output.
///
/// # Errors
/// Fails on anything that would keep the program from taking over.
pub fn rehearse(setup: &Setup, mut inherited: Inherited) -> Result<String, Fatal> {
    let handover = inherited.handover.clone();
    let table = Table::rehearsed(inherited.get(handover.table)?)?;
    let kernel = Arc::new(Kernel::probe(&setup.config)?);
    let mut listener = |number: &RawFd| inherited.take(*number).map(Socket::from).map(Registered::new);
    let mut listen = |numbers: &Vec<RawFd>| numbers.iter().map(&mut listener).collect();
    let listeners: Listeners = handover.listeners.iter().map(&mut listen).collect::<Result<_, _>>()?;
    let addresses = listeners.iter().flatten().map(|listener| listener::address(listener));
    let at: Vec<_> = addresses.collect::<Result<_, _>>().map_err(os("looking at a listener"))?;
    let own_mark = setup.config.rules.own_mark;
    let inventory = Inventory::take(table, inherited.open, own_mark);
    let own = OwnResources::new()?;
    let shared = Arc::new(Shared::new(setup.config.clone(), kernel, handover.limit, table));
    let prepared = Prepared::new(&shared, &listeners, &own.channel, &own.process)?;
    table.header().begin_generation();
    let found = inventory.take_over(Death::None, &at);
    drop(prepared);
    let (sessions, known) = (found.sessions.len(), table.header().sessions());
    // Sessions begin and end during the trial, so the numbers need not be equal.
    if known > 8 && (sessions as u64) < known / 2 {
        return Err(Fatal::new(
            Exit::Software,
            format!("found only {sessions} of {known} sessions that it could resume"),
        ));
    }
    Ok(format!("{FIT} version {}, {sessions} sessions\n", env!("CARGO_PKG_VERSION")))
}
