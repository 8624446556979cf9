//! What a daemon is to do, and its business with the host: rules, the gate, listeners. WIRING.
pub(crate) mod gate;
pub(crate) mod interception;
pub(crate) mod listeners;

use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Config, LogTarget};
use crate::exit::{Exit, Fatal};
use crate::session::listener;
use crate::state::limits;
pub use interception::Interception;

/// As many as a kernel allows a process unless it is told otherwise (`fs.nr_open`); the table of sessions has a place for each.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// What a daemon is to do.
pub struct Setup {
    /// What the operator asked for.
    pub config: Config,
    /// Where to listen. Where there are several, an IPv6 one is left out on a host without IPv6.
    pub listen: Vec<SocketAddr>,
    /// How connections come to the listeners.
    pub interception: Interception,
    /// SIGHUP has the log opened again; else it ends the daemon, unless a service manager may have sent it.
    pub reopens_log: bool,
    /// It gives its terminal up as soon as it has started.
    pub background: bool,
    /// The configuration file as it was read, for a program that takes this one's place; `None`: there was none.
    pub text: Option<String>,
}

impl From<Config> for Setup {
    fn from(config: Config) -> Self {
        Self {
            listen: listener::addresses(&config).to_vec(),
            interception: if config.rules.manage { Interception::Managed } else { Interception::Expected },
            reopens_log: matches!(config.log.target, LogTarget::File(_)),
            background: false,
            text: None,
            config,
        }
    }
}

/// Raises the descriptor limit as far as it goes and is of use, and sees what it carries: so many sessions, so many descriptors.
pub(crate) fn most_sessions(config: &Config) -> Result<(u32, usize), Fatal> {
    let descriptors = raise_descriptor_limit();
    let carried = limits::carried_by(descriptors);
    match config.limits.connections.map_or(carried, |asked| asked.get()) {
        asked if asked > carried => Err(Fatal::new(
            Exit::Unavailable,
            format!(
                "limits.connections = {asked}: {descriptors} descriptors (ulimit -Hn) carry {carried}; \
                 raise the limit (systemd: LimitNOFILE=) or lower the key"
            ),
        )),
        asked => Ok((asked, usize::try_from(descriptors).unwrap_or(usize::MAX))),
    }
}

/// Raises the descriptor limit as far as it goes and is of use; returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(MOST_DESCRIPTORS, |maximum| maximum.min(MOST_DESCRIPTORS));
    // If this fails, the limit stays as it was, and that is what counts.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(wanted)
}

/// Turns the failure of a system call into the end of the program.
pub(crate) fn os<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Fatal {
    move |err| Fatal::new(Exit::OsErr, format!("{what}: {err}"))
}
