//! What the operator asked for, parsed into types that cannot be wrong. PURE: parsing touches no device.
//!
//! [`Config::parse`] is all of it. `read` has every option once; `value` says what each kind of value may be; `section` reads a
//! table key by key and collects the faults; `tree` is the TOML with its places; `fault` is how faults are told.
mod fault;
mod paths;
mod read;
mod section;
mod tree;
mod value;

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use crate::units::{Mark, OwnMark, Port};

pub use fault::{Fault, Faults, Hint, Origin, Place, Why};

/// The whole configuration: one snapshot for the daemon's life.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[listen]`
    pub listen: Listen,
    /// `[rules]`
    pub rules: Rules,
    /// `[client]`: the leg towards the client.
    pub client: ClientLeg,
    /// `[server]`: the leg towards the server.
    pub server: ServerLeg,
    /// `[wan]`: the bad link.
    pub wan: Wan,
    /// `[mptcp]`: between two boxes.
    pub mptcp: Mptcp,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[limits]`
    pub limits: Limits,
    /// `[log]`
    pub log: Log,
    /// `[stop]`
    pub stop: Stop,
}

/// `[listen]`: where intercepted connections are accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// The port on 127.0.0.1 and ::1.
    pub port: Port,
}

/// `[rules]`: how connections come to the listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// `run` installs the rules at its start and removes them at its end.
    pub manage: bool,
    /// Intercept what arrives on these interfaces; empty: on any.
    pub interfaces: Vec<Interface>,
    /// On packets that are diverted to the box itself.
    pub mark: Mark,
    /// The routing table that makes diverted packets local.
    pub table: NonZeroU32,
    /// On our own sockets.
    pub own_mark: OwnMark,
}

/// The name of a network interface: 1 to 15 bytes without white space, `/` or quotes; it need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface(String);

impl Interface {
    /// `None` for what the kernel (`dev_valid_name`) would refuse or what a ruleset could not quote.
    pub fn new(name: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '"' | '\\' | '*');
        let valid = (1..=15).contains(&name.len()) && name.chars().all(plain) && name != "." && name != "..";
        valid.then(|| Self(name.to_owned()))
    }

    /// The name as the kernel knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What both legs have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Leg {
    /// Congestion control.
    pub congestion_control: Congestion,
    /// Multipath TCP, with fallback to TCP.
    pub mptcp: bool,
    /// TCP_NODELAY.
    pub no_delay: bool,
    /// SO_KEEPALIVE and its timers.
    pub keepalive: Keepalive,
    /// TCP_USER_TIMEOUT; `None`: the kernel's own retransmission limit.
    pub user_timeout: Option<Duration>,
    /// TCP_NOTSENT_LOWAT: so many bytes may wait in the send buffer before more is taken from the other leg;
    /// `None`: as `net.ipv4.tcp_notsent_lowat` says.
    pub notsent_lowat: Option<NonZeroU32>,
    /// SO_SNDBUF: what the send buffer may hold, what is under way among it.
    pub send_buffer: SendBuffer,
}

/// `[client]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClientLeg {
    /// The keys that both legs have.
    pub leg: Leg,
    /// Whether data in a client's SYN is accepted.
    pub fast_open: FastOpen,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServerLeg {
    /// The keys that both legs have.
    pub leg: Leg,
    /// Whether the client's first bytes travel in the SYN.
    pub fast_open: FastOpen,
    /// The address that the server sees.
    pub source: Source,
    /// How long a connection attempt may take; `None`: as long as the kernel tries (`tcp_syn_retries`).
    pub connect_timeout: Option<Duration>,
}

/// Which congestion control a leg gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Congestion {
    /// The key is left out: BBR where the kernel has it, else as the host has it.
    #[default]
    Preferred,
    /// As the host has it: `net.ipv4.tcp_congestion_control`, or what a route says. 1.1.0 knew nothing else.
    Host,
    /// This one.
    Named(CongestionControl),
}

/// How much a send buffer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SendBuffer {
    /// The key is left out: what a long link needs where there is one (`wan.devices`), else as the host has it.
    #[default]
    Preferred,
    /// As the host has it: `net.ipv4.tcp_wmem`.
    Host,
    /// So many bytes.
    Bytes(NonZeroU32),
}

