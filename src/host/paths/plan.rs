//! The endpoints that the paths of the configuration need on the host as it is, and the necessary changes. PURE.
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::config::{Interface, Mptcp, MptcpPath, PathAt};

use super::endpoint::{Endpoint, Existing, Flags, Limits, Place};
use super::record::{Limit, Raised, Record};
use super::standing::{Standing, State};

/// The maximum of a limit in the kernel (MPTCP_PM_ADDR_MAX in net/mptcp/protocol.h). The number of paths of the other
/// box is not known here.
pub const MOST: u32 = 8;

/// The state of the host.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The index of each device that a path names; `None`: the device does not exist.
    pub devices: BTreeMap<Interface, Option<u32>>,
    /// The addresses of this host.
    pub addresses: Vec<Address>,
    /// The endpoints in the kernel.
    pub endpoints: Vec<Existing>,
    /// The limits of the path manager.
    pub limits: Limits,
    /// The daemon's own part of that state.
    pub record: Record,
    /// The endpoints that may stay for a while after their address has vanished, each with its path.
    pub claims: Vec<(String, Endpoint)>,
    /// Whether `net.ipv4.tcp_timestamps` is on: a timestamp option and an announced IPv6 address with port do not fit
    /// into one packet.
    pub timestamps: bool,
}

/// An address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The index of its device.
    pub device: u32,
    /// Whether it is usable: neither a duplicate nor still being checked for duplicates.
    pub ready: bool,
    /// Whether it is a permanent address for other hosts: neither link-local, temporary, deprecated, nor secondary.
    pub lasting: bool,
}

/// The state of the host and its paths, for `check`.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The state of the host.
    pub seen: Seen,
    /// Each endpoint that the paths need, with the name of its path and its route.
    pub ways: Vec<(String, Endpoint, Way)>,
    /// The MPTCP counters of the kernel since its start.
    pub counters: Vec<(String, u64)>,
}

/// The way by which packets from an endpoint to other networks leave this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// They leave by the endpoint's device.
    Out,
    /// They leave by another device.
    ByAnother,
    /// There is no route.
    None,
}

impl Survey {
    /// Returns the value of a counter; 0 if the kernel does not have it.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters.iter().find(|(known, _)| known == name).map_or(0, |(_, value)| *value)
    }
}

/// The necessary changes, and the resulting state.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The daemon's endpoints to delete. This comes first, because an address may return in another role.
    pub delete: Vec<Existing>,
    /// The endpoints to add, each with its path.
    pub add: Vec<(Endpoint, String)>,
    /// The daemon's own part after the changes.
    pub record: Record,
    /// The daemon's endpoints whose address exists, each with its path.
    pub serving: Vec<(String, Endpoint)>,
    /// The daemon's endpoints that stay although their address has vanished, each with its path.
    pub lingering: Vec<(String, Endpoint)>,
    /// The state of each path.
    pub standing: Vec<Standing>,
}

/// Plans the endpoints of `mptcp` on a host with the state `seen`.
pub fn plan(mptcp: &Mptcp, seen: &Seen) -> Plan {
    let mut plan = Plan { record: Record { places: Vec::new(), ..seen.record.clone() }, ..Plan::default() };
    let wanted = wanted(mptcp, seen, &mut plan.standing);
    let ours = |place: Place| seen.record.places.contains(&place);
    let as_wanted = |have: &Existing| wanted.iter().any(|want| want.endpoint.is_met_by(have));
    let of_ours = seen.endpoints.iter().filter(|have| ours(have.endpoint.place));
    plan.delete.extend(of_ours.filter(|have| !as_wanted(have)));
    for Wanted { path, endpoint, gone } in wanted {
        let place = endpoint.place;
        let there = seen.endpoints.iter().any(|have| have.endpoint.place == place);
        let goes = plan.delete.iter().any(|gone| gone.endpoint.place == place);
        let state = match (there, endpoint.flags.announced()) {
            (true, _) if !ours(place) => State::Operators(place),
            _ if gone => State::Lingers(place),
            (_, true) => State::Announced(place),
            (_, false) => State::Joins(place),
        };
        match state {
            State::Operators(_) => {}
            _ if gone && (goes || !there) => continue,
            _ => {
                plan.record.places.push(place);
                let list = if gone { &mut plan.lingering } else { &mut plan.serving };
                list.push((path.clone(), endpoint));
                if !there || goes {
                    plan.add.push((endpoint, path.clone()));
                }
            }
        }
        plan.standing.push(Standing { path, state });
    }
    plan
}

/// An endpoint that a path needs.
struct Wanted {
    path: String,
    endpoint: Endpoint,
    /// Whether its address has vanished.
    gone: bool,
}

