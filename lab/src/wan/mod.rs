//! The bad link between hosts: delay, rate, queue and loss in each direction. Both ends of each cable are in one
//! namespace, in which threads of this process forward the frames.
//!
//! docs/lab.md explains it and reports how the emulation was validated.
mod channel;
mod loss;
mod path;
mod profile;

use std::time::Duration;

pub use channel::{Counts, Frame};
pub use loss::Loss;
pub use path::Path;
pub(crate) use path::Wan;
pub use profile::Profile;

/// The rate of a link in bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// Makes a rate of `mbit` million bits per second of whole Ethernet frames (14 bytes more than the IP packet). Must
    /// not be 0.
    pub const fn mbit(mbit: u64) -> Self {
        assert!(mbit > 0, "a link without a rate never takes a frame: cut the path instead");
        Self(mbit * 1_000_000)
    }

    /// Returns the rate in bits per second.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns how long the link takes to send `bytes` bytes.
    pub const fn time(self, bytes: usize) -> Duration {
        Duration::from_nanos(bytes as u64 * 8_000_000_000 / self.0)
    }

    /// Returns how many bytes the link sends in `time`.
    pub const fn bytes(self, time: Duration) -> usize {
        (self.0 as u128 * time.as_nanos() / 8_000_000_000) as usize
    }
}

/// What one direction does to frames, in this order: loses some, queues the rest, sends one after another at its rate,
/// and delivers each after the delay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Which frames are lost, before the queue.
    pub loss: Loss,
    /// The rate at which frames leave the queue; without a rate they leave immediately.
    pub rate: Option<Rate>,
    /// How many bytes may wait for the link, including the frame that is being sent. Frames that do not fit are
    /// dropped.
    pub queue: usize,
    /// How long a frame is in flight after the link has sent it.
    pub delay: Duration,
}

/// The conditions of a path in each direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// From the client's side to the server's.
    pub to_server: Conditions,
    /// From the server's side to the client's.
    pub to_client: Conditions,
}

impl Link {
    /// Makes equal conditions in both directions: half of the round trip each, and a queue of one bandwidth-delay
    /// product.
    pub const fn even(round_trip: Duration, rate: Rate, loss: Loss) -> Self {
        let delay = Duration::from_nanos(round_trip.as_nanos() as u64 / 2);
        let way = Conditions { loss, rate: Some(rate), queue: rate.bytes(round_trip), delay };
        Self { to_server: way, to_client: way }
    }
}
