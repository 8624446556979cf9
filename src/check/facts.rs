//! What a host is like, as data: what [`super::judge`] judges. PURE.
use std::collections::BTreeMap;
use std::fmt;
use std::io;

use super::ruleset::Ruleset;
use crate::host::paths::plan::Survey;

/// Everything that is looked at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// What this process may do.
    pub privileges: Privileges,
    /// The sysctls that matter, under `/proc/sys`, with dots; absent where the kernel has none.
    pub sysctls: BTreeMap<&'static str, String>,
    /// Every network interface but lo.
    pub interfaces: Vec<Interface>,
    /// Bridges with two ports or more.
    pub bridges: Vec<String>,
    /// What `nft` says.
    pub nft: Nft,
    /// `-S INPUT` of iptables-legacy and ip6tables-legacy, where those have a filter table.
    pub legacy_input: Vec<LegacyInput>,
    /// Whether an MPTCP socket can be made.
    pub mptcp: Option<Errno>,
    /// The congestion control that client legs would have, tried on a socket.
    pub client: Congestion,
    /// The same for server legs.
    pub server: Congestion,
    /// Options of the legs that `run` leaves out because a kind of socket refuses them.
    pub degraded: Vec<Degraded>,
    /// Our own rules.
    pub rules: Rules,
    /// What keeps the initial window of `[wan]` from being applied.
    pub wan_obstacle: Option<String>,
    /// What there is for MPTCP between two boxes, or why that cannot be known; `None` where nothing asks for it.
    pub paths: Option<Result<Survey, String>>,
    /// RLIMIT_NOFILE, the hard limit.
    pub descriptors: u64,
}

/// What this process may do in its network namespace.
#[derive(Debug, Clone, Default)]
pub struct Privileges {
    /// CAP_NET_ADMIN is effective.
    pub net_admin: bool,
    /// CAP_NET_RAW is effective.
    pub net_raw: bool,
    /// CAP_NET_BIND_SERVICE is effective.
    pub bind_service: bool,
    /// The limit on pipe buffers does not hold: CAP_SYS_RESOURCE or CAP_SYS_ADMIN in the initial user namespace.
    pub pipes_unlimited: bool,
    /// Why IP_TRANSPARENT is refused on a socket.
    pub transparent: Option<Errno>,
    /// Why SO_MARK is refused on a socket.
    pub mark: Option<Errno>,
}

/// A network interface.
#[derive(Debug, Clone, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// `rp_filter`, its own; the kernel takes the greater one of this and `all`'s.
    pub rp_filter: u8,
    /// `src_valid_mark`, its own; on when this or `all`'s is.
    pub src_valid_mark: bool,
}

/// What `nft` says.
#[derive(Debug, Clone, Default)]
pub enum Nft {
    /// There is no such program.
    #[default]
    Missing,
    /// It cannot list the ruleset; what it said.
    Failed(String),
    /// It works.
    Works {
        /// What is installed.
        ruleset: Ruleset,
        /// What it said when our rules were tried; `None`: the kernel takes them.
        refused: Option<String>,
    },
}

/// The INPUT chain of the old iptables, which nft does not show.
#[derive(Debug, Clone)]
pub struct LegacyInput {
    /// `iptables-legacy` or `ip6tables-legacy`.
    pub program: &'static str,
    /// What `-S INPUT` printed; `None` when the program cannot be run.
    pub rules: Option<String>,
}

/// A congestion control, tried on a TCP socket: an MPTCP socket takes any name, and does not use one that the kernel has not.
#[derive(Debug, Clone, Default)]
pub struct Congestion {
    /// Its name.
    pub name: String,
    /// Why the kernel refuses it.
    pub refused: Option<Errno>,
}

/// An option that a kind of socket refuses.
#[derive(Debug, Clone)]
pub struct Degraded {
    /// The config key.
    pub key: String,
    /// The kind: TCP or MPTCP.
    pub kind: String,
    /// Why.
    pub errno: Errno,
}

/// Our own rules, compared with the configuration.
#[derive(Debug, Clone, Default)]
pub enum Rules {
    /// There are none.
    #[default]
    Absent,
    /// They are as the configuration has them.
    Installed,
    /// They are not as the configuration has them: in what.
    Differ(Vec<String>),
    /// They cannot be looked at.
    Unknown(String),
}

/// What the kernel answers: a number of errno(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// What is not allowed here.
    pub const EPERM: Self = Self(1);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl Facts {
    /// A sysctl's value; `None` where the kernel has none.
    pub fn sysctl(&self, key: &str) -> Option<&str> {
        self.sysctls.get(key).map(String::as_str)
    }

    /// A sysctl's value when it is one number.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.sysctl(key)?.parse().ok()
    }
}
