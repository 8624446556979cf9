//! The measured data, from which the table, the JSON and the page are made.
use std::fmt;
use std::time::Duration;

use crate::wan::Profile;

/// The results of one run.
#[derive(Debug, Clone)]
pub struct Results {
    /// The conditions of the run for people, one line each: date, machine, method, versions.
    pub conditions: Vec<String>,
    /// One comparison per profile, in the order in which they were measured.
    pub comparisons: Vec<Comparison>,
}

/// The comparison of the ways over one WAN.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The WAN.
    pub profile: Profile,
    /// The measurements, in the order of [`Object::ALL`] and, within an object, of [`Way::ALL`].
    pub measured: Vec<Measured>,
    /// One traced large transfer in each direction on each way.
    pub traces: Vec<Trace>,
}

/// The durations of an object on a way, round by round.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The way that was used.
    pub way: Way,
    /// The object that was transferred.
    pub object: Object,
    /// The outcome of each round.
    pub outcomes: Vec<Outcome>,
}

/// The software on the two boxes at either side of the WAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// None: both boxes route.
    EndToEnd,
    /// tcp-intercept on the box near the client.
    OneBox,
    /// tcp-intercept on both boxes.
    Pair,
}

impl Way {
    /// All ways, in display order.
    pub const ALL: [Self; 3] = [Self::EndToEnd, Self::OneBox, Self::Pair];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EndToEnd => "end to end",
            Self::OneBox => "one box",
            Self::Pair => "a pair",
        })
    }
}

/// A task of a client, timed from connect() on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// The client asks, and waits for the first byte of a six-byte reply.
    FirstByte,
    /// The client sends nothing, and waits for the server's first byte, as with SSH.
    Banner,
    /// Like [`Object::Banner`], with a far box that issues no Fast Open cookie.
    BannerWithoutCookie,
    /// The client asks, and waits for this many bytes.
    Down(u64),
    /// The client sends this many bytes, and waits until the server confirms them.
    Up(u64),
}

impl Object {
    /// All objects, in display order.
    pub const ALL: [Self; 7] = [
        Self::FirstByte,
        Self::Banner,
        Self::BannerWithoutCookie,
        Self::Down(60_000),
        Self::Down(100_000),
        Self::Down(20_000_000),
        Self::Up(20_000_000),
    ];

    /// Returns whether the object is large enough to be traced.
    pub const fn is_large(self) -> bool {
        matches!(self, Self::Down(1_000_000..) | Self::Up(1_000_000..))
    }

    /// Returns the payload in bytes, or 0 if only the first byte counts.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::FirstByte | Self::Banner | Self::BannerWithoutCookie => 0,
            Self::Down(bytes) | Self::Up(bytes) => bytes,
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: u64| match bytes {
            1_000_000.. => format!("{} MB", bytes / 1_000_000),
            _ => format!("{} KB", bytes / 1000),
        };
        match self {
            Self::FirstByte => f.write_str("first byte of a reply"),
            Self::Banner => f.write_str("first byte when the server speaks first"),
            Self::BannerWithoutCookie => f.write_str("the same, far side without Fast Open"),
            Self::Down(bytes) => write!(f, "{} down", size(*bytes)),
            Self::Up(bytes) => write!(f, "{} up", size(*bytes)),
        }
    }
}

/// The outcome of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Completed after this time.
    Done(Duration),
    /// Cut at the time limit.
    Cut {
        /// The time limit.
        after: Duration,
        /// The bytes that had arrived.
        bytes: u64,
    },
}

impl Outcome {
    /// Returns how long the whole object took. For a cut transfer, this is the time at the rate that it had, but at
    /// least the time that it lasted: a first byte has no rate.
    pub fn whole(self, object: Object) -> Duration {
        match self {
            Self::Done(time) => time,
            Self::Cut { after, bytes } => {
                after.mul_f64((object.bytes() as f64 / bytes.max(1) as f64).max(1.0))
            }
        }
    }
}

impl Measured {
    /// Returns the median round, ordered by [`Outcome::whole`].
    pub fn median(&self) -> Option<Outcome> {
        let mut sorted = self.outcomes.clone();
        sorted.sort_by_key(|outcome| outcome.whole(self.object));
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

impl Comparison {
    /// Returns the measurement of `object` on `way`.
    pub fn of(&self, way: Way, object: Object) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.way == way && measured.object == object)
    }
}

/// The trace of one large transfer, observed from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The way that was used.
    pub way: Way,
    /// The object that was transferred.
    pub object: Object,
    /// The samples, ordered by time.
    pub samples: Vec<Sample>,
    /// For each path and each sample: the bytes of frames that the path had delivered in the object's direction.
    pub paths: Vec<Vec<u64>>,
}

/// One sample of a transfer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// The time since connect().
    pub at: Duration,
    /// Payload bytes that the receiver had received.
    pub bytes: u64,
    /// The socket that sends over the WAN; `None` while there is none.
    pub sender: Option<Sender>,
}

/// The properties of a sending socket from `ss -ti`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sender {
    /// The congestion window, in segments.
    pub window: u32,
    /// The smoothed round-trip time.
    pub round_trip: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_first_byte_is_not_the_fastest() {
        let cut = Outcome::Cut { after: Duration::from_secs(45), bytes: 0 };
        let done = Outcome::Done(Duration::from_millis(200));
        let outcomes = vec![cut, done, done];
        let measured = Measured { way: Way::EndToEnd, object: Object::FirstByte, outcomes };
        assert_eq!(cut.whole(Object::FirstByte), Duration::from_secs(45));
        assert_eq!(measured.median(), Some(done));
    }
}
