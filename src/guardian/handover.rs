//! What one program hands over to the next when it is replaced while it runs: descriptors, and what is known of them. EFFECT.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

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
}

impl Handover {
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

/// What was handed over to this program.
pub struct Inherited {
    /// What is known of it.
    pub handover: Handover,
    /// All of it, by number.
    pub open: BTreeMap<RawFd, OwnedFd>,
}

impl Inherited {
    /// What the environment says was handed over to this program; `None`: nothing. To be called first of all.
    ///
    /// # Errors
    /// When it says so, and it cannot be had.
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
        let open = sys::inherited(&[]).map_err(|err| failed(&err))?;
        let mut open: BTreeMap<RawFd, OwnedFd> = open.into_iter().map(|fd| (fd.as_raw_fd(), fd)).collect();
        let file = number.to_str().and_then(|number| open.remove(&number.parse().ok()?));
        let mut file = File::from(file.ok_or_else(|| failed(&"it is no open descriptor"))?);
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(|err| failed(&err))?;
        let handover = serde_json::from_slice(&text).map_err(|err| failed(&err))?;
        let numbers: Vec<_> = open.keys().copied().collect();
        sys::set_close_on_exec(&numbers, true).map_err(|err| failed(&err))?;
        Ok(Some(Self { handover, open }))
    }

    /// One of them.
    ///
    /// # Errors
    /// When it is not there.
    pub fn take(&mut self, number: RawFd) -> Result<OwnedFd, Fatal> {
        self.open.remove(&number).ok_or_else(|| {
            let what = format!("the daemon before this one did not hand descriptor {number} over");
            Fatal::new(Exit::Software, what)
        })
    }

    /// Leaves what was not taken open, and nobody's: the sessions' descriptors, for the worker.
    pub fn leave(self) {
        self.open.into_values().for_each(std::mem::forget);
    }
}
