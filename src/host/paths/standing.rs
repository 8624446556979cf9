//! What a path comes to, in words. PURE.
use std::fmt;
use std::net::IpAddr;

use super::endpoint::Place;

/// What one path comes to; a path with several addresses comes to several things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// As the configuration knows it.
    pub path: String,
    /// What.
    pub state: State,
}

/// What a path, or an address of it, comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its device does not exist.
    NoDevice,
    /// Its device has no address that can be used.
    NoAddress,
    /// No device has its address.
    Nowhere,
    /// IPv6 addresses that are announced in vain.
    DoesNotFit(Vec<IpAddr>),
    /// Another path has this address too.
    Twice(Place),
    /// Somebody else has made that endpoint.
    Operators(Place),
    /// Its address has gone, and may come back.
    Lingers(Place),
    /// Whoever dials is told of it.
    Announced(Place),
    /// Connections are joined from it.
    Joins(Place),
}

impl Standing {
    /// Whether it is said of an endpoint at `place` that it works.
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
            Self::NoDevice => write!(f, "there is no such device yet; as soon as there is, it is used"),
            Self::NoAddress => write!(f, "it has no address yet; as soon as it has, that is used"),
            Self::Nowhere => write!(f, "no device has it yet; as soon as one has, it is used"),
            Self::DoesNotFit(all) => {
                let all: Vec<String> = all.iter().map(IpAddr::to_string).collect();
                write!(
                    f,
                    "{} cannot be announced while net.ipv4.tcp_timestamps is on, as both do not fit into one packet: give the path \
                     an IPv4 address, which serves IPv6 connections too, or switch timestamps off on one of the two boxes",
                    all.join(", ")
                )
            }
            Self::Twice(place) => write!(f, "{place} is there already, by another path"),
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
