//! What one program hands over to the next when it is replaced while it runs: descriptors, and what is known of them. EFFECT.
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

/// The variable of the environment that says where it is.
pub const VARIABLE: &str = "TCP_INTERCEPT_HANDOVER";

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The version that hands over.
    pub version: String,
    /// It is only tried: nothing may be changed, and what is said goes to standard output.
    pub trial: bool,
    /// The configuration file as it was read; `None`: there was none.
    pub config: Option<String>,
    /// The lock.
    pub lock: RawFd,
    /// The table of sessions.
    pub table: RawFd,
    /// The listeners of each thread.
    pub listeners: Vec<Vec<RawFd>>,
    /// Somebody who waits for the outcome.
    pub caller: Option<RawFd>,
    /// The most sessions.
    pub limit: u32,
    /// Whether the rules go with the daemon.
    pub ours: bool,
    /// The processes that write the log of this program and of those before it. They end by themselves.
    #[serde(default)]
    pub log_writers: Vec<i32>,
    /// The program that hands over, to return to if this one fails before its first worker is ready.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// Why a newer program has failed and hands back.
    #[serde(default)]
    pub failed: Option<String>,
}

/// A program that can be run again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its executable file, which may have no name any more.
    pub binary: RawFd,
    /// What it was called with.
    pub arguments: Vec<OsString>,
}

impl Handover {
    /// The descriptors that stay open over execve(2) besides those of the sessions.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let listeners = self.listeners.iter().flatten().copied();
        let previous = self.previous.as_ref().map(|previous| previous.binary);
        [self.lock, self.table].into_iter().chain(listeners).chain(self.caller).chain(previous).collect()
    }

    /// Writes it down where another program will find it.
    ///
    /// # Errors
    /// When there is no memory or descriptor for it.
    pub fn write(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create("tcp-intercept-handover", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        Ok(file)
    }
}

/// Runs `binary` in this process's place, with the descriptors of `handover` and all that this process does not own. Returns only when that
/// fails.
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

/// What this program was called with.
pub fn own_arguments() -> Vec<OsString> {
    std::env::args_os().skip(1).collect()
}

/// The program `binary`, called as this one was, but for its `arguments`; it finds what it is handed over in the descriptor `handover`.
pub fn command(binary: &Path, arguments: &[OsString], handover: RawFd) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).env(VARIABLE, handover.to_string());
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    command
}

/// What was handed over to this program.
pub struct Inherited {
    /// What is known of it.
    pub handover: Handover,
    /// All of it, by number.
    pub open: Unowned,
}

impl Inherited {
    /// What the environment says was handed over to this program; `None`: nothing. To be called before anything else.
    ///
    /// # Errors
    /// When it says so, and it cannot be read.
    pub fn find() -> Result<Option<Self>, Fatal> {
        let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let failed = |err: &dyn std::fmt::Display| {
            Fatal::new(
                Exit::Unavailable,
                format!(
                    "{VARIABLE}={}: what a running daemon hands over cannot be read: {err}; \
                     only that daemon sets this variable",
                    number.display()
                ),
            )
        };
        let mut open = Unowned::list().map_err(|err| failed(&err))?;
        let file = number.to_str().and_then(|number| open.take(number.parse().ok()?));
        let mut file = File::from(file.ok_or_else(|| failed(&"it is no open descriptor"))?);
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|err| failed(&err))?;
        let handover: Handover = serde_json::from_slice(&text).map_err(|err| failed(&err))?;
        let numbers: Vec<_> = open.numbers().collect();
        sys::set_close_on_exec(&numbers, true).map_err(|err| failed(&err))?;
        Ok(Some(Self { handover, open }))
    }

    /// Borrows one of the descriptors.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, number: RawFd) -> Result<BorrowedFd<'_>, Fatal> {
        self.open.get(number).ok_or_else(|| missing(number))
    }

    /// Takes possession of one of them.
    ///
    /// # Errors
    /// When it is not there.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd, Fatal> {
        self.open.take(number).ok_or_else(|| missing(number))
    }
}

fn missing(number: RawFd) -> Fatal {
    let what = format!("the previous program did not hand descriptor {number} over");
    Fatal::new(Exit::Software, what)
}
