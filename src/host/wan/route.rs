//! Routes, as far as the mirror has to know them. PURE.
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::host::rules::change::Family;

/// RTAX_INITCWND (include/uapi/linux/rtnetlink.h)
pub const INITCWND: u16 = 11;

/// What the kernel tells two routes of a table apart by. They are in the order in which the kernel tries those that a
/// packet matches: the longest prefix first, then the lowest metric.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The destinations.
    pub to: Prefix,
    /// The sources: IPv6 only.
    pub from: Prefix,
    /// The DSCP bits: IPv4 only; 0 is any.
    pub tos: Reverse<u8>,
    /// `metric`, the kernel's priority.
    pub metric: u32,
}

/// A network; the longer one comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// How many bits count.
    pub length: Reverse<u8>,
    /// The network's address.
    pub address: IpAddr,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// `throw`: back to the policy rules, which go on with the next table.
    Throw,
    /// Out.
    Out(Path),
    /// What is not copied: `blackhole` and its like, a tunnel's encapsulation, anything that we do not know.
    Other,
}

/// All of a route that a copy needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// `scope`, as a number.
    pub scope: u8,
    /// The next hosts: one, or those between which the kernel chooses by the flow.
    pub hops: Vec<Hop>,
    /// `src`: the address that an unbound socket gets.
    pub source: Option<IpAddr>,
    /// `mtu`, `advmss`, `rto_min`, `congctl` and all the others, by their RTAX_ number, as the kernel writes them.
    pub metrics: BTreeMap<u16, Vec<u8>>,
}

/// A next host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// The index of the device.
    pub device: u32,
    /// `None`: the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// `weight`, less one.
    pub weight: u8,
    /// `onlink`: the gateway is reached over the device, whatever other routes say.
    pub onlink: bool,
    /// The kernel does not use it now.
    pub dead: bool,
}

/// A route of some table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it is for.
    pub key: Key,
    /// Where it leads.
    pub way: Way,
}

impl Prefix {
    /// The network of all addresses.
    pub const fn all(family: Family) -> Self {
        let address = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { length: Reverse(0), address }
    }

    /// No connection is routed there.
    pub fn is_link_local(&self) -> bool {
        matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local())
    }
}

impl Path {
    /// Whether it leads over `devices` and over nothing else.
    pub fn is_over(&self, devices: &[u32]) -> bool {
        !self.hops.is_empty() && self.hops.iter().all(|hop| !hop.dead && devices.contains(&hop.device))
    }

    /// The copy with an initial window of so many segments, in the place of the one that it may have. (Not RTAX_INITRWND: it
    /// only ever makes the receive window smaller than `net.ipv4.tcp_rmem` does, tcp_select_initial_window() in
    /// net/ipv4/tcp_output.c.)
    pub fn copy(mut self, segments: u32) -> Self {
        self.metrics.insert(INITCWND, segments.to_ne_bytes().to_vec());
        // In another table than the main one the kernel looks for the gateway in that table, and what it finds can differ.
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

/// As `ip route` begins a line.
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
