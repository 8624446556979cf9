//! Named WANs.
use std::time::Duration;

use super::{Link, Loss, Rate};

/// A WAN: its paths, and the seed of its random loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// The profile's name.
    pub name: &'static str,
    /// Its paths; the first is the main one.
    pub paths: Vec<Link>,
    /// The seed. The same seed loses the same frames, counted from the first that enters.
    pub seed: u64,
}

impl Profile {
    /// Returns all named profiles.
    pub fn all() -> [Self; 5] {
        [Self::transatlantic(), Self::clean(), Self::satellite(), Self::lte(), Self::bonded()]
    }

    /// Returns the profile with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|profile| profile.name == name)
    }

    /// 100 ms round trip, 100 Mbit/s, 1 % loss.
    pub fn transatlantic() -> Self {
        Self::one("transatlantic", even(100, 100, Loss::Random(0.01)))
    }

    /// 100 ms round trip, 100 Mbit/s, no loss but that of a full queue.
    pub fn clean() -> Self {
        Self::one("clean", even(100, 100, Loss::None))
    }

    /// 600 ms round trip, 20 Mbit/s, 0.5 % loss.
    pub fn satellite() -> Self {
        Self::one("satellite", even(600, 20, Loss::Random(0.005)))
    }

    /// 60 ms round trip, 40 Mbit/s, 1 % loss in bursts with a mean length of five frames.
    pub fn lte() -> Self {
        Self::one("lte", even(60, 40, Loss::bursts(0.01, 5.0)))
    }

    /// Two paths without loss: 20 ms and 100 Mbit/s, 50 ms and 50 Mbit/s.
    pub fn bonded() -> Self {
        Self { name: "bonded", paths: vec![even(20, 100, Loss::None), even(50, 50, Loss::None)], seed: 1 }
    }

    /// Returns a profile with one path and seed 1.
    pub fn one(name: &'static str, link: Link) -> Self {
        Self { name, paths: vec![link], seed: 1 }
    }
}

const fn even(round_trip_ms: u64, mbit: u64, loss: Loss) -> Link {
    Link::even(Duration::from_millis(round_trip_ms), Rate::mbit(mbit), loss)
}
