//! Endpoints and limits of the kernel's path manager, as `ip mptcp` shows them. PURE.
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU8;

use crate::units::Port;

/// The address and port of an endpoint, which are unique in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// An address of this host.
    pub address: IpAddr,
    /// The port with which the address is announced.
    pub port: Option<Port>,
}

/// The role of an endpoint: MPTCP_PM_ADDR_FLAG_* in include/uapi/linux/mptcp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    const SIGNAL: u32 = 1;
    const BACKUP: u32 = 4;
    const FULLMESH: u32 = 8;

    /// Returns the flags of an endpoint. An announced endpoint is sent to peers that dial this host. From any other,
    /// the kernel opens a subflow to each address that the peer announces (`fullmesh`). The flag `subflow` would also
    /// dial the address of the server, behind the other box, which does not know the connection.
    pub const fn new(announced: bool, backup: bool) -> Self {
        let role = if announced { Self::SIGNAL } else { Self::FULLMESH };
        Self(if backup { role | Self::BACKUP } else { role })
    }

    /// Returns whether the address is announced to peers that dial this host.
    pub const fn announced(self) -> bool {
        self.0 & Self::SIGNAL != 0
    }
}

/// An endpoint that a path needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address and port.
    pub place: Place,
    /// The index of the device that has the address.
    pub device: u32,
    /// Its role.
    pub flags: Flags,
    /// Its id; `None`: the kernel chooses.
    pub id: Option<NonZeroU8>,
}

/// An endpoint that exists in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Existing {
    /// Its properties.
    pub endpoint: Endpoint,
    /// Its id, with which it is deleted.
    pub id: u8,
}

/// The limits of the paths of a connection besides its first (`ip mptcp limits`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// The number of subflows that this host opens or accepts.
    pub subflows: u32,
    /// The number of announced addresses that are used.
    pub add_addr_accepted: u32,
}

/// Writes, for example, `10.3.1.2` or `10.3.1.2 port 5001`.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.port.map_or(Ok(()), |port| write!(f, " port {port}"))
    }
}

impl Place {
    /// Parses the format that [`Display`](fmt::Display) writes.
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

/// Writes the arguments of `ip mptcp endpoint add`, without the device.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place, self.flags)?;
        self.id.map_or(Ok(()), |id| write!(f, " id {id}"))
    }
}
