//! How often workers die, and whether theirs go on. PURE.
use std::collections::VecDeque;
use std::time::Duration;

/// What is too often is counted over this time.
const MINUTE: Duration = Duration::from_secs(60);
/// A thread of the worker that has not said for so many ticks that it goes on, hangs.
const HANGS_AFTER: u32 = 10;

/// The deaths of the last minute.
#[derive(Debug)]
pub struct Crashes {
    at_most: u32,
    times: VecDeque<Duration>,
}

impl Crashes {
    /// None yet; more than `at_most` in a minute are too many.
    pub fn new(at_most: u32) -> Self {
        Self { at_most, times: VecDeque::new() }
    }

    /// One more, at `now` on a clock that only goes forward. Whether that is too many.
    #[must_use = "who goes on for ever keeps new connections from being routed"]
    pub fn too_many(&mut self, now: Duration) -> bool {
        self.times.push_back(now);
        while self.times.front().is_some_and(|first| now.saturating_sub(*first) >= MINUTE) {
            self.times.pop_front();
        }
        self.times.len() > self.at_most as usize
    }
}

/// Whether the threads of a worker go on, from what they count at every tick of the guardian's. A machine that stands still for a while
/// stands still for both.
#[derive(Debug, Default)]
pub struct Pulse {
    threads: Vec<(u64, u32)>,
}

impl Pulse {
    /// One tick has passed; `beats` is what each thread has counted. Whether one of them hangs.
    #[must_use = "who hangs holds up connections"]
    pub fn is_lost(&mut self, beats: impl IntoIterator<Item = u64>) -> bool {
        let before = std::mem::take(&mut self.threads);
        let missed = |n: usize, now| match before.get(n) {
            Some(&(then, missed)) if then == now => missed + 1,
            _ => 0,
        };
        self.threads = beats.into_iter().enumerate().map(|(n, now)| (now, missed(n, now))).collect();
        self.threads.iter().any(|&(_, missed)| missed >= HANGS_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_in_a_minute_are_borne_and_no_more() {
        let mut crashes = Crashes::new(3);
        let at = |secs| Duration::from_secs(secs);
        assert!([0, 10, 20].into_iter().all(|secs| !crashes.too_many(at(secs))));
        assert!(crashes.too_many(at(59)));
        let mut crashes = Crashes::new(3);
        assert!((0..100).all(|n| !crashes.too_many(at(20 * n))), "three in every minute");
        assert!(Crashes::new(0).too_many(at(0)));
    }

    #[test]
    fn a_thread_that_stands_still_for_ten_ticks_hangs_although_the_other_goes_on() {
        let mut pulse = Pulse::default();
        assert!((0..100).all(|n| !pulse.is_lost([n, n])));
        let lost = (100..).position(|n| pulse.is_lost([n, 99])).unwrap();
        assert_eq!(lost, 9);
        assert!(!pulse.is_lost([0, 0]), "another worker counts from where it likes");
    }
}
