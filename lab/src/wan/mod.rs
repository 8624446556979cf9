//! The bad link between hosts: delay, rate, queue and loss in each direction, of cables whose two ends meet in a
//! namespace where threads of this process carry the frames over.
//!
//! docs/lab.md explains it, and says what it has shown of itself.
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

/// How fast a link takes frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// So many million bits a second, of whole Ethernet frames (14 bytes more than the IP packet). Not 0.
    pub const fn mbit(mbit: u64) -> Self {
        assert!(mbit > 0, "a link without a rate never takes a frame: cut the path instead");
        Self(mbit * 1_000_000)
    }

    /// In bits a second.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// How long the link is busy with so many bytes.
    pub const fn time(self, bytes: usize) -> Duration {
        Duration::from_nanos(bytes as u64 * 8_000_000_000 / self.0)
    }

    /// How many bytes it takes in this time.
    pub const fn bytes(self, time: Duration) -> usize {
        (self.0 as u128 * time.as_nanos() / 8_000_000_000) as usize
    }
}

/// What one direction does to frames, in this order: it loses some, queues the others, sends one after the other at
/// its rate, and delivers each after the delay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conditions {
    /// Which frames are lost, before the queue.
    pub loss: Loss,
    /// How fast frames leave the queue; without one they leave at once.
    pub rate: Option<Rate>,
    /// How many bytes may wait for the link, the frame that is being sent among them; what does not fit is dropped.
    pub queue: usize,
    /// How long a frame travels once the link has sent it.
    pub delay: Duration,
}

/// A path: what it does in each direction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// From the client's side to the server's.
    pub to_server: Conditions,
    /// From the server's side to the client's.
    pub to_client: Conditions,
}

impl Link {
    /// The same in both directions, half of the round trip each, with a queue that holds one bandwidth-delay product.
    pub const fn even(round_trip: Duration, rate: Rate, loss: Loss) -> Self {
        let delay = Duration::from_nanos(round_trip.as_nanos() as u64 / 2);
        let way = Conditions { loss, rate: Some(rate), queue: rate.bytes(round_trip), delay };
        Self { to_server: way, to_client: way }
    }
}
