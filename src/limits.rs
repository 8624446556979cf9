//! How many sessions there may be, and when new connections are better routed past us. PURE.
use std::sync::atomic::{AtomicU32, Ordering};

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

/// How many sessions there are, of how many there may be.
#[derive(Debug)]
pub struct Occupancy {
    sessions: AtomicU32,
    limit: u32,
    close_at: u32,
    open_at: u32,
}

/// What one more or one session less means for the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a crossing that nobody acts on leaves the gate as it is"]
pub enum Crossed {
    /// The mark at which the gate is to be looked at.
    Mark,
    /// Nothing.
    Nothing,
}

impl Occupancy {
    /// None of `limit` yet.
    pub fn new(limit: u32) -> Self {
        // No more than the limit itself, which is at least 1; so it fits.
        let share = |per_cent: u64| (u64::from(limit) * per_cent / 100) as u32;
        let close_at = share(CLOSE_AT).max(1);
        Self { sessions: AtomicU32::new(0), limit, close_at, open_at: share(OPEN_AT).min(close_at - 1) }
    }

    /// One session more.
    pub fn enter(&self) -> Crossed {
        let now = self.sessions.fetch_add(1, Ordering::Relaxed) + 1;
        if now == self.close_at { Crossed::Mark } else { Crossed::Nothing }
    }

    /// One session less.
    pub fn leave(&self) -> Crossed {
        let now = self.sessions.fetch_sub(1, Ordering::Relaxed) - 1;
        if now == self.open_at { Crossed::Mark } else { Crossed::Nothing }
    }

    /// Sessions now.
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Sessions at most.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether there may not be one more: what has been intercepted already waits to be accepted.
    pub fn is_full(&self) -> bool {
        self.sessions() >= self.limit
    }

    /// Whether the gate should be closed, given whether it is.
    pub fn closes(&self, closed: bool) -> bool {
        self.sessions() > if closed { self.open_at } else { self.close_at - 1 }
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

    proptest! {
        #[test]
        fn whoever_looks_at_each_crossing_always_knows_the_gate(limit in 1..200_u32, steps in proptest::collection::vec(any::<bool>(), 0..2000)) {
            let occupancy = Occupancy::new(limit);
            let mut closed = false;
            for more in steps {
                let crossed = match more {
                    true if occupancy.is_full() => continue,
                    true => occupancy.enter(),
                    false if occupancy.sessions() == 0 => continue,
                    false => occupancy.leave(),
                };
                let before = closed;
                if crossed == Crossed::Mark {
                    closed = occupancy.closes(closed);
                }
                prop_assert_eq!(closed, occupancy.closes(before), "{} of {}", occupancy.sessions(), limit);
                prop_assert!(!occupancy.is_full() || closed, "full with the gate open");
            }
        }
    }
}
