//! The limit on sessions, and the gate that routes new connections near the limit. PURE.
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Share of the descriptors that sessions may use: nine of ten. Listeners, pipes, the log and the runtime use the
/// rest.
const DESCRIPTORS_FOR_SESSIONS: (u64, u64) = (9, 10);
/// Descriptors of one session: its two legs.
const DESCRIPTORS_A_SESSION: u64 = 2;
/// Share of the limit, in per cent, from which new connections are routed.
const CLOSE_AT: u64 = 95;
/// Share of the limit, in per cent, at which new connections are intercepted again.
const OPEN_AT: u64 = 90;

/// Returns the highest number of sessions for `descriptors` (RLIMIT_NOFILE); at least one.
pub fn carried_by(descriptors: u64) -> u32 {
    let (of, all) = DESCRIPTORS_FOR_SESSIONS;
    let sessions = descriptors / all * of / DESCRIPTORS_A_SESSION;
    u32::try_from(sessions).unwrap_or(u32::MAX).max(1)
}

/// The number of sessions, its limit, and whether the gate is open.
#[derive(Debug)]
pub struct Occupancy {
    sessions: AtomicU32,
    limit: u32,
    exhausted: AtomicBool,
    closed: AtomicBool,
    draining: AtomicBool,
}

/// The consequence of a change for the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a gate stays as it is until the caller moves it"]
pub enum Gate {
    /// The gate must move, to the state that [`Occupancy::closes`] returns.
    Moves,
    /// The gate is in the right state.
    Stays,
}

impl Occupancy {
    /// Creates a state with no session, a limit of `limit`, and an open gate.
    pub fn new(limit: u32) -> Self {
        Self {
            sessions: AtomicU32::new(0),
            limit: limit.max(1),
            exhausted: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Adds a session. It may exceed the limit: connections that were intercepted before the gate closed are served.
    pub fn enter(&self) -> Gate {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        self.gate()
    }

    /// Removes a session.
    pub fn leave(&self) -> Gate {
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        self.gate()
    }

    /// Records that the kernel was out of descriptors or memory. The gate's task must check the gate and test the
    /// kernel again.
    pub fn exhausted(&self) {
        self.exhausted.store(true, Ordering::Relaxed);
    }

    /// Starts to drain: from now on new connections are routed.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Records that the kernel has descriptors and memory again. The gate's task must check the gate.
    pub fn recovered(&self) {
        self.exhausted.store(false, Ordering::Relaxed);
    }

    /// Returns whether the kernel was out of descriptors or memory when it was last tested.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// Returns the number of sessions.
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Returns the limit on sessions.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Returns whether the gate should be closed.
    pub fn closes(&self) -> bool {
        let share = |per_cent: u64| u64::from(self.limit) * per_cent / 100;
        let close_at = share(CLOSE_AT).max(1);
        let mark = if self.is_closed() { share(OPEN_AT).min(close_at - 1) } else { close_at - 1 };
        self.draining.load(Ordering::Relaxed) || self.is_exhausted() || u64::from(self.sessions()) > mark
    }

    /// Returns whether the gate is closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Records that the gate was moved.
    pub fn moved(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    fn gate(&self) -> Gate {
        if self.closes() == self.is_closed() { Gate::Stays } else { Gate::Moves }
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
    fn exhaustion_closes_the_gate_until_the_kernel_recovers() {
        let occupancy = Occupancy::new(1000);
        assert_eq!(occupancy.enter(), Gate::Stays);
        occupancy.exhausted();
        assert!(occupancy.closes());
        occupancy.moved(true);
        assert_eq!((occupancy.leave(), occupancy.closes()), (Gate::Stays, true));
        occupancy.recovered();
        assert!(!occupancy.closes());
    }

    /// Returns two numbers of sessions: at the first the gate closes while sessions are added, at the second it opens
    /// while they end.
    fn thresholds(limit: u32) -> (u32, u32) {
        let occupancy = Occupancy::new(limit);
        while occupancy.enter() == Gate::Stays {}
        let closed_at = occupancy.sessions();
        occupancy.moved(true);
        // Connections that were intercepted before the gate closed are still served.
        (closed_at..limit).for_each(|_| assert_eq!(occupancy.enter(), Gate::Stays));
        while occupancy.leave() == Gate::Stays {}
        (closed_at, occupancy.sessions())
    }

    #[test]
    fn the_gate_closes_at_95_per_cent_and_opens_at_90() {
        for (limit, closes_at, opens_at) in
            [(9000, 8550, 8100), (1000, 950, 900), (200, 190, 180), (40, 38, 36), (39, 37, 35)]
        {
            assert_eq!(thresholds(limit), (closes_at, opens_at), "limit {limit}");
        }
    }

    #[test]
    fn with_a_small_limit_the_gate_opens_at_least_one_session_below_where_it_closes() {
        for (limit, closes_at, opens_at) in [(20, 19, 18), (10, 9, 8), (5, 4, 3), (2, 1, 0), (1, 1, 0)] {
            assert_eq!(thresholds(limit), (closes_at, opens_at), "limit {limit}");
        }
    }

    /// Returns whether the gate is closed by the documented rule, in whole sessions. Both thresholds are rounded
    /// down. The gate opens at least one session below the number at which it closes.
    fn promised(limit: u32, sessions: u32, was_closed: bool) -> bool {
        let one_more = (sessions + 1) * 100;
        match sessions {
            0 => false,
            _ if one_more > limit * 95 => true,
            n if n * 100 <= limit * 90 => false,
            _ => was_closed,
        }
    }

    proptest! {
        #[test]
        fn the_gate_is_closed_from_95_per_cent_on_until_90_per_cent_are_left(
            limit in 1..200_u32,
            runs in proptest::collection::vec((any::<bool>(), 1..60_u32), 0..60),
        ) {
            let occupancy = Occupancy::new(limit);
            let mut closed = false;
            for more in runs.into_iter().flat_map(|(more, count)| (0..count).map(move |_| more)) {
                let gate = match more {
                    true => occupancy.enter(),
                    false if occupancy.sessions() == 0 => continue,
                    false => occupancy.leave(),
                };
                let promised = promised(limit, occupancy.sessions(), closed);
                if gate == Gate::Moves {
                    closed = occupancy.closes();
                    occupancy.moved(closed);
                }
                let n = occupancy.sessions();
                prop_assert!(closed == promised, "closed: {closed}, with {n} of {limit}");
                prop_assert!(n < limit || closed, "full with the gate open");
            }
        }
    }
}
