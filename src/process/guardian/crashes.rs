//! Counts the deaths of workers, detects hung threads, and computes the pause between failed starts. PURE.
use std::collections::VecDeque;
use std::time::Duration;

/// The time over which deaths are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// The deaths of the last minute, and how many of them are allowed.
#[derive(Debug)]
pub struct Crashes {
    at_most: u32,
    times: VecDeque<Duration>,
}

impl Crashes {
    /// Starts without a death; more than `at_most` in a minute are too many.
    pub fn new(at_most: u32) -> Self {
        Self { at_most, times: VecDeque::new() }
    }

    /// Counts a death at `now`, on a monotonic clock. Returns whether the last minute had too many.
    #[must_use = "a guardian that never gives up keeps new connections from being routed"]
    pub fn too_many(&mut self, now: Duration) -> bool {
        self.times.push_back(now);
        while self.times.front().is_some_and(|first| now.saturating_sub(*first) >= MINUTE) {
            self.times.pop_front();
        }
        self.times.len() > self.at_most as usize
    }
}

/// Detects hung threads of a worker by the heartbeats that the guardian reads at every tick. If the whole machine
/// stands still for a while, ticks and heartbeats stop together.
#[derive(Debug, Default)]
pub struct Pulse {
    threads: Vec<(u64, u32)>,
}

impl Pulse {
    /// Takes the heartbeat counter of each thread, and its patience, once per tick. Returns whether a thread hangs.
    #[must_use = "a hung thread holds up connections"]
    pub fn is_lost(&mut self, heartbeats: impl IntoIterator<Item = (u64, Patience)>) -> bool {
        let before = std::mem::take(&mut self.threads);
        let missed = |n: usize, now| match before.get(n) {
            Some(&(then, missed)) if then == now => missed + 1,
            _ => 0,
        };
        let mut lost = false;
        for (n, (now, patience)) in heartbeats.into_iter().enumerate() {
            let missed = missed(n, now);
            lost |= missed >= patience as u32;
            self.threads.push((now, missed));
        }
        lost
    }
}

/// The number of ticks without a heartbeat after which a thread counts as hung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A relay thread or the control thread: neither blocks for long.
    Prompt = 10,
    /// The thread that changes the host: it waits for `nft` and for netlink, several times in a row.
    Host = 120,
}

/// The pause before the next start of a worker after one has failed to start. It doubles with each failure in a row.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// Returns the pause after one more failure.
    pub fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_deaths_in_a_minute_than_allowed_are_too_many() {
        let mut crashes = Crashes::new(3);
        let at = |secs| Duration::from_secs(secs);
        assert!([0, 10, 20].into_iter().all(|secs| !crashes.too_many(at(secs))));
        assert!(crashes.too_many(at(59)));
        let mut crashes = Crashes::new(3);
        assert!((0..100).all(|n| !crashes.too_many(at(20 * n))), "three in every minute");
        assert!(Crashes::new(0).too_many(at(0)));
    }

    #[test]
    fn a_thread_without_a_heartbeat_for_ten_ticks_hangs_although_the_other_is_alive() {
        use Patience::Prompt;
        let mut pulse = Pulse::default();
        assert!((0..100).all(|n| !pulse.is_lost([(n, Prompt), (n, Prompt)])));
        let lost = (100..).position(|n| pulse.is_lost([(n, Prompt), (99, Prompt)])).unwrap();
        assert_eq!(lost, 9);
        assert!(!pulse.is_lost([(0, Prompt), (0, Prompt)]), "another worker may count from any number");
    }

    #[test]
    fn the_host_thread_may_miss_more_heartbeats() {
        let mut pulse = Pulse::default();
        let lost = (0..).position(|n| pulse.is_lost([(n, Patience::Prompt), (7, Patience::Host)])).unwrap();
        assert_eq!(lost, 120);
    }

    #[test]
    fn the_pause_doubles_with_each_failed_start_up_to_five_seconds() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }
}
