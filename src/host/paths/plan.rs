//! Which endpoints the paths of the configuration come to, on the host as it is, and what has to change for them. PURE.
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::config::{Interface, Mptcp, MptcpPath, PathAt};

use super::endpoint::{Endpoint, Existing, Flags, Limits, Place};
use super::record::{Limit, Raised, Record};
use super::standing::{Standing, State};

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
    /// Endpoints that stay for a while when their address has gone, each with its path.
    pub claims: Vec<(String, Endpoint)>,
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
    /// Those of ours whose address is there, each with its path.
    pub serving: Vec<(String, Endpoint)>,
    /// Those of ours that stay although their address has gone.
    pub lingering: Vec<(String, Endpoint)>,
    /// What each path comes to.
    pub standing: Vec<Standing>,
}

/// What `mptcp` comes to on the host that was `seen`.
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

/// An endpoint that should be, and for which path.
struct Wanted {
    path: String,
    endpoint: Endpoint,
    /// Its address is not there any more.
    gone: bool,
}

/// The endpoints of all paths, no two at one place.
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

/// Those that may stay: nothing of their kind has come in their place, and their device is still the same.
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

/// The endpoints of `path`, and why there are none, or why one is of no use.
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
    // An IPv6 address with a port does not fit beside timestamps; an IPv4 one joins IPv6 connections too.
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

/// Those that are still to be raised. One that was, and is no longer what it was before, has been changed since: by us, or by an operator
/// who has his reasons.
pub fn to_raise(mptcp: &Mptcp, seen: &Seen) -> Vec<Raised> {
    let untouched = |low: &Raised| {
        let before = seen.record.raised.iter().find(|raised| raised.limit == low.limit);
        before.is_none_or(|before| before.was == low.was)
    };
    too_low(mptcp, &seen.limits).into_iter().filter(untouched).collect()
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
