//! Which endpoints the paths of the configuration come to, on the host as it is, and what has to change for them. PURE.
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::config::{Interface, Mptcp, MptcpPath, PathAt};

use super::endpoint::{Endpoint, Existing, Flags, Limits, Place};
use super::record::{Limit, Raised, Record};

/// The greatest limit that the kernel takes (MPTCP_PM_ADDR_MAX in net/mptcp/protocol.h): how many paths the other box has is not
/// known here.
pub const MOST: u32 = 8;

/// What there is.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The index of each device that a path names; `None`: there is none.
    pub devices: BTreeMap<Interface, Option<u32>>,
    /// The addresses of this host.
    pub addresses: Vec<Address>,
    /// The endpoints that the kernel has.
    pub endpoints: Vec<Existing>,
    /// Its limits.
    pub limits: Limits,
    /// What of that is ours.
    pub record: Record,
    /// `net.ipv4.tcp_timestamps`: the two do not fit into one packet with an IPv6 address and its port.
    pub timestamps: bool,
}

/// An address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The index of its device.
    pub device: u32,
    /// It can be used: not being checked for duplicates, nor a duplicate.
    pub ready: bool,
    /// It is meant for other hosts and to last: neither link-local, temporary, deprecated nor a second one of its network.
    pub lasting: bool,
}

/// What `check` judges.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// What there is.
    pub seen: Seen,
    /// Each endpoint that the paths come to, with the name of its path, and where it leads.
    pub ways: Vec<(String, Endpoint, Way)>,
    /// The kernel's counters about MPTCP since its start.
    pub counters: Vec<(String, u64)>,
}

/// Where what is sent from an endpoint leaves this host, for other networks than its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the endpoint's device.
    Out,
    /// By another device.
    ByAnother,
    /// Nowhere.
    None,
}

impl Survey {
    /// A counter; 0 where the kernel has none.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value)
    }
}

/// What has to change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Ours that go: first, as an address may come back with another role.
    pub delete: Vec<Existing>,
    /// Those that come, each with the path that it is for.
    pub add: Vec<(Endpoint, String)>,
    /// What is ours afterwards.
    pub record: Record,
    /// What each path comes to, a sentence each.
    pub standing: Vec<String>,
}

/// What `mptcp` comes to on the host that was `seen`.
pub fn plan(mptcp: &Mptcp, seen: &Seen) -> Plan {
    let mut plan = Plan { record: seen.record.clone(), ..Plan::default() };
    let mut wanted: Vec<(Endpoint, String)> = Vec::new();
    for path in &mptcp.paths {
        let found = endpoints(path, seen, &mut plan.standing);
        for endpoint in found {
            if wanted.iter().any(|(other, _)| other.place == endpoint.place) {
                plan.standing.push(format!("{path}: {} is there already, by another path", endpoint.place));
            } else {
                wanted.push((endpoint, path.to_string()));
            }
        }
    }
    plan.record.places.clear();
    let ours = |place: &Place| seen.record.places.contains(place);
    let as_wanted = |have: &Existing| {
        let same = |(want, _): &(Endpoint, String)| want.is_met_by(have);
        wanted.iter().any(same)
    };
    let of_ours = seen.endpoints.iter().filter(|have| ours(&have.endpoint.place));
    plan.delete.extend(of_ours.filter(|have| !as_wanted(have)));
    for (endpoint, path) in wanted {
        let place = endpoint.place;
        let there = seen.endpoints.iter().any(|have| have.endpoint.place == place);
        match (there, ours(&place)) {
            (true, false) => {
                plan.standing
                    .push(format!("{path}: {place} is an endpoint of the operator's: it is used as it is"));
                continue;
            }
            (true, true) if !plan.delete.iter().any(|gone| gone.endpoint.place == place) => {}
            _ => plan.add.push((endpoint, path.clone())),
        }
        plan.record.places.push(place);
        let does = match endpoint.flags.announced() {
            true => "is announced",
            false => "joins connections that this host dials",
        };
        plan.standing.push(format!("{path}: {place} {does}"));
    }
    plan
}

impl Endpoint {
    fn is_met_by(&self, have: &Existing) -> bool {
        let number = self.id.is_none_or(|id| id.get() == have.id);
        let Existing { endpoint, .. } = have;
        number && (self.place, self.device, self.flags) == (endpoint.place, endpoint.device, endpoint.flags)
    }
}

/// The endpoints of `path`; says into `standing` why there are none, or fewer.
fn endpoints(path: &MptcpPath, seen: &Seen, standing: &mut Vec<String>) -> Vec<Endpoint> {
    let mut found: Vec<&Address> = match &path.at {
        PathAt::Device(name) => match seen.devices.get(name).copied().flatten() {
            None => {
                standing
                    .push(format!("{path}: there is no such device yet; as soon as there is, it is used"));
                return Vec::new();
            }
            Some(index) => {
                let on_it = |address: &&Address| address.device == index && address.lasting;
                seen.addresses.iter().filter(on_it).collect()
            }
        },
        PathAt::Address(ip) => seen.addresses.iter().filter(|address| address.ip == *ip).take(1).collect(),
    };
    found.retain(|address| address.ready);
    found.sort_by_key(|address| address.ip.is_ipv6());
    if found.is_empty() {
        let what =
            if matches!(path.at, PathAt::Device(_)) { "it has no address" } else { "no device has it" };
        standing.push(format!("{path}: {what} yet; as soon as there is one, it is used"));
    }
    if path.announce.is_some() && seen.timestamps {
        announceable(path, &mut found, standing);
    }
    let flags = Flags::new(path.announce.is_some(), path.backup);
    let endpoint = |(n, address): (usize, &Address)| Endpoint {
        place: Place { address: address.ip, port: path.announce },
        device: address.device,
        flags,
        id: path.id.filter(|_| n == 0),
    };
    found.into_iter().enumerate().map(endpoint).collect()
}

/// An IPv6 address with a port does not fit beside timestamps; an IPv4 one joins IPv6 connections too.
fn announceable(path: &MptcpPath, found: &mut Vec<&Address>, standing: &mut Vec<String>) {
    let v6: Vec<String> =
        found.iter().filter(|address| address.ip.is_ipv6()).map(|address| address.ip.to_string()).collect();
    let v4 = v6.len() < found.len();
    if v4 {
        found.retain(|address| address.ip.is_ipv4());
    } else if !v6.is_empty() {
        standing.push(format!(
            "{path}: {} cannot be announced while net.ipv4.tcp_timestamps is on, as both do not fit into one packet: give the path an \
             IPv4 address, which serves IPv6 connections too, or switch timestamps off on one of the two boxes",
            v6.join(", ")
        ));
    }
}

/// The limits that are too low for `mptcp`. A box that only announces accepts no announcements.
pub fn too_low(mptcp: &Mptcp, limits: &Limits) -> Vec<Raised> {
    let joins = mptcp.paths.iter().any(|path| path.announce.is_none());
    let needed = |limit: &Limit| match limit {
        Limit::Subflows => !mptcp.paths.is_empty(),
        Limit::AddAddrAccepted => joins,
    };
    let low = Limit::ALL.into_iter().filter(needed).filter(|limit| limit.of(limits) < MOST);
    low.map(|limit| Raised { limit, was: limit.of(limits), set: MOST }).collect()
}

/// What a path is called: by what the configuration knows it.
impl fmt::Display for MptcpPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            PathAt::Device(device) => f.write_str(device.as_str()),
            PathAt::Address(address) => address.fmt(f),
        }
    }
}
