//! The idle and half-closed timeouts of a session. PURE: they compare byte counts at every tick, so that no read or
//! write needs a clock.
use std::time::Duration;

use crate::config::Timeouts;
use crate::state::record::Timeout;

/// Ticks in the shorter timeout. A timeout therefore expires late by at most a quarter of the shorter one.
const TICKS: u32 = 4;

/// The timeout state of one session.
#[derive(Debug)]
pub struct Silence {
    tick: Duration,
    timeouts: Timeouts,
    seen: u64,
    half_closed: bool,
    quiet: u32,
}

impl Silence {
    /// Returns `None` if no timeout is set.
    pub fn new(timeouts: &Timeouts) -> Option<Self> {
        let shortest = [timeouts.half_closed, timeouts.idle].into_iter().flatten().min()?;
        let tick = (shortest / TICKS).max(Duration::from_millis(1));
        Some(Self { tick, timeouts: timeouts.clone(), seen: 0, half_closed: false, quiet: 0 })
    }

    /// Returns the time to wait before the next [`Silence::at_tick`].
    pub fn tick(&self) -> Duration {
        self.tick
    }

    /// Records a tick and returns the timeout that has expired, if any. `moved` is the number of bytes moved so far;
    /// `half_closed` says that one direction has ended.
    pub fn at_tick(&mut self, moved: u64, half_closed: bool) -> Option<Timeout> {
        if moved != self.seen || half_closed != self.half_closed {
            (self.seen, self.half_closed, self.quiet) = (moved, half_closed, 0);
            return None;
        }
        self.quiet += 1;
        let silent = self.tick * self.quiet;
        let over = |limit: Option<Duration>| limit.is_some_and(|limit| silent >= limit);
        if half_closed && over(self.timeouts.half_closed) {
            Some(Timeout::HalfClosed)
        } else {
            over(self.timeouts.idle).then_some(Timeout::Idle)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(half_closed: u64, idle: u64) -> Option<Silence> {
        let limit = |secs| (secs > 0).then(|| Duration::from_secs(secs));
        Silence::new(&Timeouts { half_closed: limit(half_closed), idle: limit(idle) })
    }

    #[test]
    fn without_timeouts_there_is_nothing_to_watch() {
        assert!(silence(0, 0).is_none());
    }

    #[test]
    fn a_byte_or_a_fin_starts_the_count_anew() {
        let mut silence = silence(0, 4).unwrap();
        assert_eq!(silence.tick(), Duration::from_secs(1));
        for moved in [0, 0, 0, 1, 1, 1, 1] {
            assert_eq!(silence.at_tick(moved, false), None, "{moved}");
        }
        for _ in 0..4 {
            assert_eq!(silence.at_tick(1, true), None);
        }
        assert_eq!(silence.at_tick(1, true), Some(Timeout::Idle));
    }

    #[test]
    fn the_half_closed_timeout_counts_only_half_closed_sessions() {
        let mut silence = silence(4, 0).unwrap();
        for _ in 0..100 {
            assert_eq!(silence.at_tick(9, false), None);
        }
        let struck = (0..6).find_map(|_| silence.at_tick(9, true));
        assert_eq!(struck, Some(Timeout::HalfClosed));
    }

    #[test]
    fn the_longer_timeout_is_not_cut_short_by_the_shorter_ones_ticks() {
        let mut silence = silence(4, 40).unwrap();
        let ticks = (1..).find(|_| silence.at_tick(0, false).is_some()).unwrap();
        assert_eq!(ticks, 40);
    }
}
