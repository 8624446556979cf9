//! When has a peer confirmed nothing for too long? PURE: what TCP_USER_TIMEOUT does, which MPTCP sockets refuse, from byte counts at
//! every tick, so that nothing on the data path has to look at a clock.
use std::time::Duration;

/// It strikes between its limit and a quarter more: so many ticks fit into it.
const TICKS: u32 = 4;

/// Watches what was given to one leg.
#[derive(Debug)]
pub struct Stall {
    tick: Duration,
    limit: Duration,
    /// What had been confirmed at the last tick, if anything was waiting then.
    confirmed: Option<u64>,
    stalled: u32,
}

impl Stall {
    /// Strikes when something waits for so long and nothing is confirmed.
    pub fn new(limit: Duration) -> Self {
        let tick = (limit / TICKS).max(Duration::from_millis(1));
        Self { tick, limit, confirmed: None, stalled: 0 }
    }

    /// How long to wait before the next [`Stall::at_tick`].
    pub fn tick(&self) -> Duration {
        self.tick
    }

    /// One tick has passed: the leg was given `given` bytes so far, and `waiting` of them its peer has not confirmed.
    pub fn at_tick(&mut self, given: u64, waiting: u64) -> bool {
        // A FIN waits too, and is not among the bytes.
        let confirmed = (waiting > 0).then(|| given.wrapping_sub(waiting));
        if confirmed.is_none() || confirmed != self.confirmed {
            (self.confirmed, self.stalled) = (confirmed, 0);
            return false;
        }
        self.stalled += 1;
        self.tick * self.stalled >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stall() -> Stall {
        Stall::new(Duration::from_secs(4))
    }

    #[test]
    fn it_strikes_when_something_waits_for_as_long_as_the_limit() {
        let mut stall = stall();
        assert_eq!(stall.tick(), Duration::from_secs(1));
        let struck = (0..).find(|_| stall.at_tick(100, 10)).unwrap();
        assert_eq!(struck, 4, "the first tick only finds that something waits");
    }

    #[test]
    fn where_nothing_waits_it_never_strikes_and_waiting_begins_with_the_first_byte() {
        let mut stall = stall();
        assert!((0..1000).all(|_| !stall.at_tick(100, 0)));
        assert!((0..4).all(|_| !stall.at_tick(110, 10)));
        assert!(stall.at_tick(110, 10));
    }

    #[test]
    fn a_peer_that_confirms_a_byte_now_and_then_is_not_gone() {
        let mut stall = stall();
        for waiting in (1..=100).rev() {
            assert!((0..4).all(|_| !stall.at_tick(1000, waiting)), "{waiting}");
        }
    }

    #[test]
    fn what_is_given_meanwhile_is_no_progress() {
        let mut stall = stall();
        assert!((0..4).all(|n| !stall.at_tick(100 + n, 10 + n)));
        assert!(stall.at_tick(200, 110));
    }

    #[test]
    fn a_fin_that_is_not_confirmed_is_waited_for_in_vain_too() {
        let mut stall = stall();
        assert!((0..4).all(|_| !stall.at_tick(0, 1)));
        assert!(stall.at_tick(0, 1));
    }
}
