//! The parts of a route that the mirror needs. PURE.
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::rules::change::Family;

/// The number of the metric RTAX_INITCWND (include/uapi/linux/rtnetlink.h).
pub const INITCWND: u16 = 11;

/// The properties by which the kernel distinguishes two routes of a table. The order of keys is the order in which the
/// kernel tries the routes that a packet matches: the longest prefix first, then the lowest metric.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The address family.
    pub family: Family,
    /// The destination prefix.
    pub to: Prefix,
    /// The source prefix; all addresses for IPv4.
    pub from: Prefix,
    /// The TOS field of IPv4; 0 matches any.
    pub tos: Reverse<u8>,
    /// The metric, which the kernel calls priority; the lowest wins.
    pub metric: u32,
}

/// A network prefix; longer prefixes sort first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The length in bits.
    pub length: Reverse<u8>,
    /// The network's address.
    pub address: IpAddr,
}

/// The way that a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// `throw`: the lookup returns to the policy rules and continues with the next table.
    Throw,
    /// A way out over one or more devices.
    Out(Path),
    /// A way that is not copied: `blackhole` and similar types, a tunnel's encapsulation, unknown attributes.
    Other,
}

/// The parts of a route that a copy needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// The scope, as its rtnetlink number.
    pub scope: u8,
    /// The next hops; the kernel chooses between several by the flow.
    pub hops: Vec<Hop>,
    /// `src`: the source address of an unbound socket.
    pub source: Option<IpAddr>,
    /// The metrics (`mtu`, `advmss`, `rto_min`, `congctl` and others) by their RTAX_ number, in the kernel's encoding.
    pub metrics: BTreeMap<u16, Vec<u8>>,
}

/// A next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The index of the device.
    pub device: u32,
    /// The gateway; `None`: the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The weight minus one, as rtnetlink encodes it.
    pub weight: u8,
    /// `onlink`: the gateway is on the device's link, also if another route says otherwise.
    pub onlink: bool,
    /// Whether the kernel currently does not use the hop.
    pub dead: bool,
}

/// A route of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The packets that it is for.
    pub key: Key,
    /// The way that it leads.
    pub way: Way,
}

impl Prefix {
    /// Returns the prefix of all addresses.
    pub const fn all(family: Family) -> Self {
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { length: Reverse(0), address }
    }

    /// Tells whether this is an IPv6 link-local network, to which no connection is routed.
    pub fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local())
    }
}

impl Path {
    /// Tells whether every hop is over one of `devices`, and none is dead.
    pub fn is_over(&self, devices: &[u32]) -> bool {
        !self.hops.is_empty() && self.hops.iter().all(|hop| !hop.dead && devices.contains(&hop.device))
    }

    /// Returns a copy with an initial window of `segments`, which replaces the path's own.
    ///
    /// RTAX_INITRWND is left unchanged: it can only make the receive window smaller than `net.ipv4.tcp_rmem` does
    /// (`tcp_select_initial_window()` in net/ipv4/tcp_output.c).
    pub fn copy(mut self, segments: u32) -> Self {
        self.metrics.insert(INITCWND, segments.to_ne_bytes().to_vec());
        // The kernel looks up the gateway in the route's own table, and the mirror can give another result than the
        // main table; `onlink` avoids this lookup.
        for hop in &mut self.hops {
            hop.onlink |= matches!(hop.gateway, Some(IpAddr::V4(_)));
        }
        self
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.length.0 {
            0 => f.write_str("default"),
            length => write!(f, "{}/{length}", self.address),
        }
    }
}

/// Writes the key as `ip route` begins a line.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        if self.from.length.0 != 0 {
            write!(f, " from {}", self.from)?;
        }
        if self.tos.0 != 0 {
            write!(f, " tos {:#x}", self.tos.0)?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}
