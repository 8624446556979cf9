//! Named points in the life of a session and in the start of a worker, at which a test can have the worker die or a step fail. Not in
//! releases: there each is nothing. EFFECT.
//!
//! `TCP_INTERCEPT_CRASH_AT=kill:filled,fail:thread,abort:driven:7777` in the environment kills the worker when it first reaches `filled`
//! and has a worker's `thread` step fail (or with `hang:` never end), each once in the daemon's life, and has every worker abort that drives a session to port 7777.
//! The points of a worker's start do not strike the daemon's first worker: it has no sessions yet.
use std::io;
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
    /// A worker starts.
    Start => "start",
    /// It makes the runtime of its control thread.
    Runtime => "runtime",
    /// It registers the channel to the guardian.
    Orders => "orders",
    /// It starts to watch for the guardian's death.
    Guardian => "guardian",
    /// It makes the runtime of the thread that changes the host.
    Host => "host",
    /// It starts a thread.
    Thread => "thread",
    /// A thread makes its runtime.
    ThreadRuntime => "thread-runtime",
    /// A thread registers its listeners.
    Listener => "listener",
    /// The control thread is about to report that it is alive.
    Control => "control",
}

impl Point {
    /// The steps of a worker's start that can fail, in their order.
    pub const START: [Self; 7] = [
        Self::Runtime,
        Self::Orders,
        Self::Guardian,
        Self::Host,
        Self::Thread,
        Self::ThreadRuntime,
        Self::Listener,
    ];
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

/// The worker does `step`, unless that is to fail at `point`.
///
/// # Errors
/// Those of `step`; `EAGAIN` where a test has it fail.
#[inline]
pub fn or_fail<T>(point: Point, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(debug_assertions)]
    if armed::strike(point, None) {
        return Err(rustix::io::Errno::AGAIN.into());
    }
    let _ = point;
    step()
}

/// Arms the points in this worker. `struck` remembers for the daemon's life which of them have struck; `first`: it is the daemon's first
/// worker.
pub fn arm(struck: &'static AtomicU64, first: bool) {
    #[cfg(debug_assertions)]
    armed::arm(struck, first);
    let _ = (struck, first);
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::Point;

    static STRUCK: OnceLock<(&AtomicU64, bool)> = OnceLock::new();
    static ORDERS: OnceLock<Vec<Order>> = OnceLock::new();

    #[derive(Clone, Copy, PartialEq)]
    enum Effect {
        /// SIGKILL, once.
        Kill,
        /// SIGABRT, each time.
        Abort,
        /// The step fails, once.
        Fail,
        /// The thread hangs, once.
        Hang,
    }

    struct Order {
        effect: Effect,
        point: Point,
        port: Option<u16>,
    }

    pub fn arm(struck: &'static AtomicU64, first: bool) {
        // One worker is armed once.
        let _ = STRUCK.set((struck, first));
    }

    /// Whether the step at `point` is to fail.
    pub fn strike(point: Point, port: Option<u16>) -> bool {
        let Some(&(struck, first)) = STRUCK.get() else { return false };
        let hit = |order: &&Order| order.point == point && (order.port.is_none() || order.port == port);
        let Some(order) = ORDERS.get_or_init(orders).iter().find(hit) else { return false };
        let at_start = point == Point::Start || point == Point::TakenOver || Point::START.contains(&point);
        if first && at_start {
            return false;
        }
        if order.effect == Effect::Abort {
            std::process::abort();
        }
        let bit = 1 << point as u32;
        if struck.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return false;
        }
        match order.effect {
            Effect::Kill => drop(kill_process(getpid(), Signal::KILL)),
            Effect::Hang => std::thread::sleep(std::time::Duration::MAX),
            Effect::Abort | Effect::Fail => {}
        }
        true
    }

    fn orders() -> Vec<Order> {
        let words = std::env::var("TCP_INTERCEPT_CRASH_AT").unwrap_or_default();
        words.split(',').filter(|word| !word.is_empty()).map(order).collect()
    }

    /// A test that misspells a point must not pass for it.
    fn order(word: &str) -> Order {
        let mut parts = word.split(':');
        let effect = match parts.next() {
            Some("kill") => Some(Effect::Kill),
            Some("abort") => Some(Effect::Abort),
            Some("fail") => Some(Effect::Fail),
            Some("hang") => Some(Effect::Hang),
            _ => None,
        };
        let (name, port) = (parts.next(), parts.next());
        let known = Point::ALL.iter().find(|(word, _)| Some(*word) == name);
        let port = port.map(|port| port.parse());
        match (effect, known, port.transpose()) {
            (Some(effect), Some(&(_, point)), Ok(port)) => Order { effect, point, port },
            _ => panic!("TCP_INTERCEPT_CRASH_AT: {word:?} is not (kill|abort|fail|hang):POINT[:PORT]"),
        }
    }
}
