//! What the guardian holds: all that a worker needs and that outlives it. WIRING.
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use socket2::Socket;
use sys::{Fork, Signals};

use super::door::Caller;
use super::handover::{Handover, Inherited};
use super::{CHILD, HUP, INT, TERM, USR2};
use crate::daemon::{Setup, interception, listeners, most_sessions, os};
use crate::exit::{Exit, Fatal};
use crate::kernel::Kernel;
use crate::lock::{Displaced, Lock};
use crate::log::{self, Log};
use crate::table::{Table, TableError};

/// What this program was before.
pub struct Upgraded {
    /// Its version.
    pub version: String,
    /// Who waits for the outcome.
    pub caller: Option<Caller>,
}

/// All of it.
pub struct Held {
    pub lock: Lock,
    pub table: Table,
    pub table_file: OwnedFd,
    /// One list for each thread of a worker.
    pub listeners: Vec<Vec<Socket>>,
    pub signals: Signals,
    pub log: Log,
    pub kernel: Arc<Kernel>,
    /// The most sessions.
    pub limit: u32,
    /// Whether the rules go with this daemon.
    pub ours: bool,
}

impl Held {
    /// Everything new.
    pub fn new(setup: &Setup) -> Result<Self, Fatal> {
        let lock = Lock::take()?;
        let config = &setup.config;
        let (limit, descriptors) = most_sessions(config)?;
        let kernel = Arc::new(Kernel::probe(config)?);
        let listeners = listeners::bind_all(setup, &kernel)?;
        let (table, table_file) = Table::new(descriptors)?;
        let log = log::init(&config.log)?;
        for degraded in &kernel.degraded {
            tracing::warn!("{degraded}");
        }
        if let Some(Displaced { by, name }) = lock.displaced() {
            tracing::warn!(
                "{by} holds the abstract socket @tcp-intercept: the daemon uses @{name}, where commands find it"
            );
        }
        let signals = watch_signals()?;
        let ours = in_child(|| {
            // It is of no use to anybody if the guardian is gone before it has begun.
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(os("being bound to the guardian"))?;
            interception::begin(config, setup.interception)
        })?;
        Ok(Self { lock, table, table_file, listeners, signals, log, kernel, limit, ours })
    }

    /// What another program has handed over.
    pub fn from(setup: &Setup, mut inherited: Inherited) -> Result<(Self, Upgraded), Fatal> {
        let handover = inherited.handover.clone();
        let lock = Lock::held(inherited.take(handover.lock)?);
        let table_file = inherited.take(handover.table)?;
        let table = Table::open(&table_file)?;
        let kernel = Arc::new(Kernel::probe(&setup.config)?);
        let log = log::init(&setup.config.log)?;
        let mut listener = |number: &RawFd| inherited.take(*number).map(Socket::from);
        let mut listen = |numbers: &Vec<RawFd>| numbers.iter().map(&mut listener).collect();
        let listeners = handover.listeners.iter().map(&mut listen).collect::<Result<_, _>>()?;
        let signals = watch_signals()?;
        let caller = handover.caller.and_then(|number| inherited.take(number).ok()).map(Caller::resumed);
        inherited.leave();
        let Handover { limit, ours, version, .. } = handover;
        let held = Self { lock, table, table_file, listeners, signals, log, kernel, limit, ours };
        Ok((held, Upgraded { version, caller }))
    }

    /// The descriptors of all that.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let own =
            [self.lock.as_fd().as_raw_fd(), self.table_file.as_raw_fd(), self.signals.as_fd().as_raw_fd()];
        let listeners = self.listeners.iter().flatten().map(AsRawFd::as_raw_fd);
        own.into_iter().chain(listeners).chain(self.log.descriptor()).collect()
    }
}

fn watch_signals() -> Result<Signals, Fatal> {
    Signals::watch(&[CHILD, HUP, INT, TERM, USR2]).map_err(os("watching for signals"))
}

/// Does `work` in a process of its own, with copies of everything: it may block, have threads and a runtime, and fail as it likes. It
/// answers yes or no, or says why it cannot.
///
/// # Errors
/// What `work` came to; that it could not be done at all.
pub fn in_child(work: impl FnOnce() -> Result<bool, Fatal>) -> Result<bool, Fatal> {
    let (mut answer, mut tell) = std::io::pipe().map_err(os("making a pipe"))?;
    match sys::fork().map_err(os("making a process for the rules"))? {
        Fork::Child => {
            let (exit, text) = match work() {
                Ok(yes) => (Exit::Ok, if yes { "yes".to_owned() } else { "no".to_owned() }),
                Err(fatal) => (fatal.exit, fatal.message),
            };
            let _ = tell.write_all(text.as_bytes());
            sys::exit_now(exit as u8)
        }
        Fork::Parent(child) => {
            drop(tell);
            let mut text = String::new();
            let read = answer.read_to_string(&mut text);
            let status = Pid::from_raw(child.get()).and_then(super::reap);
            read.map_err(os("waiting for the process for the rules"))?;
            match status.and_then(|status| Exit::from_status(status.exit_status()?)) {
                Some(Exit::Ok) => Ok(text == "yes"),
                Some(exit) => Err(Fatal::new(exit, text)),
                None => Err(Fatal::new(
                    Exit::Software,
                    format!("the process that sees to the rules ended badly ({status:?})"),
                )),
            }
        }
    }
}

impl From<TableError> for Fatal {
    fn from(err: TableError) -> Self {
        let exit = match &err {
            TableError::Os { .. } => Exit::OsErr,
            TableError::Unreadable(_) => Exit::Unavailable,
        };
        Self::new(exit, err.to_string())
    }
}
