//! The servers with which Fast Open or Multipath TCP fails. PURE: a table of fixed size, whatever peers do; the
//! caller passes the time.
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Number of entries. Two servers with the same place displace each other; a forgotten server is tried again.
const PLACES: usize = 4096;
/// Failures in a row after which a server that has worked before is avoided. A single failure is most likely a lost
/// packet.
const STRIKES: u32 = 3;
/// Time for which a server is then avoided. It doubles with each further failure, up to [`Kind::longest_pause`].
const PAUSE: Duration = Duration::from_secs(60);

/// The feature that is tried with a server. Fast Open has two kinds of SYN: a middlebox that drops one may pass the
/// other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A SYN with Fast Open's option and no data.
    Empty,
    /// A SYN with data.
    Data,
    /// Multipath TCP.
    Mptcp,
}

impl Kind {
    /// Returns the longest time to avoid a server. A lost SYN delays its connection by a second. A failed attempt of
    /// Multipath TCP costs almost nothing, and a far box that works again should be used soon.
    const fn longest_pause(self) -> Duration {
        match self {
            Self::Empty | Self::Data => Duration::from_secs(3600),
            Self::Mptcp => Duration::from_secs(600),
        }
    }
}

/// The results that are remembered, by server and kind.
#[derive(Debug)]
pub struct Destinations<S = RandomState> {
    places: Vec<Option<Entry>>,
    hasher: S,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    server: IpAddr,
    kind: Kind,
    has_worked: bool,
    /// Failures since the last success.
    strikes: u32,
    avoided_until: Option<Instant>,
}

impl Default for Destinations {
    /// Returns an empty table. The hash is random, so peers cannot know which servers share a place.
    fn default() -> Self {
        Self::with(PLACES, RandomState::new())
    }
}

impl<S: BuildHasher> Destinations<S> {
    fn with(places: usize, hasher: S) -> Self {
        Self { places: vec![None; places], hasher }
    }

    /// Returns whether `kind` should not be tried with `server` now.
    pub fn avoids(&self, server: IpAddr, kind: Kind, now: Instant) -> bool {
        self.entry(server, kind).is_some_and(|entry| entry.is_avoided(now))
    }

    /// Records a success: the SYN was answered and its data accepted, or a connection used Multipath TCP to its end.
    pub fn worked(&mut self, server: IpAddr, kind: Kind) {
        self.put(Entry { has_worked: true, ..Entry::new(server, kind) });
    }

    /// Records a failure.
    pub fn failed(&mut self, server: IpAddr, kind: Kind, now: Instant) {
        let mut entry = self.entry(server, kind).copied().unwrap_or(Entry::new(server, kind));
        entry.strike(now);
        self.put(entry);
    }

    fn entry(&self, server: IpAddr, kind: Kind) -> Option<&Entry> {
        let place = self.place(server, kind);
        self.places[place].as_ref().filter(|entry| entry.server == server && entry.kind == kind)
    }

    fn put(&mut self, entry: Entry) {
        let place = self.place(entry.server, entry.kind);
        self.places[place] = Some(entry);
    }

    fn place(&self, server: IpAddr, kind: Kind) -> usize {
        (self.hasher.hash_one((server, kind)) % self.places.len() as u64) as usize
    }
}

impl Entry {
    const fn new(server: IpAddr, kind: Kind) -> Self {
        Self { server, kind, has_worked: false, strikes: 0, avoided_until: None }
    }

    fn is_avoided(&self, now: Instant) -> bool {
        self.avoided_until.is_some_and(|until| now < until)
    }