/// Returns the endpoints of all paths, no two with the same address and port.
fn wanted(mptcp: &Mptcp, seen: &Seen, standing: &mut Vec<Standing>) -> Vec<Wanted> {
    let mut wanted: Vec<Wanted> = Vec::new();
    for path in &mptcp.paths {
        let (found, state) = endpoints(path, seen);
        let said = |state| Standing { path: path.to_string(), state };
        let lingering = lingering(path, &found, seen);
        standing.extend(state.filter(|_| lingering.is_empty()).map(said));
        let found = found.into_iter().map(|endpoint| (endpoint, false));
        for (endpoint, gone) in found.chain(lingering.into_iter().map(|endpoint| (endpoint, true))) {
            if wanted.iter().any(|other| other.endpoint.place == endpoint.place) {
                standing.push(said(State::Twice(endpoint.place)));
            } else {
                wanted.push(Wanted { path: path.to_string(), endpoint, gone });
            }
        }
    }
    wanted
}

/// Returns the endpoints of `path` that may stay without their address: no other address of the same family has
/// replaced it, and the device is still the same.
fn lingering(path: &MptcpPath, found: &[Endpoint], seen: &Seen) -> Vec<Endpoint> {
    let name = path.to_string();
    let replaced = |endpoint: &Endpoint| {
        let v6 = endpoint.place.address.is_ipv6();
        found.iter().any(|other| other.place.address.is_ipv6() == v6)
    };
    let device = |endpoint: &Endpoint| match &path.at {
        PathAt::Device(name) => seen.devices.get(name).copied().flatten() == Some(endpoint.device),
        PathAt::Address(_) => true,
    };
    let of_path = seen.claims.iter().filter(|(claimed, _)| *claimed == name).map(|(_, endpoint)| endpoint);
    of_path.filter(|endpoint| !replaced(endpoint) && device(endpoint)).copied().collect()
}

impl Endpoint {
    fn is_met_by(&self, have: &Existing) -> bool {
        let number = self.id.is_none_or(|id| id.get() == have.id);
        let Existing { endpoint, .. } = have;
        number && (self.place, self.device, self.flags) == (endpoint.place, endpoint.device, endpoint.flags)
    }
}

/// Returns the endpoints of `path`, with the state that explains why there are none or why some are useless.
fn endpoints(path: &MptcpPath, seen: &Seen) -> (Vec<Endpoint>, Option<State>) {
    let all = seen.addresses.iter();
    let (mut found, none): (Vec<&Address>, _) = match &path.at {
        PathAt::Device(name) => {
            let Some(index) = seen.devices.get(name).copied().flatten() else {
                return (Vec::new(), Some(State::NoDevice));
            };
            let on_it = |address: &&Address| address.device == index && address.lasting;
            (all.filter(on_it).collect(), State::NoAddress)
        }
        PathAt::Address(ip) => (all.filter(|address| address.ip == *ip).take(1).collect(), State::Nowhere),
    };
    found.retain(|address| address.ready);
    found.sort_by_key(|address| address.ip.is_ipv6());
    let mut state = found.is_empty().then_some(none);
    // An announced IPv6 address with port and a timestamp do not fit into one packet. An IPv4 address also serves IPv6
    // connections.
    if let Some(first) = found.first().filter(|_| path.announce.is_some() && seen.timestamps) {
        if first.ip.is_ipv4() {
            found.retain(|address| address.ip.is_ipv4());
        } else {
            state = Some(State::DoesNotFit(found.iter().map(|address| address.ip).collect()));
        }
    }
    let flags = Flags::new(path.announce.is_some(), path.backup);
    let endpoint = |(n, address): (usize, &Address)| Endpoint {
        place: Place { address: address.ip, port: path.announce },
        device: address.device,
        flags,
        id: path.id.filter(|_| n == 0),
    };
    (found.into_iter().enumerate().map(endpoint).collect(), state)
}

/// Returns the limits that are too low for `mptcp`. A box that only announces does not need to accept announcements.
pub fn too_low(mptcp: &Mptcp, limits: &Limits) -> Vec<Raised> {
    let joins = mptcp.paths.iter().any(|path| path.announce.is_none());
    let needed = |limit: &Limit| match limit {
        Limit::Subflows => !mptcp.paths.is_empty(),
        Limit::AddAddrAccepted => joins,
    };
    let low = Limit::ALL.into_iter().filter(needed).filter(|limit| limit.of(limits) < MOST);
    low.map(|limit| Raised { limit, was: limit.of(limits), set: MOST }).collect()
}

/// Returns the limits that must still be raised. A recorded limit that differs from its original value has been changed
/// since, by the daemon or by the operator, and stays.
pub fn to_raise(mptcp: &Mptcp, seen: &Seen) -> Vec<Raised> {
    let untouched = |low: &Raised| {
        let before = seen.record.raised.iter().find(|raised| raised.limit == low.limit);
        before.is_none_or(|before| before.was == low.was)
    };
    too_low(mptcp, &seen.limits).into_iter().filter(untouched).collect()
}

/// The name of a path: its device or its address.
impl fmt::Display for MptcpPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            PathAt::Device(device) => f.write_str(device.as_str()),
            PathAt::Address(address) => address.fmt(f),
        }
    }
}
