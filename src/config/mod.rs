//! The configuration, parsed into types that cannot hold an invalid value. PURE: parsing touches no device.
//!
//! [`Config::parse`] is the entry point. `read` lists every option once; `value` validates each kind of value.
//! `section` reads a table key by key and collects faults; `tree` is the TOML with its places; `fault` formats faults.
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

/// The whole configuration: one snapshot for the lifetime of the daemon.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// The `[listen]` table.
    pub listen: Listen,
    /// The `[rules]` table.
    pub rules: Rules,
    /// The `[client]` table: the client leg.
    pub client: ClientLeg,
    /// The `[server]` table: the server leg.
    pub server: ServerLeg,
    /// The `[wan]` table: the slow, long or lossy link.
    pub wan: Wan,
    /// The `[mptcp]` table: the paths between two boxes.
    pub mptcp: Mptcp,
    /// The `[timeouts]` table.
    pub timeouts: Timeouts,
    /// The `[limits]` table.
    pub limits: Limits,
    /// The `[log]` table.
    pub log: Log,
    /// The `[stop]` table.
    pub stop: Stop,
}

/// `[listen]`: where the worker accepts intercepted connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// The port of the listeners on 127.0.0.1 and ::1.
    pub port: Port,
}

/// `[rules]`: how the kernel leads connections to the listeners.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Whether `run` installs the rules when it starts and removes them when it ends.
    pub manage: bool,
    /// The interfaces on which arriving connections are intercepted; empty: all interfaces.
    pub interfaces: Vec<Interface>,
    /// The divert mark: set on packets that are delivered to the local socket.
    pub mark: Mark,
    /// The routing table that delivers packets with the divert mark locally.
    pub table: NonZeroU32,
    /// The own mark: set on the program's sockets.
    pub own_mark: OwnMark,
}

/// The name of a network interface: 1 to 15 bytes without white space, `/` or quotes; it need not exist yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Interface(String);

impl Interface {
    /// Returns `None` for a name that the kernel refuses (`dev_valid_name`) or that a ruleset cannot quote.
    pub fn new(name: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '"' | '\\' | '*');
        let valid = (1..=15).contains(&name.len()) && name.chars().all(plain) && name != "." && name != "..";
        valid.then(|| Self(name.to_owned()))
    }

    /// Returns the name as the kernel knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The options that both legs have.
#[derive(Debug, Clone, PartialEq)]
pub struct Leg {
    /// Congestion control (TCP_CONGESTION).
    pub congestion_control: Congestion,
    /// Whether the leg uses Multipath TCP, with fallback to TCP.
    pub mptcp: bool,
    /// TCP_NODELAY: send small segments without delay.
    pub no_delay: bool,
    /// SO_KEEPALIVE and its timers.
    pub keepalive: Keepalive,
    /// TCP_USER_TIMEOUT; `None`: the kernel's own retransmission limit.
    pub user_timeout: Option<Duration>,
    /// TCP_NOTSENT_LOWAT: the limit of unsent bytes in the send buffer; `None`: as `net.ipv4.tcp_notsent_lowat` says.
    pub notsent_lowat: Option<NonZeroU32>,
    /// SO_SNDBUF: the size of the send buffer, which also holds the bytes in flight.
    pub send_buffer: SendBuffer,
}

/// `[client]`: the client leg.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClientLeg {
    /// The options that both legs have.
    pub leg: Leg,
    /// Whether the listener accepts data in a client's SYN.
    pub fast_open: FastOpen,
}

/// `[server]`: the server leg.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServerLeg {
    /// The options that both legs have.
    pub leg: Leg,
    /// Whether the SYN carries the client's first bytes.
    pub fast_open: FastOpen,
    /// The source address that the server sees.
    pub source: Source,
    /// The time limit of a connection attempt; `None`: the kernel's limit (`tcp_syn_retries`).
    pub connect_timeout: Option<Duration>,
}

/// The congestion control of a leg.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Congestion {
    /// The key is left out: BBR if the kernel has it, else the host's setting.
    #[default]
    Preferred,
    /// The host's setting: `net.ipv4.tcp_congestion_control`, or that of a route. Version 1.1.0 supported only this.
    Host,
    /// The algorithm with this name.
    Named(CongestionControl),
}

/// The size of a send buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SendBuffer {
    /// The key is left out: the size for a long link if `wan.devices` is set, else the host's setting.
    #[default]
    Preferred,
    /// The host's setting: `net.ipv4.tcp_wmem`.
    Host,
    /// This number of bytes.
    Bytes(NonZeroU32),
}

