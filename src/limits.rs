//! How many sessions there may be, and when new connections are better routed past us. PURE.
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Of ten descriptors, nine are for sessions; the rest is for listeners, pipes, the log and the runtime.
const DESCRIPTORS_FOR_SESSIONS: (u64, u64) = (9, 10);
/// A session's legs.
const DESCRIPTORS_A_SESSION: u64 = 2;
/// From this share of the limit on, in per cent, new connections are routed ...
const CLOSE_AT: u64 = 95;
/// ... until no more than this share is left.
const OPEN_AT: u64 = 90;

/// The most sessions that `descriptors` (RLIMIT_NOFILE) carry; at least one.
pub fn carried_by(descriptors: u64) -> u32 {
    let (of, all) = DESCRIPTORS_FOR_SESSIONS;
    let sessions = descriptors / all * of / DESCRIPTORS_A_SESSION;
    u32::try_from(sessions).unwrap_or(u32::MAX).max(1)
}

/// How many sessions there are, of how many there may be, and whether new connections are let in.
#[derive(Debug)]
pub struct Occupancy {
    sessions: AtomicU32,
    limit: AtomicU32,
    closed: AtomicBool,
}

/// What one more or one session less means for the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a gate that nobody moves stays as it is"]
pub enum Gate {
    /// It is to be moved: [`Occupancy::closes`] says where to.
    Moves,
    /// It is right as it is.
    Stays,
}

impl Occupancy {
    /// None of `limit` yet, and the gate is open.
    pub fn new(limit: u32) -> Self {
        Self {
            sessions: AtomicU32::new(0),
            limit: AtomicU32::new(limit.max(1)),
            closed: AtomicBool::new(false),
        }
    }

    /// One session more.
    pub fn enter(&self) -> Gate {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.gate()
    }

    /// One session less.
    pub fn leave(&self) -> Gate {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        self.gate()
    }

    /// The kernel had nothing left for one more: as many as there are now is the limit from here on.
    pub fn exhausted(&self) -> Gate {
        self.limit.fetch_min(self.sessions().max(1), Ordering::Relaxed);
        self.gate()
    }

    /// Sessions now.
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Sessions at most.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether there may not be one more: what has been intercepted already waits to be accepted.
    pub fn is_full(&self) -> bool {
        self.sessions() >= self.limit()
    }

    /// Whether the gate should be closed.
    pub fn closes(&self) -> bool {
        let share = |per_cent: u64| u64::from(self.limit()) * per_cent / 100;
        let close_at = share(CLOSE_AT).max(1);
        let mark =
            if self.closed.load(Ordering::Relaxed) { share(OPEN_AT).min(close_at - 1) } else { close_at - 1 };
        u64::from(self.sessions()) > mark
    }

    /// The gate was moved.
    pub fn moved(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    fn gate(&self) -> Gate {
        if self.closes() == self.closed.load(Ordering::Relaxed) { Gate::Stays } else { Gate::Moves }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn twenty_thousand_descriptors_carry_nine_thousand_sessions() {
        assert_eq!((carried_by(20_000), carried_by(0), carried_by(u64::MAX)), (9_000, 1, u32::MAX));
    }

    #[test]
    fn the_kernels_no_is_a_limit_too() {
        let occupancy = Occupancy::new(1000);
        for _ in 0..100 {
            assert_eq!(occupancy.enter(), Gate::Stays);
        }
        assert_eq!(occupancy.exhausted(), Gate::Moves);
        assert!(occupancy.closes() && occupancy.is_full());
        occupancy.moved(true);
        let left = (1..).find(|_| occupancy.leave() == Gate::Moves);
        assert_eq!((left, occupancy.closes()), (Some(10), false));
    }

    proptest! {
        #[test]
        fn whoever_moves_the_gate_when_told_has_it_closed_before_it_is_full(
            limit in 1..200_u32,
            steps in proptest::collection::vec(any::<bool>(), 0..2000),
        ) {
            let occupancy = Occupancy::new(limit);
            let mut closed = false;
            for more in steps {
                let gate = match more {
                    true if occupancy.is_full() => continue,
                    true => occupancy.enter(),
                    false if occupancy.sessions() == 0 => continue,
                    false => occupancy.leave(),
                };
                if gate == Gate::Moves {
                    closed = occupancy.closes();
                    occupancy.moved(closed);
                }
                let n = occupancy.sessions();
                prop_assert!(!occupancy.is_full() || closed, "full with the gate open");
                prop_assert!(closed || n * 100 < limit * 95 || n == 0, "open with {n} of {limit}");
                prop_assert!(!closed || n * 100 > limit * 89 || n > 0, "closed with {n} of {limit}");
            }
        }
    }
}
