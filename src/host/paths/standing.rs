//! The state of a path, and its text in the log. PURE.
use std::fmt;
use std::net::IpAddr;

use super::endpoint::Place;

/// A path with one of its states; a path with several addresses has several states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The name of the path: its device or its address.
    pub path: String,
    /// The state.
    pub state: State,
}

/// The state of a path, or of one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its device does not exist.
    NoDevice,
    /// Its device has no usable address.
    NoAddress,
    /// No device has its address.
    Nowhere,
    /// IPv6 addresses whose announcement does not fit into a packet.
    DoesNotFit(Vec<IpAddr>),
    /// Another path has the same address and port.
    Twice(Place),
    /// The endpoint exists already and is not the daemon's: it is the operator's.
    Operators(Place),
    /// The address has vanished and may return.
    Lingers(Place),
    /// The address is announced to peers that dial this host.
    Announced(Place),
    /// The kernel opens subflows from the address.
    Joins(Place),
}

impl Standing {
    /// Returns whether this state reports a working endpoint at `place`.
    pub fn serves(&self, place: Place) -> bool {
        matches!(&self.state, State::Announced(at) | State::Joins(at) if *at == place)
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.state)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDevice => write!(f, "there is no such device yet; it is used as soon as it exists"),
            Self::NoAddress => write!(f, "it has no address yet; its address is used as soon as it has one"),
            Self::Nowhere => write!(f, "no device has it yet; it is used as soon as a device has it"),
            Self::DoesNotFit(all) => {
                let all: Vec<String> = all.iter().map(IpAddr::to_string).collect();
                write!(
                    f,
                    "{} cannot be announced while net.ipv4.tcp_timestamps is on, as both do not fit into one packet: give the path \
                     an IPv4 address, which serves IPv6 connections too, or switch timestamps off on one of the two boxes",
                    all.join(", ")
                )
            }
            Self::Twice(place) => write!(f, "{place} is already used by another path"),
            Self::Operators(place) => {
                write!(f, "{place} is an endpoint of the operator's: it is used as it is")
            }
            Self::Lingers(place) => {
                write!(
                    f,
                    "the address {place} has gone; connections that use it wait for it for five minutes"
                )
            }
            Self::Announced(place) => write!(f, "{place} is announced"),
            Self::Joins(place) => write!(f, "{place} joins connections that this host dials"),
        }
    }
}
