//! The handover from one program to the next in an upgrade: descriptors, and a description of them. EFFECT.
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use sys::{Registered, Unowned};

use crate::exit::{Exit, Fatal};

/// The environment variable that holds the descriptor number of the handover.
pub const VARIABLE: &str = "TCP_INTERCEPT_HANDOVER";

/// The description of what a program hands over, passed as JSON in a memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The version of the program that hands over.
    pub version: String,
    /// This is a trial: the new program must change nothing, and reports to standard output.
    pub trial: bool,
    /// The configuration file as it was read; `None` if there was none.
    pub config: Option<String>,
    /// The descriptor of the lock.
    pub lock: RawFd,
    /// The descriptor of the session table.
    pub table: RawFd,
    /// The listeners of each thread.
    pub listeners: Vec<Vec<RawFd>>,
    /// The connection of an operator who waits for the outcome.
    pub caller: Option<RawFd>,
    /// The highest number of sessions.
    pub limit: u32,
    /// Whether the daemon removes the rules when it ends.
    pub ours: bool,
    /// The process numbers of the log writers of this program and of earlier ones. They end by themselves.
    #[serde(default)]
    pub log_writers: Vec<i32>,
    /// The program that hands over. It runs again if the new one fails before its first worker is ready.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// Why a newer program has failed; set when that program hands back.
    #[serde(default)]
    pub failed: Option<String>,
}

/// A program that can be run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The descriptor of its executable file, which may have been deleted.
    pub binary: RawFd,
    /// Its command-line arguments, without the program's name.
    pub arguments: Vec<OsString>,
}

impl Handover {
    /// Returns the descriptors that stay open across execve(2), besides those of the sessions.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let listeners = self.listeners.iter().flatten().copied();
        let previous = self.previous.as_ref().map(|previous| previous.binary);
        [self.lock, self.table].into_iter().chain(listeners).chain(self.caller).chain(previous).collect()
    }

    /// Writes the handover to a memfd, for the next program.
    ///
    /// # Errors
    /// Fails if there is no memory or descriptor for it.
    pub fn write(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create("tcp-intercept-handover", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        Ok(file)
    }
}

/// Replaces the program of this process with `binary`, which inherits the descriptors of `handover` and all descriptors
/// that this process does not own. Returns only if that fails.
pub fn replace(binary: &Path, arguments: &[OsString], handover: &Handover) -> io::Error {
    let replaced = || -> io::Result<io::Error> {
        let file = Registered::new(handover.write()?);
        let mut handed = handover.descriptors();
        handed.push(file.as_raw_fd());
        sys::keep_over_exec(&handed)?;
        let err = command(binary, arguments, file.as_raw_fd()).exec();
        sys::set_close_on_exec(&sys::open_descriptors()?, true)?;
        Ok(err)
    };
    replaced().unwrap_or_else(|err| err)
}

/// Returns the command-line arguments of this program, without its name.
pub fn own_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// Returns a command that runs `binary` with `arguments`, under this program's name (`argv[0]`). `handover` is the
/// descriptor from which it reads its handover.
pub fn command(binary: &Path, arguments: &[OsString], handover: RawFd) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).env(VARIABLE, handover.to_string());
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

/// A handover that this program has received.
pub struct Inherited {
    /// Its description.
    pub handover: Handover,
    /// The inherited descriptors, by number.
    pub open: Unowned,
}

impl Inherited {
    /// Reads the handover that the environment names; `None` if it names none. Must be called before anything else.
    ///
    /// # Errors
    /// Fails if the environment names a handover that cannot be read.
    pub fn find() -> Result<Option<Self>, Fatal> {
        let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let failed = |err: &dyn std::fmt::Display| {
            Fatal::new(
                Exit::Unavailable,
                format!(
                    "{VARIABLE}={}: cannot read the handover of the running daemon: {err}; \
                     only that daemon sets this variable",
                    number.display()
                ),
            )
        };
        let mut open = Unowned::list().map_err(|err| failed(&err))?;
        let file = number.to_str().and_then(|number| open.take(number.parse().ok()?));
        let mut file = File::from(file.ok_or_else(|| failed(&"it is not an open descriptor"))?);
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|err| failed(&err))?;
        let handover: Handover = serde_json::from_slice(&text).map_err(|err| failed(&err))?;
        let numbers: Vec<_> = open.numbers().collect();
        sys::set_close_on_exec(&numbers, true).map_err(|err| failed(&err))?;
        Ok(Some(Self { handover, open }))
    }

    /// Borrows one of the inherited descriptors.
    ///
    /// # Errors
    /// Fails if the descriptor was not inherited.
    pub fn get(&self, number: RawFd) -> Result<BorrowedFd<'_>, Fatal> {
        self.open.get(number).ok_or_else(|| missing(number))
    }

    /// Takes ownership of one of the inherited descriptors.
    ///
    /// # Errors
    /// Fails if the descriptor was not inherited.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd, Fatal> {
        self.open.take(number).ok_or_else(|| missing(number))
    }
}

fn missing(number: RawFd) -> Fatal {
    let what = format!("the previous program did not hand descriptor {number} over");
    Fatal::new(Exit::Software, what)
}