impl SendBuffer {
    /// What is to be set; `None`: the host's own.
    pub fn bytes(self, wan: &Wan) -> Option<NonZeroU32> {
        // BBR has up to three times under way what a link holds, and takes a sender that the buffer stops before that for one
        // that has nothing to send: 100 Mbit/s and 600 ms want 32 MiB. What waits unsent is bounded by TCP_NOTSENT_LOWAT.
        const LONG_LINK: NonZeroU32 = NonZeroU32::new(64 << 20).expect("not 0");
        match self {
            Self::Preferred => (!wan.devices.is_empty()).then_some(LONG_LINK),
            Self::Host => None,
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

/// The name of a congestion control algorithm: 1 to 15 letters, digits, `_` or `-`. Whether the kernel has it is found out at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CongestionControl(String);

impl CongestionControl {
    /// `None` for what cannot be a name (TCP_CA_NAME_MAX is 16 with its NUL).
    pub fn new(name: &str) -> Option<Self> {
        let valid = (1..=15).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        valid.then(|| Self(name.to_owned()))
    }

    /// The name as the kernel knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Keepalive on a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keepalive {
    /// `false`
    Off,
    /// `true` or a table; what is `None` is the kernel's own (`tcp_keepalive_time`, `_intvl`, `_probes`).
    On {
        /// Silence before the first probe (TCP_KEEPIDLE), 1 s to 32767 s.
        idle: Option<Duration>,
        /// Between probes (TCP_KEEPINTVL), 1 s to 32767 s.
        interval: Option<Duration>,
        /// Unanswered probes that end the connection (TCP_KEEPCNT), 1 to 127.
        probes: Option<u32>,
    },
}

/// Whether data travels in a SYN (RFC 7413).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FastOpen {
    /// `false`
    #[default]
    Off,
    /// `true`: behind a cookie that the listening side gave to the dialling one before.
    Cookie,
    /// `"no-cookie"`: from the first SYN on, on links that both ends trust.
    NoCookie,
}

/// Where a server leg comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// `"client"`: the client's address and port.
    #[default]
    Client,
    /// `"client-address"`: the client's address, a port that the kernel chooses.
    ClientAddress,
    /// `"gateway"`: the box's own address, as its routes have it.
    Gateway,
    /// `"ADDRESS:PORT"`: always this one; port 0 is chosen by the kernel. A flow of the other address family is dialled as by `gateway`.
    Fixed(SocketAddr),
}

/// `[wan]`: connections that leave by its devices begin with a larger window.
#[derive(Debug, Clone, PartialEq)]
pub struct Wan {
    /// The devices; empty: none.
    pub devices: Vec<Interface>,
    /// The routing table that our own sockets look up before the main table.
    pub table: NonZeroU32,
    /// The initial congestion window in segments.
    pub initial_window: u32,
}

/// `[mptcp]`: what Multipath TCP uses between two boxes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mptcp {
    /// `[[mptcp.path]]`, in the order of the file; no two at the same place.
    pub paths: Vec<MptcpPath>,
}

/// `[[mptcp.path]]`: a way beside the one that connections take by the host's routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MptcpPath {
    /// Which.
    pub at: PathAt,
    /// On a box that is dialled: the port with which the addresses are announced. `None`: connections are joined from here.
    pub announce: Option<Port>,
    /// Used only while no other path works.
    pub backup: bool,
    /// The number of the endpoint; `None`: the kernel chooses.
    pub id: Option<NonZeroU8>,
}

/// What a path is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathAt {
    /// `device`: every address that it has at the time.
    Device(Interface),
    /// `address`: this one, on whichever device it is.
    Address(IpAddr),
}

/// `[timeouts]`; `None` (in the file: `"0s"`) is never.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Timeouts {
    /// One direction has ended: how long the other may then be silent.
    pub half_closed: Option<Duration>,
    /// How long both directions may be silent.
    pub idle: Option<Duration>,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Sessions at once; `None`: what the descriptor limit carries.
    pub connections: Option<NonZeroU32>,
    /// Deaths of the worker in one minute that are borne; with one more the daemon ends, and connections are routed.
    pub crashes: u32,
}

/// `[stop]`: how it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    /// What SIGTERM means.
    pub sigterm: Sigterm,
    /// How long sessions that are left may go on when it drains.
    pub drain_deadline: Duration,
}

/// `stop.sigterm`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sigterm {
    /// `"stop"`: every session is reset, at both ends.
    #[default]
    Stop,
    /// `"drain"`: new connections are routed, and it ends when the last session has.
    Drain,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Log {
    /// Where to.
    pub target: LogTarget,
    /// Lines for people or JSON.
    pub format: LogFormat,
    /// What is too small to be said.
    pub level: Level,
}

/// `log.target`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogTarget {
    /// `"stderr"`
    #[default]
    Stderr,
    /// `"journal"`
    Journal,
    /// An absolute path; appended to.
    File(PathBuf),
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `"text"`
    #[default]
    Text,
    /// `"json"`: one object a line.
    Json,
}

/// `log.level`; close records are `info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// `"error"`
    Error,
    /// `"warn"`
    Warn,
    /// `"info"`
    #[default]
    Info,
    /// `"debug"`: also what a peer can trigger.
    Debug,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: None, crashes: 10 }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self { sigterm: Sigterm::Stop, drain_deadline: Duration::from_secs(600) }
    }
}

impl Default for Listen {
    fn default() -> Self {
        const PORT: Port = Port::new(5000).expect("5000 is not 0");
        Self { port: PORT }
    }
}

impl Default for Rules {
    fn default() -> Self {
        const MARK: Mark = Mark::new(0x1, 0x1).expect("one bit");
        const OWN: OwnMark = OwnMark::new(Mark::new(0x6, 0x6).expect("two bits")).expect("two bits");
        const TABLE: NonZeroU32 = NonZeroU32::new(5).expect("5 is not 0");
        Self { manage: true, interfaces: Vec::new(), mark: MARK, table: TABLE, own_mark: OWN }
    }
}

impl Default for Wan {
    fn default() -> Self {
        const TABLE: NonZeroU32 = NonZeroU32::new(6).expect("6 is not 0");
        Self { devices: Vec::new(), table: TABLE, initial_window: 100 }
    }
}

impl Default for Leg {
    fn default() -> Self {
        // Sent in 0.4 ms at 10 Gbit/s: long enough to be refilled, and far less than a send buffer grows to.
        const NOTSENT_LOWAT: NonZeroU32 = NonZeroU32::new(1 << 20).expect("not 0");
        let keepalive = Keepalive::On { idle: None, interval: None, probes: None };
        Self {
            congestion_control: Congestion::Preferred,
            mptcp: false,
            no_delay: true,
            keepalive,
            user_timeout: None,
            notsent_lowat: Some(NOTSENT_LOWAT),
            send_buffer: SendBuffer::Preferred,
        }
    }
}
