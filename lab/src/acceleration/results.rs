//! What was measured: data, from which the table, the JSON and the page are made.
use std::fmt;
use std::time::Duration;

use crate::wan::Profile;

/// Everything of one run.
#[derive(Debug, Clone)]
pub struct Results {
    /// When and where it was measured, how, with what: a line each, for people.
    pub conditions: Vec<String>,
    /// A profile each, in the order in which they were measured.
    pub comparisons: Vec<Comparison>,
}

/// The ways over one WAN beside each other.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The WAN.
    pub profile: Profile,
    /// In the order of [`Object::ALL`] and, within an object, of [`Way::ALL`].
    pub measured: Vec<Measured>,
    /// One large transfer in each direction on each way, watched.
    pub traces: Vec<Trace>,
}

/// How long an object took on a way, round by round.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// By which way.
    pub way: Way,
    /// What.
    pub object: Object,
    /// A round each.
    pub outcomes: Vec<Outcome>,
}

/// What is on the two boxes that stand on either side of the WAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Nothing: they route.
    EndToEnd,
    /// tcp-intercept on the one near the client.
    OneBox,
    /// tcp-intercept on both.
    Pair,
}

impl Way {
    /// All, in the order in which they are shown.
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

/// What a client wants, from connect() on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// It asks, and waits for the first byte of a reply of six.
    FirstByte,
    /// It says nothing, and waits for the first byte of what the server says, as with SSH.
    Banner,
    /// The same with a far box that gives no cookie for Fast Open.
    BannerWithoutCookie,
    /// It asks, and waits for so many bytes.
    Down(u64),
    /// It sends so many bytes, and waits until the server says that it has them.
    Up(u64),
}

impl Object {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::FirstByte,
        Self::Banner,
        Self::BannerWithoutCookie,
        Self::Down(60_000),
        Self::Down(100_000),
        Self::Down(20_000_000),
        Self::Up(20_000_000),
    ];

    /// Whether it is long enough to be watched meanwhile.
    pub const fn is_large(self) -> bool {
        matches!(self, Self::Down(1_000_000..) | Self::Up(1_000_000..))
    }

    /// Bytes of payload, as far as they count.
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

/// How one transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It took so long.
    Done(Duration),
    /// It was cut when it had taken so long, with so many bytes passed.
    Cut {
        /// So long.
        after: Duration,
        /// So many.
        bytes: u64,
    },
}

impl Outcome {
    /// How long it took; of what was cut, how long the whole would take at the rate that it had, and not less than it had
    /// taken: a first byte has no rate.
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
    /// The middle of the rounds, by [`Outcome::whole`].
    pub fn median(&self) -> Option<Outcome> {
        let mut sorted = self.outcomes.clone();
        sorted.sort_by_key(|outcome| outcome.whole(self.object));
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

impl Comparison {
    /// What was measured of `object` on `way`.
    pub fn of(&self, way: Way, object: Object) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.way == way && measured.object == object)
    }
}

/// One large transfer, watched from outside.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// By which way.
    pub way: Way,
    /// What.
    pub object: Object,
    /// In the order of time.
    pub samples: Vec<Sample>,
    /// For each path of the WAN, and for each of the samples: bytes of the frames that it had delivered in the object's direction.
    pub paths: Vec<Vec<u64>>,
}

/// A moment of a transfer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Since connect().
    pub at: Duration,
    /// Payload bytes that had come to the receiver.
    pub bytes: u64,
    /// The socket that sends over the WAN; none while there is none.
    pub sender: Option<Sender>,
}

/// What `ss -ti` says of a sending socket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sender {
    /// Its congestion window, in segments.
    pub window: u32,
    /// Its smoothed round-trip time.
    pub round_trip: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_byte_that_never_came_is_not_the_fastest() {
        let cut = Outcome::Cut { after: Duration::from_secs(45), bytes: 0 };
        let done = Outcome::Done(Duration::from_millis(200));
        let outcomes = vec![cut, done, done];
        let measured = Measured { way: Way::EndToEnd, object: Object::FirstByte, outcomes };
        assert_eq!(cut.whole(Object::FirstByte), Duration::from_secs(45));
        assert_eq!(measured.median(), Some(done));
    }
}
