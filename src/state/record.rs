//! The close record: the facts of a connection, written once at its end. PURE.
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::state::flow::{Flow, Side};

/// The end of a session: the log's fields, a bounded label, and the value that tests assert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The party that ended it.
    pub by: By,
    /// The phase at its end.
    pub phase: Phase,
    /// The cause.
    pub cause: Cause,
}

/// The party that ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The client. An orderly end counts as the side's whose FIN came first.
    Client,
    /// The server, or the network towards it.
    Server,
    /// This program, by a timeout or limit.
    Us,
    /// The operator, by stopping the program.
    Admin,
}

/// The phase of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The client is accepted, and the server is being dialled.
    Connect,
    /// Both legs are connected.
    Relay,
}

/// The cause of a session's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Both directions ended with a FIN.
    Eof,
    /// A leg failed with this errno.
    Errno(i32),
    /// One of our timeouts expired.
    Timeout(Timeout),
    /// The program stopped.
    Stopped,
}

/// The timeouts of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// `server.connect-timeout`.
    Connect,
    /// `timeouts.half-closed`.
    HalfClosed,
    /// `timeouts.idle`.
    Idle,
}

impl End {
    /// Returns the end of a session in which both directions ended in order; `first` sent its FIN first.
    pub const fn in_order(first: Side) -> Self {
        Self { by: By::of(first), phase: Phase::Relay, cause: Cause::Eof }
    }

    /// Returns the end of a session whose leg failed with `err`.
    pub fn failed(side: Side, phase: Phase, err: &io::Error) -> Self {
        Self { by: By::of(side), phase, cause: Cause::Errno(err.raw_os_error().unwrap_or(0)) }
    }

    /// Returns the end of a session by one of our timeouts.
    pub const fn timeout(phase: Phase, which: Timeout) -> Self {
        Self { by: By::Us, phase, cause: Cause::Timeout(which) }
    }

    /// Returns the end of a session whose task was dropped, which happens only when the program stops.
    pub const fn stopped(phase: Phase) -> Self {
        Self { by: By::Admin, phase, cause: Cause::Stopped }
    }
}

impl By {
    const fn of(side: Side) -> Self {
        match side {
            Side::Client => Self::Client,
            Side::Server => Self::Server,
        }
    }
}

/// The dial attempt that connected the server leg. The session table stores the numbers: changing them needs another
/// [`LAYOUT`](crate::state::table::header::LAYOUT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialled {
    /// The first attempt.
    First = 0,
    /// A retry from the same address and port, a moment later.
    Again = 1,
    /// A dial from the client's address with another port.
    OtherPort = 2,
}

/// The result of Multipath TCP on a leg. All variants but [`Mptcp::Yes`] mean that the leg uses TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mptcp {
    /// Not configured.
    Off,
    /// Configured but not tried: this kernel no longer creates such sockets.
    Refused,
    /// Not tried, because it failed with this server before.
    Avoided,
    /// In use to the end.
    Yes,
    /// The peer does not support it; on a client leg: the client did not ask for it.
    Fallback,
    /// No SYN with the option was answered, and one without was.
    Lost,
    /// In use at first; then the peer, or a middlebox that blocks it, forced a fallback to TCP.
    Broken,
}

/// The kind of a leg's first SYN, and the result of TCP Fast Open. The session table stores the numbers: changing
/// them needs another [`LAYOUT`](crate::state::table::header::LAYOUT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// An ordinary SYN: Fast Open is off, or the client did not use it.
    Ordinary = 0,
    /// An ordinary SYN, because Fast Open failed with this server before.
    Avoided = 1,
    /// A SYN that asked for a cookie. A far box that requires no cookie may accept at once.
    Asked = 2,
    /// A SYN with the cookie and without data: no data was available yet.
    Empty = 3,
    /// A SYN with data, which was accepted.
    Data = 4,
    /// A SYN with data, which was not accepted and was sent again.
    Ignored = 5,
    /// An ordinary SYN, after a Fast Open SYN was not answered.
    Lost = 6,
}

