//! The setup of a daemon, and its changes to the host: rules, the gate, listeners. WIRING.
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

/// The kernel's default for the most descriptors of a process (`fs.nr_open`). The session table has a slot for each.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// The setup of a daemon.
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// The addresses to listen on. If there are several, an IPv6 address is left out on a host without IPv6.
    pub listen: Vec<SocketAddr>,
    /// How connections reach the listeners.
    pub interception: Interception,
    /// SIGHUP reopens the log. Otherwise SIGHUP ends the daemon, unless a service manager may have sent it.
    pub reopens_log: bool,
    /// The daemon gives up its terminal as soon as it has started.
    pub background: bool,
    /// The configuration file as it was read, for the next program of an upgrade; `None` if there was none.
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

/// Raises the descriptor limit. Returns the highest number of sessions, and the number of descriptors. Fails if the
/// limit is too low for `limits.connections`.
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

/// Raises the descriptor limit to the hard limit, at most to [`MOST_DESCRIPTORS`], and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(MOST_DESCRIPTORS, |maximum| maximum.min(MOST_DESCRIPTORS));
    // If this fails, the limit stays as it was, and the next line reads it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(wanted)
}

/// Turns a failed system call into an error that ends the program.
pub(crate) fn os<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Fatal {
    move |err| Fatal::new(Exit::OsErr, format!("{what}: {err}"))
}
