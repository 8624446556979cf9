//! The resources of the guardian: everything that a worker needs and that outlives it. WIRING.
use std::io::{Read, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, set_parent_process_death_signal};
use rustix::thread::set_name;
use socket2::Socket;
use sys::{Fork, Registered, Signals};

use super::control_socket::Caller;
use super::handover::{Handover, Inherited};
use super::{CHILD, HUP, INT, TERM, USR2, fallback};
use crate::exit::{Exit, Fatal};
use crate::host::kernel::Kernel;
use crate::host::reserve::Reserve;
use crate::log;
use crate::process::daemon::listeners::Listeners;
use crate::process::daemon::{Setup, interception, listeners, most_sessions, os};
use crate::process::lock::{Displaced, Lock};
use crate::process::worker::Channel;
use crate::state::table::{Table, TableError};

/// The other program of an upgrade: the one that this one has replaced, or a newer one that has failed.
pub struct Upgraded {
    /// Its version.
    pub version: String,
    /// Why it has failed to replace this program; `None` if this program has replaced it.
    pub failed: Option<String>,
    /// The operator who waits for the outcome.
    pub caller: Option<Caller>,
}

/// The guardian's resources, which outlive a worker.
pub struct Resources {
    pub lock: Lock,
    pub table: Table,
    pub table_file: Registered<OwnedFd>,
    pub listeners: Listeners,
    pub signals: Signals,
    pub log: log::Writer,
    pub kernel: Arc<Kernel>,
    /// The highest number of sessions.
    pub limit: u32,
    /// Whether the daemon removes the rules when it ends.
    pub ours: bool,
    pub own: OwnResources,
}

/// The resources that a guardian makes for itself and does not hand over.
pub struct OwnResources {
    pub channel: Channel,
    /// The pidfd of the guardian.
    pub process: Registered<OwnedFd>,
    /// The guardian's executable file, which runs again if an upgrade fails.
    pub binary: Registered<OwnedFd>,
    /// Descriptors that are released for the start of a worker and for an upgrade.
    pub reserve: Reserve,
}

impl OwnResources {
    /// Opens the resources.
    pub fn new() -> Result<Self, Fatal> {
        let channel = Channel::new().map_err(os("making the worker's channel"))?;
        let process = pidfd_open(getpid(), PidfdFlags::empty()).map_err(os("opening its own process"))?;
        let binary = open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let binary = binary.map_err(os("opening its own executable file (/proc/self/exe)"))?;
        let [process, binary] = [process, binary].map(Registered::new);
        Ok(Self { channel, process, binary, reserve: Reserve::take() })
    }
}

impl Resources {
    /// Makes the resources of a daemon that starts.
    pub fn new(setup: &Setup) -> Result<Self, Fatal> {
        let lock = Lock::take()?;
        let config = &setup.config;
        let (limit, descriptors) = most_sessions(config)?;
        let kernel = Arc::new(Kernel::probe(config)?);
        let listeners = listeners::bind_all(setup, &kernel)?;
        let (table, table_file) = Table::new(descriptors)?;
        let table_file = Registered::new(table_file);
        // The log writer inherits the blocked signals, so that Ctrl-C in a terminal does not end it.
        let signals = watch_signals()?;
        let log = log::start(&config.log)?;
        for degraded in &kernel.degraded {
            tracing::warn!("{degraded}");
        }
        if let Some(Displaced { by, name }) = lock.displaced() {
            tracing::warn!(
                "{by} holds the abstract socket @tcp-intercept: the daemon uses @{name}, where commands find it"
            );
        }
        let own = OwnResources::new()?;
        let ours = in_child(log.log(), || {
            // Without a guardian nothing would use the rules, so the child ends with it.
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(os("being bound to the guardian"))?;
            interception::begin(config, setup.interception)
        })?;
        Ok(Self { lock, table, table_file, listeners, signals, log, kernel, limit, ours, own })
    }

    /// Takes over the resources of the program that this one replaces, and makes the rest. It takes ownership only when
    /// nothing can fail any more: until then the previous program may need its resources again.
    pub fn from(setup: &Setup, mut inherited: Inherited) -> Result<(Self, Upgraded), Fatal> {
        let handover = inherited.handover.clone();
        // After execve() of /proc/self/fd/N the process has another name.
        let _ = set_name(c"tcp-intercept");
        for number in handover.descriptors() {
            // The fallback already owns the executable file of the previous program.
            if handover.previous.as_ref().is_none_or(|previous| previous.binary != number) {
                inherited.get(number)?;
            }
        }
        let table = Table::open(inherited.get(handover.table)?)?;
        let kernel = Arc::new(Kernel::probe(&setup.config)?);
        let signals = watch_signals()?;
        let log = log::resume(&setup.config.log, &handover.log_writers)?;
        fallback::set_log_writers(log.process_numbers());
        if handover.previous.is_some() && !fallback::is_armed() {
            tracing::warn!(
                "the previous program did not hand its executable file over: this upgrade has no way back"
            );
        }
        let own = OwnResources::new()?;

        let lock = Lock::held(inherited.take(handover.lock)?);
        let table_file = Registered::new(inherited.take(handover.table)?);
        let mut listener = |number: &RawFd| inherited.take(*number).map(Socket::from).map(Registered::new);
        let mut listen = |numbers: &Vec<RawFd>| numbers.iter().map(&mut listener).collect();
        let listeners = handover.listeners.iter().map(&mut listen).collect::<Result<_, _>>()?;
        let caller = handover.caller.and_then(|number| inherited.take(number).ok()).map(Caller::resumed);
        let Handover { limit, ours, version, failed, .. } = handover;
        let resources = Self { lock, table, table_file, listeners, signals, log, kernel, limit, ours, own };
        Ok((resources, Upgraded { version, failed, caller }))
    }
}

fn watch_signals() -> Result<Signals, Fatal> {
    Signals::watch(&[CHILD, HUP, INT, TERM, USR2]).map_err(os("watching for signals"))
}

/// Does `work` in a child process with copies of everything. There it may block, start threads and a runtime, and fail.
/// `work` answers yes or no, or returns an error.
///
/// # Errors
/// The error of `work`, or the failure to run it in a child process.
pub fn in_child(log: &log::Log, work: impl FnOnce() -> Result<bool, Fatal>) -> Result<bool, Fatal> {
    let (mut answer, mut tell) = std::io::pipe().map_err(os("making a pipe"))?;
    match sys::fork().map_err(os("making a process for the rules"))? {
        Fork::Child => {
            let (exit, text) = match work() {
                Ok(yes) => (Exit::Ok, if yes { "yes".to_owned() } else { "no".to_owned() }),
                Err(fatal) => (fatal.exit, fatal.message),
            };
            let _ = tell.write_all(text.as_bytes());
            log.drain();
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
                    format!("the process that changes the rules ended abnormally ({status:?})"),
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
