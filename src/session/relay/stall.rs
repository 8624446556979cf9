//! The limit on unacknowledged data of a leg: what TCP_USER_TIMEOUT does, which MPTCP sockets refuse. PURE.
//!
//! It compares byte counts at every tick, so that the data path needs no clock.
use std::time::Duration;

/// Ticks in the limit. It therefore expires between its duration and a quarter more.
const TICKS: u32 = 4;

/// The state of the limit for one leg.
#[derive(Debug)]
pub struct Stall {
    tick: Duration,
    limit: Duration,
    /// The number of bytes acknowledged at the last tick, if any were unacknowledged then.
    confirmed: Option<u64>,
    stalled: u32,
}

impl Stall {
    /// Creates a limit that expires when data waits for `limit` and the peer acknowledges none of it.
    pub fn new(limit: Duration) -> Self {
        let tick = (limit / TICKS).max(Duration::from_millis(1));
        Self { tick, limit, confirmed: None, stalled: 0 }
    }

    /// Returns the time to wait before the next [`Stall::at_tick`].
    pub fn tick(&self) -> Duration {
        self.tick
    }

    /// Records a tick and returns whether the limit has expired. The leg was given `given` bytes so far, of which the
    /// peer has not acknowledged `waiting`.
    pub fn at_tick(&mut self, given: u64, waiting: u64) -> bool {
        // An unacknowledged FIN counts in `waiting`, but not in `given`.
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
    fn it_expires_when_data_is_unacknowledged_for_the_limit() {
        let mut stall = stall();
        assert_eq!(stall.tick(), Duration::from_secs(1));
        let struck = (0..).find(|_| stall.at_tick(100, 10)).unwrap();
        assert_eq!(struck, 4, "the first tick only finds that something waits");
    }

    #[test]
    fn it_expires_only_with_unacknowledged_data_and_counts_from_its_first_byte() {
        let mut stall = stall();
        assert!((0..1000).all(|_| !stall.at_tick(100, 0)));
        assert!((0..4).all(|_| !stall.at_tick(110, 10)));
        assert!(stall.at_tick(110, 10));
    }

    #[test]
    fn a_peer_that_acknowledges_a_byte_now_and_then_has_not_stalled() {
        let mut stall = stall();
        for waiting in (1..=100).rev() {
            assert!((0..4).all(|_| !stall.at_tick(1000, waiting)), "{waiting}");
        }
    }

    #[test]
    fn newly_sent_data_is_not_progress() {
        let mut stall = stall();
        assert!((0..4).all(|n| !stall.at_tick(100 + n, 10 + n)));
        assert!(stall.at_tick(200, 110));
    }

    #[test]
    fn an_unacknowledged_fin_stalls_too() {
        let mut stall = stall();
        assert!((0..4).all(|_| !stall.at_tick(0, 1)));
        assert!(stall.at_tick(0, 1));
    }
}
