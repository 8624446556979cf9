//! Named points in a session's life at which a test can have the worker die, for what comes behind. Not in releases: there each is
//! nothing. EFFECT.
//!
//! `TCP_INTERCEPT_CRASH_AT=kill:filled,abort:driven:7777` in the environment kills the worker when it first comes to `filled`, once in the
//! whole daemon's life, and has every worker abort that drives a session to port 7777.
use std::sync::atomic::AtomicU64;

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $name:ident => $word:literal,)+) => {
        /// Where.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[doc = $doc])+ $name,)+ }

        impl Point {
            /// All of them, by their names.
            pub const ALL: &'static [(&'static str, Self)] = &[$(($word, Self::$name),)+];
        }
    };
}

points! {
    /// A connection was accepted, and is written down nowhere.
    Accepted => "accepted",
    /// It is in the table.
    Enlisted => "enlisted",
    /// The socket for the server is in the table, and has sent nothing.
    Socket => "socket",
    /// The SYN is on its way.
    Syn => "syn",
    /// The SYN took bytes along.
    SynData => "syn-data",
    /// The server has answered.
    Connected => "connected",
    /// Both legs stand, and the table knows.
    Relaying => "relaying",
    /// A pipe is in the table, and nothing in it.
    Pipe => "pipe",
    /// Bytes are in the pipe.
    Filled => "filled",
    /// Bytes have left the pipe, and are not counted.
    Drained => "drained",
    /// The pipe is empty and out of the table.
    Returned => "returned",
    /// An urgent byte has been seen, and is still in its source.
    UrgentSeen => "urgent-seen",
    /// It has been taken, and not been passed on.
    UrgentTaken => "urgent-taken",
    /// It has been passed on, and the table does not know.
    UrgentGiven => "urgent-given",
    /// One end's FIN has come, and has not been passed on.
    Eof => "eof",
    /// It has been passed on.
    Shut => "shut",
    /// A leg has failed, and that was read.
    Failed => "failed",
    /// The close record is out, and the table does not know.
    Recorded => "recorded",
    /// The table says that it is over, and the legs are open.
    Ended => "ended",
    /// The worker before has died, and what it left has been read.
    TakenOver => "taken-over",
    /// A session is about to be driven.
    Driven => "driven",
}

/// The worker is at `point`.
#[inline]
pub fn at(point: Point) {
    #[cfg(debug_assertions)]
    armed::strike(point, None);
    let _ = point;
}

/// The worker drives a session to this port.
#[inline]
pub fn driving(port: u16) {
    #[cfg(debug_assertions)]
    armed::strike(Point::Driven, Some(port));
    let _ = port;
}

/// Where it is remembered which points have struck, as the environment is each worker's.
pub fn arm(struck: &'static AtomicU64) {
    #[cfg(debug_assertions)]
    armed::arm(struck);
    let _ = struck;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    static STRUCK: OnceLock<&AtomicU64> = OnceLock::new();
    static ORDERS: OnceLock<Vec<Order>> = OnceLock::new();

    struct Order {
        abort: bool,
        point: Point,
        port: Option<u16>,
    }

    pub fn arm(struck: &'static AtomicU64) {
        // One worker is armed once.
        let _ = STRUCK.set(struck);
    }

    pub fn strike(point: Point, port: Option<u16>) {
        let Some(struck) = STRUCK.get() else { return };
        let hit = |order: &&Order| order.point == point && (order.port.is_none() || order.port == port);
        let Some(order) = ORDERS.get_or_init(orders).iter().find(hit) else { return };
        if order.abort {
            std::process::abort();
        }
        let bit = 1 << point as u32;
        if struck.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    fn orders() -> Vec<Order> {
        let words = std::env::var("TCP_INTERCEPT_CRASH_AT").unwrap_or_default();
        words.split(',').filter(|word| !word.is_empty()).map(order).collect()
    }

    /// A test that misspells a point must not pass for it.
    fn order(word: &str) -> Order {
        let mut parts = word.split(':');
        let (how, name, port) = (parts.next(), parts.next(), parts.next());
        let known = Point::ALL.iter().find(|(word, _)| Some(*word) == name);
        let port = port.map(|port| port.parse());
        match (how, known, port.transpose()) {
            (Some(how @ ("kill" | "abort")), Some(&(_, point)), Ok(port)) => {
                Order { abort: how == "abort", point, port }
            }
            _ => {
                panic!("TCP_INTERCEPT_CRASH_AT: {word:?} is neither kill:POINT[:PORT] nor abort:POINT[:PORT]")
            }
        }
    }
}