impl SendBuffer {
    /// Returns the size to set, in bytes; `None`: keep the host's setting.
    pub fn bytes(self, wan: &Wan) -> Option<NonZeroU32> {
        // BBR keeps up to three bandwidth-delay products in flight: 32 MiB at 100 Mbit/s and 600 ms. With less buffer
        // it treats the sender as application-limited. TCP_NOTSENT_LOWAT bounds the unsent bytes.
        const LONG_LINK: NonZeroU32 = NonZeroU32::new(64 << 20).expect("not 0");
        match self {
            Self::Preferred => (!wan.devices.is_empty()).then_some(LONG_LINK),
            Self::Host => None,
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

/// The name of a congestion control algorithm: 1 to 15 letters, digits, `_` or `-`. `run` probes the kernel for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CongestionControl(String);

impl CongestionControl {
    /// Returns `None` for an invalid name (TCP_CA_NAME_MAX is 16 bytes, including the NUL).
    pub fn new(name: &str) -> Option<Self> {
        let valid = (1..=15).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        valid.then(|| Self(name.to_owned()))
    }

    /// Returns the name as the kernel knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// SO_KEEPALIVE of a leg, and its timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keepalive {
    /// `false`: the kernel sends no probes.
    Off,
    /// `true` or a table; `None` stands for the kernel's default (`tcp_keepalive_time`, `_intvl`, `_probes`).
    On {
        /// Idle time before the first probe (TCP_KEEPIDLE), 1 s to 32767 s.
        idle: Option<Duration>,
        /// Time between probes (TCP_KEEPINTVL), 1 s to 32767 s.
        interval: Option<Duration>,
        /// Number of unanswered probes that end the connection (TCP_KEEPCNT), 1 to 127.
        probes: Option<u32>,
    },
}

/// TCP Fast Open: whether a SYN carries data (RFC 7413).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FastOpen {
    /// `false`: a SYN carries no data.
    #[default]
    Off,
    /// `true`: with a cookie that the listening side gave to the dialling side earlier.
    Cookie,
    /// `"no-cookie"`: without a cookie, from the first SYN on; for links that both ends trust.
    NoCookie,
}

/// The source address and port of a server leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// `"client"`: the client's address and port.
    #[default]
    Client,
    /// `"client-address"`: the client's address and a port that the kernel chooses.
    ClientAddress,
    /// `"gateway"`: the address of the box that its routes select.
    Gateway,
    /// `"ADDRESS:PORT"`: always this one; port 0: the kernel chooses. `Gateway` applies to the other address family.
    Fixed(SocketAddr),
}

/// `[wan]`: connections that leave by its devices start with a larger initial window.
#[derive(Debug, Clone, PartialEq)]
pub struct Wan {
    /// The devices of the WAN; empty: none.
    pub devices: Vec<Interface>,
    /// The routing table (the mirror) that the program's sockets look up before the main table.
    pub table: NonZeroU32,
    /// The initial congestion window, in segments.
    pub initial_window: u32,
}

/// `[mptcp]`: the paths that Multipath TCP uses between two boxes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Mptcp {
    /// The `[[mptcp.path]]` entries, in the order of the file; no two have the same device or address.
    pub paths: Vec<MptcpPath>,
}

/// `[[mptcp.path]]`: a path in addition to the one that the host's routes select.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MptcpPath {
    /// The device or address that identifies the path.
    pub at: PathAt,
    /// On the far box: the port with which it announces the addresses. `None`: this box opens subflows from them.
    pub announce: Option<Port>,
    /// Whether the kernel uses the path only while no other path works.
    pub backup: bool,
    /// The id of the endpoint; `None`: the kernel chooses.
    pub id: Option<NonZeroU8>,
}

/// The device or address that identifies a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathAt {
    /// `device`: every address that the device has at the time.
    Device(Interface),
    /// `address`: this address, on any device.
    Address(IpAddr),
}

/// `[timeouts]`: the relay's timers; `None` (`"0s"` in the file) disables a timer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Timeouts {
    /// How long the other direction of a half-closed session may be idle.
    pub half_closed: Option<Duration>,
    /// How long both directions may be idle.
    pub idle: Option<Duration>,
}

/// `[limits]`: bounds on sessions and crashes.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The maximum number of concurrent sessions; `None`: as many as the descriptor limit allows.
    pub connections: Option<NonZeroU32>,
    /// How many crashes of the worker per minute are tolerated. With one more the daemon ends: connections are routed.
    pub crashes: u32,
}

/// `[stop]`: how the daemon ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    /// The reaction to SIGTERM.
    pub sigterm: Sigterm,
    /// How long the remaining sessions may continue during a drain.
    pub drain_deadline: Duration,
}

/// `stop.sigterm`: the reaction to SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sigterm {
    /// `"stop"`: the daemon resets both legs of every session.
    #[default]
    Stop,
    /// `"drain"`: the kernel routes new connections, and the daemon ends with the last session.
    Drain,
}

/// `[log]`: the log and its format.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Log {
    /// The destination of the log lines.
    pub target: LogTarget,
    /// The format of the log lines.
    pub format: LogFormat,
    /// The least severe level that is logged.
    pub level: Level,
}

/// `log.target`: the destination of the log lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LogTarget {
    /// `"stderr"`: standard error.
    #[default]
    Stderr,
    /// `"journal"`: the systemd journal.
    Journal,
    /// An absolute path: lines are appended to this file.
    File(PathBuf),
}

/// `log.format`: the format of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `"text"`: lines for people.
    #[default]
    Text,
    /// `"json"`: one JSON object per line.
    Json,
}

/// `log.level`: the least severe level that is logged; close records have the level `info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// `"error"`: only errors.
    Error,
    /// `"warn"`: warnings and errors.
    Warn,
    /// `"info"`: also close records and state changes.
    #[default]
    Info,
    /// `"debug"`: also events that a peer can trigger.
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
        // 10 Gbit/s takes 0.4 ms for the half that is left when the relay wakes up; send buffers grow far larger.
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
