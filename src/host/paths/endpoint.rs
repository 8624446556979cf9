//! An endpoint of the kernel's path manager, as `ip mptcp endpoint` has it, and what it is asked for. PURE.
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU8;

use crate::units::Port;

/// Where an endpoint is: the kernel has no two with the same address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// An address of this host.
    pub address: IpAddr,
    /// The port that it is announced with.
    pub port: Option<Port>,
}

/// What an endpoint does: MPTCP_PM_ADDR_FLAG_* in include/uapi/linux/mptcp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    const SIGNAL: u32 = 1;
    const BACKUP: u32 = 4;
    const FULLMESH: u32 = 8;

    /// It is announced to those who dial this host, or connections are joined from it to each address that is announced to us. Not
    /// `subflow`, which would dial the address of the server too: behind the other box, where nobody knows of it.
    pub const fn new(announced: bool, backup: bool) -> Self {
        let role = if announced { Self::SIGNAL } else { Self::FULLMESH };
        Self(if backup { role | Self::BACKUP } else { role })
    }

    /// Its address is sent to whoever dials this host.
    pub const fn announced(self) -> bool {
        self.0 & Self::SIGNAL != 0
    }
}

/// One that should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address and port.
    pub place: Place,
    /// The index of the device that has the address.
    pub device: u32,
    /// What it does.
    pub flags: Flags,
    /// Its number; `None`: the kernel chooses.
    pub id: Option<NonZeroU8>,
}

/// One that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Existing {
    /// What it is asked to be.
    pub endpoint: Endpoint,
    /// By this it is deleted.
    pub id: u8,
}

/// How many paths a connection may have beside its first (`ip mptcp limits`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Those that are made, or accepted.
    pub subflows: u32,
    /// Announced addresses that are used.
    pub add_addr_accepted: u32,
}

/// `10.3.1.2`, `10.3.1.2 port 5001`
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.port.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

impl Place {
    /// What [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, port) = match text.split_once(" port ") {
            Some((address, port)) => (address, Some(Port::new(port.parse().ok()?)?)),
            None => (text, None),
        };
        Some(Self { address: address.parse().ok()?, port })
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.announced() { "signal" } else { "fullmesh" };
        let backup = if self.0 & Self::BACKUP != 0 { " backup" } else { "" };
        write!(f, "{role}{backup}")
    }
}

/// What follows `ip mptcp endpoint add`, without the device.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place, self.flags)?;
        self.id.map_or(Ok(()), |id| write!(f, " id {id}"))
    }
}
