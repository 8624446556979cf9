//! Crash points in the life of a session and in the start of a worker, for tests. EFFECT.
//!
//! At a crash point a test kills the worker or lets a step fail. In release builds they do nothing.
//!
//! The environment variable `TCP_INTERCEPT_CRASH_AT=kill:filled,fail:thread,abort:driven:7777` has three effects. It
//! kills the worker when it first reaches `filled`. It lets the step `thread` of a worker's start fail; `hang:` would
//! block it for ever. Both happen once in the daemon's life. And every worker that drives a session to port 7777
//! aborts.
//!
//! The points in a worker's start do not apply to the daemon's first worker, which has no sessions yet.
use std::io;
use std::sync::atomic::AtomicU64;

macro_rules! points {
    ($($(#[doc = $doc:literal])+ $name:ident => $word:literal,)+) => {
        /// A crash point.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point { $($(#[doc = $doc])+ $name,)+ }

        impl Point {
            /// All crash points, with their names.
            pub const ALL: &'static [(&'static str, Self)] = &[$(($word, Self::$name),)+];
        }
    };
}

points! {
    /// A connection was accepted and is not in the session table yet.
    Accepted => "accepted",
    /// The session is in the table.
    Enlisted => "enlisted",
    /// The server socket is in the table and has sent nothing.
    Socket => "socket",
    /// The SYN was sent.
    Syn => "syn",
    /// The SYN carried data.
    SynData => "syn-data",
    /// The server has answered.
    Connected => "connected",
    /// Both legs are connected, and the table records that.
    Relaying => "relaying",
    /// An empty pipe is in the table.
    Pipe => "pipe",
    /// Bytes are in the pipe.
    Filled => "filled",
    /// Bytes have left the pipe and are not counted yet.
    Drained => "drained",
    /// The pipe is empty and removed from the table.
    Returned => "returned",
    /// An urgent byte was seen and is still in its source.
    UrgentSeen => "urgent-seen",
    /// The urgent byte was taken and not passed on yet.
    UrgentTaken => "urgent-taken",
    /// The urgent byte was passed on, and the table does not record that yet.
    UrgentGiven => "urgent-given",
    /// A FIN was read and not passed on yet.
    Eof => "eof",
    /// The FIN was passed on.
    Shut => "shut",
    /// A leg has failed, and its error was read.
    Failed => "failed",
    /// The close record is written, and the table does not record that yet.
    Recorded => "recorded",
    /// The table records the end of the session, and the legs are still open.
    Ended => "ended",
    /// A new worker has read the sessions of one that died.
    TakenOver => "taken-over",
    /// The worker is about to drive a session.
    Driven => "driven",
    /// A worker starts.
    Start => "start",
    /// The worker creates the runtime of its control thread.
    Runtime => "runtime",
    /// The worker registers the channel to the guardian.
    Orders => "orders",
    /// The worker starts to watch for the guardian's death.
    Guardian => "guardian",
    /// The worker creates the runtime of the thread that changes the host.
    Host => "host",
    /// The worker starts a thread.
    Thread => "thread",
    /// A thread creates its runtime.
    ThreadRuntime => "thread-runtime",
    /// A thread registers its listeners.
    Listener => "listener",
    /// A thread makes the pipe that it needs.
    Pool => "pool",
    /// The control thread is about to report that it is alive.
    Control => "control",
}

impl Point {
    /// The steps of a worker's start that can fail, in order.
    pub const START: [Self; 8] = [
        Self::Runtime,
        Self::Orders,
        Self::Guardian,
        Self::Host,
        Self::Thread,
        Self::ThreadRuntime,
        Self::Listener,
        Self::Pool,
    ];
}

/// Marks that the worker has reached `point`.
#[inline]
pub fn at(point: Point) {
    #[cfg(debug_assertions)]
    armed::strike(point, None);
    let _ = point;
}

/// Marks that the worker drives a session to the server port `port`.
#[inline]
pub fn driving(port: u16) {
    #[cfg(debug_assertions)]
    armed::strike(Point::Driven, Some(port));
    let _ = port;
}

/// Runs `step`, unless a test lets it fail at `point`.
///
/// # Errors
/// Those of `step`; `EAGAIN` if a test lets it fail.
#[inline]
pub fn or_fail<T>(point: Point, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(debug_assertions)]
    if armed::strike(point, None) {
        return Err(rustix::io::Errno::AGAIN.into());
    }
    let _ = point;
    step()
}

/// Arms the crash points in this worker. `struck` records for the daemon's life which of them have taken effect.
/// `first` marks the daemon's first worker.
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
        // A worker is armed only once.
        let _ = STRUCK.set((struck, first));
    }

    /// Executes the effect of `point`, if there is one. Returns whether the step must fail.
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

    /// Parses one item of the variable. It panics on an unknown point, so that a test with a misspelt name fails.
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
