//! The state of a host as data: the input of [`super::judge`]. PURE.
use std::collections::BTreeMap;
use std::fmt;
use std::io;

use super::ruleset::Ruleset;
use crate::host::paths::plan::Survey;

/// All facts about a host.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The privileges of this process.
    pub privileges: Privileges,
    /// The relevant sysctls by name, with dots; a sysctl that the kernel does not have is absent.
    pub sysctls: BTreeMap<&'static str, String>,
    /// Every network interface except lo.
    pub interfaces: Vec<Interface>,
    /// The bridges with two or more ports.
    pub bridges: Vec<String>,
    /// The answers of `nft`.
    pub nft: Nft,
    /// The INPUT chains of iptables-legacy and ip6tables-legacy, if these have a filter table.
    pub legacy_input: Vec<LegacyInput>,
    /// Why the kernel refuses an MPTCP socket; `None`: it creates one.
    pub mptcp: Option<Errno>,
    /// The congestion control of client legs, tried on a socket.
    pub client: Congestion,
    /// The congestion control of server legs, tried on a socket.
    pub server: Congestion,
    /// Options of the legs that `run` leaves out, because a kind of socket refuses them.
    pub degraded: Vec<Degraded>,
    /// The state of the program's own rules.
    pub rules: Rules,
    /// The reason why the initial window of `[wan]` cannot be applied.
    pub wan_obstacle: Option<String>,
    /// The state of the MPTCP paths, or the reason why it is unknown; `None` if the configuration uses no MPTCP.
    pub paths: Option<Result<Survey, String>>,
    /// The hard limit of descriptors (RLIMIT_NOFILE).
    pub descriptors: u64,
}

/// The privileges of this process in its network namespace.
#[derive(Debug, Clone, Default)]
pub struct Privileges {
    /// Whether CAP_NET_ADMIN is effective.
    pub net_admin: bool,
    /// Whether CAP_NET_RAW is effective.
    pub net_raw: bool,
    /// Whether CAP_NET_BIND_SERVICE is effective.
    pub bind_service: bool,
    /// Whether the limits on pipe buffers do not apply: CAP_SYS_RESOURCE or CAP_SYS_ADMIN in the initial user
    /// namespace.
    pub pipes_unlimited: bool,
    /// Why the kernel refuses IP_TRANSPARENT on a socket; `None`: it does not.
    pub transparent: Option<Errno>,
    /// Why the kernel refuses SO_MARK on a socket; `None`: it does not.
    pub mark: Option<Errno>,
}

/// A network interface.
#[derive(Debug, Clone, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its own `rp_filter`; the kernel uses the maximum of this and the value of `all`.
    pub rp_filter: u8,
    /// Its own `src_valid_mark`; the kernel applies it if this or the value of `all` is 1.
    pub src_valid_mark: bool,
}

/// The answers of `nft`.
#[derive(Debug, Clone, Default)]
pub enum Nft {
    /// The program does not exist.
    #[default]
    Missing,
    /// It cannot list the ruleset; the text is its error message.
    Failed(String),
    /// It lists the ruleset.
    Works {
        /// The installed ruleset.
        ruleset: Ruleset,
        /// Its error message about the program's rules in a dry run; `None`: the kernel accepts them.
        refused: Option<String>,
    },
}

/// The INPUT chain of iptables-legacy, which nft does not list.
#[derive(Debug, Clone)]
pub struct LegacyInput {
    /// `iptables-legacy` or `ip6tables-legacy`.
    pub program: &'static str,
    /// The output of `-S INPUT`; `None` if the program failed or cannot run.
    pub rules: Option<String>,
}

/// A congestion control, tried on a TCP socket: an MPTCP socket accepts any name, and ignores one that the kernel does
/// not have.
#[derive(Debug, Clone, Default)]
pub struct Congestion {
    /// Its name.
    pub name: String,
    /// Why the kernel refuses it; `None`: it does not.
    pub refused: Option<Errno>,
}

/// An option that a kind of socket refuses.
#[derive(Debug, Clone)]
pub struct Degraded {
    /// The config key.
    pub key: String,
    /// The kind of socket: TCP or MPTCP.
    pub kind: String,
    /// The error of the kernel.
    pub errno: Errno,
}

/// The program's own rules, compared with the configuration.
#[derive(Debug, Clone, Default)]
pub enum Rules {
    /// No rules are installed.
    #[default]
    Absent,
    /// The installed rules match the configuration.
    Installed,
    /// The installed rules differ from the configuration; the texts name the differences.
    Differ(Vec<String>),
    /// The rules cannot be read; the text says why.
    Unknown(String),
}

/// An error number of the kernel, errno(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl Facts {
    /// Returns the value of a sysctl; `None` if the kernel does not have it.
    pub fn sysctl(&self, key: &str) -> Option<&str> {
        self.sysctls.get(key).map(String::as_str)
    }

    /// Returns the value of a sysctl that is a single number; else `None`.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.sysctl(key)?.parse().ok()
    }
}
