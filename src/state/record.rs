//! The close record: what is said of a connection, once, at its end. PURE.
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::state::flow::{Flow, Side};

/// How a session ended: at once the log's fields, a bounded label, and what tests assert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Who ended it.
    pub by: By,
    /// Where it stood.
    pub phase: Phase,
    /// Why.
    pub cause: Cause,
}

/// Who ended a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The client: for an orderly end, the one whose FIN came first.
    Client,
    /// The server, or the network on the way to it.
    Server,
    /// This program, by one of its timeouts or limits.
    Us,
    /// The operator, by stopping the program.
    Admin,
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The client is accepted, the server is being dialled.
    Connect,
    /// Both legs are there.
    Relay,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// FIN in both directions.
    Eof,
    /// A leg failed, with this errno.
    Errno(i32),
    /// One of our timeouts.
    Timeout(Timeout),
    /// The program stopped.
    Stopped,
}

/// Our timeouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timeout {
    /// `server.connect-timeout`
    Connect,
    /// `timeouts.half-closed`
    HalfClosed,
    /// `timeouts.idle`
    Idle,
}

impl End {
    /// Both directions came to their end in order; `first` sent its FIN first.
    pub const fn in_order(first: Side) -> Self {
        Self { by: By::of(first), phase: Phase::Relay, cause: Cause::Eof }
    }

    /// A leg failed.
    pub fn failed(side: Side, phase: Phase, err: &io::Error) -> Self {
        Self { by: By::of(side), phase, cause: Cause::Errno(err.raw_os_error().unwrap_or(0)) }
    }

    /// One of our timeouts struck.
    pub const fn timeout(phase: Phase, which: Timeout) -> Self {
        Self { by: By::Us, phase, cause: Cause::Timeout(which) }
    }

    /// The session's task was dropped, which happens only when the program stops.
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

/// Which step of the ladder brought the server leg about. The numbers are in the table of sessions: a change of them needs another
/// [`LAYOUT`](crate::state::table::header::LAYOUT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialled {
    /// The first attempt.
    First = 0,
    /// The same address and port again, a moment later.
    Again = 1,
    /// The client's address with another port.
    OtherPort = 2,
}

/// What became of Multipath TCP on a leg. All but [`Mptcp::Yes`] mean that it is TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mptcp {
    /// Not asked for.
    Off,
    /// Asked for and not even tried: this kernel makes no such sockets any more.
    Refused,
    /// Not asked for, because it failed with this server before.
    Avoided,
    /// In use to the end.
    Yes,
    /// The peer does not speak it; of a client: did not ask for it.
    Fallback,
    /// No SYN with it was answered, and one without was.
    Lost,
    /// In use at first; then the peer, or something on the way that does not let it pass, made it TCP.
    Broken,
}

/// How a leg's first SYN was sent or taken, and what TCP Fast Open came to. The numbers are in the table of sessions: a change of
/// them needs another [`LAYOUT`](crate::state::table::header::LAYOUT).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// By an ordinary SYN: Fast Open is switched off, or the client did not use it.
    Ordinary = 0,
    /// By an ordinary SYN, because Fast Open failed with this server before.
    Avoided = 1,
    /// By a SYN that asked for a cookie. Without a cookie the far end may take it as if it had one.
    Asked = 2,
    /// By a SYN with the cookie and no data: there was none yet.
    Empty = 3,
    /// By a SYN with data, which was taken.
    Data = 4,
    /// By a SYN with data, which was not taken and was sent again.
    Ignored = 5,
    /// By an ordinary SYN, after one of Fast Open was not answered.
    Lost = 6,
}

/// What is known of a leg once it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegFacts {
    /// The congestion control in use.
    pub congestion_control: String,
    /// Multipath TCP.
    pub mptcp: Mptcp,
    /// Its paths; `None` where it is not in use, or the kernel knows them no more.
    pub paths: Option<Paths>,
}

/// The paths of an MPTCP connection: the most that was seen of them at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths(pub Vec<Path>);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// This host's address.
    pub local: IpAddr,
    /// The peer's.
    pub remote: IpAddr,
    /// Bytes of payload that were sent by it.
    pub sent: u64,
    /// Bytes of payload that came by it.
    pub received: u64,
}

impl Paths {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// Bytes sent and received by all of them.
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

/// Everything that is said of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Client and original destination.
    pub flow: Flow,
    /// The address that the server saw; `None` when no server leg came about.
    pub source: Option<SocketAddr>,
    /// How the server leg was dialled; `None` when none came about.
    pub dialled: Option<Dialled>,
    /// How it ended.
    pub end: End,
    /// Payload bytes that were passed on to the server.
    pub to_server: u64,
    /// Payload bytes that were passed on to the client.
    pub to_client: u64,
    /// From accept to the server's answer; `None` when there was none.
    pub connect: Option<Duration>,
    /// From accept to the end.
    pub duration: Duration,
    /// The client leg.
    pub client: LegFacts,
    /// How the client's SYN was taken.
    pub client_opening: Opening,
    /// The server leg.
    pub server: Option<LegFacts>,
    /// How the server leg's SYN was sent; `None` when none came about.
    pub server_opening: Option<Opening>,
}

macro_rules! words {
    ($($name:ident { $($variant:ident => $word:literal),+ $(,)? })+) => {$(
        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word for it in logs.
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

/// The errnos that end a connection in the ordinary life of TCP, in words; numbers of include/uapi/asm-generic/errno.h.
fn errno_word(errno: i32) -> Option<&'static str> {
    Some(match errno {
        1 => "filtered",
        12 => "out-of-memory",
        13 => "not-permitted",
        23 | 24 => "out-of-descriptors",
        // EPIPE: the reset came behind the peer's FIN (tcp_reset() in net/ipv4/tcp_input.c), or before our write.
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