/// The facts of a connected leg.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegFacts {
    /// The congestion control in use.
    pub congestion_control: String,
    /// The result of Multipath TCP.
    pub mptcp: Mptcp,
    /// Its paths; `None` if it is not in use, or if the kernel has already forgotten them.
    pub paths: Option<Paths>,
}

/// The paths of an MPTCP connection: the most complete view of them near its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths(pub Vec<Path>);

/// One path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// This host's address.
    pub local: IpAddr,
    /// The peer's address.
    pub remote: IpAddr,
    /// Bytes of payload that were sent over it.
    pub sent: u64,
    /// Bytes of payload that were received over it.
    pub received: u64,
}

impl Paths {
    /// Returns the number of paths.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// Returns the bytes sent and received over all paths.
    pub fn carried(&self) -> u64 {
        self.0.iter().map(|path| path.sent + path.received).sum()
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for Path { local, remote, sent, received } in &self.0 {
            write!(f, "{gap}{local}>{remote} {sent}/{received}")?;
            gap = ", ";
        }
        Ok(())
    }
}

/// The close record of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Client and original destination.
    pub flow: Flow,
    /// The source address that the server saw; `None` without a server leg.
    pub source: Option<SocketAddr>,
    /// How the server leg was dialled; `None` if no dial succeeded.
    pub dialled: Option<Dialled>,
    /// How the session ended.
    pub end: End,
    /// Payload bytes that were passed on to the server.
    pub to_server: u64,
    /// Payload bytes that were passed on to the client.
    pub to_client: u64,
    /// Time from accept to the server's answer; `None` if there was none.
    pub connect: Option<Duration>,
    /// Time from accept to the end.
    pub duration: Duration,
    /// The client leg.
    pub client: LegFacts,
    /// How the client's SYN was accepted.
    pub client_opening: Opening,
    /// The server leg; `None` if no dial succeeded.
    pub server: Option<LegFacts>,
    /// How the server leg's SYN was sent; `None` if no dial succeeded.
    pub server_opening: Option<Opening>,
}

macro_rules! words {
    ($($name:ident { $($variant:ident => $word:literal),+ $(,)? })+) => {$(
        impl $name {
            /// All variants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the word that logs use.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+};
}

words! {
    By { Client => "client", Server => "server", Us => "us", Admin => "admin" }
    Phase { Connect => "connect", Relay => "relay" }
    Timeout { Connect => "connect-timeout", HalfClosed => "half-closed-timeout", Idle => "idle-timeout" }
    Dialled { First => "first", Again => "again", OtherPort => "other-port" }
    Opening {
        Ordinary => "no", Avoided => "avoided", Asked => "asked", Empty => "empty", Data => "data", Ignored => "ignored",
        Lost => "lost"
    }
    Mptcp {
        Off => "off", Refused => "refused", Avoided => "avoided", Yes => "yes", Fallback => "fallback", Lost => "lost",
        Broken => "broken"
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eof => f.write_str("eof"),
            Self::Errno(errno) => match errno_word(*errno) {
                Some(word) => f.write_str(word),
                None => write!(f, "errno-{errno}"),
            },
            Self::Timeout(which) => which.fmt(f),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Returns the word for an errno that commonly ends a TCP connection. The numbers are those of
/// include/uapi/asm-generic/errno.h.
fn errno_word(errno: i32) -> Option<&'static str> {
    Some(match errno {
        1 => "filtered",
        12 => "out-of-memory",
        13 => "not-permitted",
        23 | 24 => "out-of-descriptors",
        // EPIPE: the reset came after the peer's FIN (tcp_reset() in net/ipv4/tcp_input.c), or before our write.
        32 | 104 => "reset",
        98 | 99 => "address-in-use",
        100 => "network-down",
        101 => "network-unreachable",
        103 => "aborted",
        105 => "out-of-buffers",
        110 => "timed-out",
        111 => "refused",
        113 => "host-unreachable",
        _ => return None,
    })
}