    fn strike(&mut self, now: Instant) {
        if self.is_avoided(now) {
            // This dial began before the pause did: simultaneous failures count as one.
            return;
        }
        self.strikes = self.strikes.saturating_add(1);
        let enough = if self.has_worked { STRIKES } else { 1 };
        if let Some(further) = self.strikes.checked_sub(enough) {
            let pause = PAUSE.saturating_mul(1_u32.checked_shl(further).unwrap_or(u32::MAX));
            self.avoided_until = Some(now + pause.min(self.kind.longest_pause()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn one_failure_is_enough_where_it_never_worked() {
        let (mut known, now) = (Destinations::default(), Instant::now());
        assert!(!known.avoids(SERVER, Kind::Data, now));
        known.failed(SERVER, Kind::Data, now);
        assert!(
            known.avoids(SERVER, Kind::Data, now + secs(59))
                && !known.avoids(SERVER, Kind::Data, now + secs(60))
        );
    }

    #[test]
    fn where_it_works_a_lost_packet_now_and_then_changes_nothing() {
        let (mut known, now) = (Destinations::default(), Instant::now());
        for _ in 0..10 {
            known.worked(SERVER, Kind::Data);
            known.failed(SERVER, Kind::Data, now);
            known.failed(SERVER, Kind::Data, now);
            assert!(!known.avoids(SERVER, Kind::Data, now));
        }
        known.failed(SERVER, Kind::Data, now);
        assert!(known.avoids(SERVER, Kind::Data, now));
    }

    #[test]
    fn each_failure_in_a_row_doubles_the_pause_up_to_an_hour() {
        let (mut known, mut now) = (Destinations::default(), Instant::now());
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            known.failed(SERVER, Kind::Data, now);
            assert!(known.avoids(SERVER, Kind::Data, now + secs(minutes * 60 - 1)));
            now += secs(minutes * 60);
            assert!(!known.avoids(SERVER, Kind::Data, now), "{minutes}");
        }
        (0..100).for_each(|n| known.failed(SERVER, Kind::Data, now + secs(n * 3600)));
    }

    #[test]
    fn multipath_tcp_is_tried_again_after_ten_minutes_at_most() {
        let (mut known, mut now) = (Destinations::default(), Instant::now());
        for minutes in [1, 2, 4, 8, 10, 10] {
            known.failed(SERVER, Kind::Mptcp, now);
            assert!(known.avoids(SERVER, Kind::Mptcp, now + secs(minutes * 60 - 1)));
            now += secs(minutes * 60);
            assert!(!known.avoids(SERVER, Kind::Mptcp, now), "{minutes}");
        }
        known.worked(SERVER, Kind::Mptcp);
        known.failed(SERVER, Kind::Mptcp, now);
        assert!(!known.avoids(SERVER, Kind::Mptcp, now), "where it has worked, one failure is not enough");
    }

    #[test]
    fn a_failed_syn_with_data_does_not_affect_empty_syns() {
        let (mut known, now) = (Destinations::default(), Instant::now());
        known.failed(SERVER, Kind::Data, now);
        assert!(known.avoids(SERVER, Kind::Data, now) && !known.avoids(SERVER, Kind::Empty, now));
        known.worked(SERVER, Kind::Empty);
        assert!(known.avoids(SERVER, Kind::Data, now));
    }

    #[test]
    fn a_server_displaced_from_its_place_is_tried_again() {
        let (mut known, now) = (Destinations::with(1, RandomState::new()), Instant::now());
        let other = IpAddr::from([192, 0, 2, 2]);
        known.failed(SERVER, Kind::Data, now);
        known.failed(other, Kind::Data, now);
        assert!(known.avoids(other, Kind::Data, now) && !known.avoids(SERVER, Kind::Data, now));
        assert_eq!(known.places.len(), 1);
    }

    /// The naive model: evaluates the whole history of one server from the beginning each time.
    fn judge(history: &[(bool, Instant)], now: Instant) -> bool {
        let (mut patience, mut failures, mut until) = (1, 0, None);
        for &(worked, at) in history {
            if worked {
                (patience, failures, until) = (3, 0, None);
            } else if until.is_none_or(|until| at >= until) {
                failures += 1;
                let minutes = match failures - patience {
                    ..0 => continue,
                    further @ 0..=5 => 1 << further,
                    _ => 60,
                };
                until = Some(at + secs(minutes * 60));
            }
        }
        until.is_some_and(|until| now < until)
    }

    proptest! {
        #[test]
        fn avoidance_agrees_with_the_naive_model(
            events in proptest::collection::vec((0_u8..5, any::<bool>(), any::<bool>(), 0_u64..400), 0..200),
        ) {
            let mut known = Destinations::with(10, Spread);
            let mut history: HashMap<(u8, Kind), Vec<(bool, Instant)>> = HashMap::new();
            let mut now = Instant::now();
            for (server, data, worked, pause) in events {
                now += secs(pause);
                let (addr, kind) = (IpAddr::from([0, 0, 0, server]), if data { Kind::Data } else { Kind::Empty });
                let past = history.entry((server, kind)).or_default();
                prop_assert_eq!(known.avoids(addr, kind, now), judge(past, now));
                past.push((worked, now));
                if worked { known.worked(addr, kind) } else { known.failed(addr, kind, now) }
            }
        }
    }

    /// A hash that gives the ten keys of the test ten different places.
    #[derive(Clone, Copy)]
    struct Spread;
    struct Sum(u64);

    impl BuildHasher for Spread {
        type Hasher = Sum;
        fn build_hasher(&self) -> Sum {
            Sum(0)
        }
    }

    impl std::hash::Hasher for Sum {
        fn write(&mut self, bytes: &[u8]) {
            self.0 = 2 * self.0 + bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
        }
        fn finish(&self) -> u64 {
            self.0
        }
    }
}
