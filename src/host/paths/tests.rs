//! Tests of the decisions, with the state of the host as data.
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::endpoint::{Endpoint, Existing, Flags, Limits, Place};
use super::lingering::{Served, claims};
use super::plan::{Address, Plan, Seen, plan, to_raise, too_low};
use super::record::{Limit, Raised, Record};
use super::standing::State;
use crate::config::{Config, Interface, Mptcp};

fn mptcp(paths: &str) -> Mptcp {
    Config::parse(&format!("mptcp.path = [{paths}]"), &[]).unwrap().mptcp
}

fn address(ip: &str, device: u32) -> Address {
    Address { ip: ip.parse().unwrap(), device, ready: true, lasting: true }
}

/// Returns a host with `wan1` (index 1) and `wan2` (index 2), without `wan3`.
fn host(addresses: &[Address]) -> Seen {
    let devices = [("wan1", Some(1)), ("wan2", Some(2)), ("wan3", None)];
    let devices = devices.map(|(name, index)| (Interface::new(name).unwrap(), index));
    let addresses = addresses.to_vec();
    Seen { devices: devices.into_iter().collect(), addresses, timestamps: true, ..Seen::default() }
}

fn existing(place: &str, device: u32, announced: bool, id: u8) -> Existing {
    let place = Place::parse(place).unwrap();
    Existing { endpoint: Endpoint { place, device, flags: Flags::new(announced, false), id: None }, id }
}

/// Returns the deletions and additions of `plan` as text.
fn changes(plan: &Plan) -> Vec<String> {
    let gone = plan.delete.iter().map(|gone| format!("delete {}", gone.endpoint.place));
    gone.chain(plan.add.iter().map(|(endpoint, _)| format!("add {endpoint} dev {}", endpoint.device)))
        .collect()
}

#[test]
fn a_device_path_uses_all_permanent_addresses_and_an_address_path_only_its_own() {
    let mut all: Vec<Address> =
        ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"].map(|ip| address(ip, 1)).into();
    (all[2].lasting, all[3].ready) = (false, false);
    all.push(address("192.0.2.3", 2));
    let found = plan(
        &mptcp("{device='wan1', id=7}, {device='wan3'}, {address='192.0.2.2', backup=true}"),
        &host(&all),
    );
    assert_eq!(
        changes(&found),
        [
            "add 192.0.2.1 fullmesh id 7 dev 1",
            "add 2001:db8::1 fullmesh dev 1",
            "add 192.0.2.2 fullmesh backup dev 1"
        ]
    );
    assert_eq!(found.record.places.len(), 3);
    assert!(
        found.standing[0].to_string().starts_with("wan3: there is no such device yet"),
        "{:?}",
        found.standing
    );
}

#[test]
fn with_timestamps_ipv4_is_announced_alone_and_ipv6_only_with_a_warning() {
    let all = ["2001:db8::1", "192.0.2.1"].map(|ip| address(ip, 1));
    let path = mptcp("{device='wan1', announce=true, port=7000}");
    assert_eq!(changes(&plan(&path, &host(&all))), ["add 192.0.2.1 port 7000 signal dev 1"]);
    let only = plan(&path, &host(&all[..1]));
    assert_eq!(changes(&only), ["add 2001:db8::1 port 7000 signal dev 1"]);
    assert!(only.standing[0].to_string().contains("cannot be announced while"), "{:?}", only.standing);
    let without = Seen { timestamps: false, ..host(&all) };
    assert_eq!(plan(&path, &without).add.len(), 2);
}

#[test]
fn matching_endpoints_stay_differing_ones_are_replaced_and_the_operators_are_left_alone() {
    let all = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"].map(|ip| address(ip, 1));
    let mut seen = host(&all);
    seen.endpoints = vec![
        existing("192.0.2.1", 1, false, 1),
        existing("192.0.2.2", 2, false, 2),
        existing("192.0.2.3", 1, false, 3),
        existing("198.51.100.1", 1, false, 4),
        existing("198.51.100.2", 1, false, 5),
    ];
    // The daemon owns all but the third and the last. One of its endpoints, 192.0.2.4, no longer exists.
    let ours = ["192.0.2.1", "192.0.2.2", "198.51.100.1", "192.0.2.4"];
    seen.record.places = ours.map(|place| Place::parse(place).unwrap()).into();
    let found = plan(&mptcp("{device='wan1'}"), &seen);
    assert_eq!(
        changes(&found),
        [
            "delete 192.0.2.2",
            "delete 198.51.100.1",
            "add 192.0.2.2 fullmesh dev 1",
            "add 192.0.2.4 fullmesh dev 1"
        ]
    );
    let kept: Vec<IpAddr> = found.record.places.iter().map(|place| place.address).collect();
    assert_eq!(kept, ["192.0.2.1", "192.0.2.2", "192.0.2.4"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    let theirs = State::Operators(Place::parse("192.0.2.3").unwrap());
    assert!(found.standing.iter().any(|standing| standing.state == theirs), "{:?}", found.standing);
}

#[test]
fn an_address_of_two_paths_is_used_once() {
    let found = plan(&mptcp("{device='wan1'}, {address='192.0.2.1'}"), &host(&[address("192.0.2.1", 1)]));
    assert_eq!(changes(&found).len(), 1);
    assert!(
        found.standing[0].to_string().contains("is already used by another path"),
        "{:?}",
        found.standing
    );
}

#[test]
fn limits_are_only_raised_and_only_where_they_are_needed() {
    let raised = |paths, subflows, add_addr_accepted| {
        let low = too_low(&mptcp(paths), &Limits { subflows, add_addr_accepted });
        low.into_iter().map(|raised| (raised.limit.name(), raised.was, raised.set)).collect::<Vec<_>>()
    };
    let near = "{device='wan1'}";
    assert_eq!(raised(near, 2, 0), [("subflows", 2, 8), ("add_addr_accepted", 0, 8)]);
    assert_eq!(raised("{device='wan1', announce=true}", 2, 0), [("subflows", 2, 8)]);
    assert_eq!(raised(near, 8, 8), []);
    assert_eq!(raised("", 0, 0), []);
}

/// Returns the state of the host after the changes of `plan`.
fn made(seen: &Seen, plan: &Plan) -> Seen {
    let endpoints = plan.add.iter().zip(1..).map(|((endpoint, _), id)| Existing { endpoint: *endpoint, id });
    Seen {
        endpoints: endpoints.collect(),
        record: plan.record.clone(),
        claims: plan.serving.clone(),
        ..seen.clone()
    }
}

#[test]
fn an_endpoint_waits_for_its_address_until_another_address_replaces_it() {
    let path = mptcp("{device='wan1'}");
    let both = host(&["192.0.2.1", "2001:db8::1"].map(|ip| address(ip, 1)));
    let there = made(&both, &plan(&path, &both));
    let gone = plan(&path, &Seen { addresses: Vec::new(), ..there.clone() });
    assert_eq!((changes(&gone), gone.lingering.len(), gone.serving.len()), (vec![], 2, 0));
    assert_eq!(gone.record.places.len(), 2);
    let without_claims = plan(&path, &Seen { addresses: Vec::new(), claims: Vec::new(), ..there.clone() });
    assert_eq!(changes(&without_claims), ["delete 192.0.2.1", "delete 2001:db8::1"]);
    let renumbered = plan(&path, &Seen { addresses: vec![address("192.0.2.9", 1)], ..there.clone() });
    assert_eq!(changes(&renumbered), ["delete 192.0.2.1", "add 192.0.2.9 fullmesh dev 1"]);
    let mut another = Seen { addresses: Vec::new(), ..there };
    another.devices.insert(Interface::new("wan1").unwrap(), Some(7));
    assert_eq!(
        changes(&plan(&path, &another)).len(),
        2,
        "another device has the name: the subflows of the old one are dead"
    );
}

#[test]
fn an_endpoint_waits_at_most_five_minutes_for_its_address() {
    let (mut served, start) = (Served::default(), Instant::now());
    let one = || vec![("wan1".to_owned(), existing("192.0.2.1", 1, false, 1).endpoint)];
    let at = |seconds| start + Duration::from_secs(seconds);
    served.update(one(), Vec::new(), at(0));
    assert_eq!((served.claims(at(1000)).len(), served.next(at(1000))), (1, None));
    served.update(Vec::new(), one(), at(1000));
    served.update(Vec::new(), one(), at(1200));
    assert_eq!((served.claims(at(1299)).len(), served.next(at(1299))), (1, Some(Duration::from_secs(1))));
    assert_eq!(served.claims(at(1300)), []);
}

#[test]
fn a_process_that_takes_over_claims_the_recorded_endpoints_for_their_paths() {
    let path =
        mptcp("{device='wan1', id=9}, {device='wan2', announce=true, port=5001}, {address='192.0.2.7'}");
    let mut seen = host(&[address("192.0.2.3", 2)]);
    seen.endpoints = vec![
        existing("192.0.2.1", 1, false, 1),
        existing("192.0.2.2", 1, false, 2),
        existing("192.0.2.3 port 5001", 2, true, 3),
        existing("192.0.2.4", 2, false, 4),
        existing("192.0.2.7", 7, false, 5),
    ];
    let places = ["192.0.2.1", "192.0.2.3 port 5001", "192.0.2.4", "192.0.2.7", "192.0.2.9"];
    seen.record.places = places.map(|place| Place::parse(place).unwrap()).into();
    seen.claims = claims(&path, &seen);
    let of = |(path, endpoint): &(String, Endpoint)| format!("{path}: {endpoint}");
    let found: Vec<String> = seen.claims.iter().map(of).collect();
    let expected =
        ["wan1: 192.0.2.1 fullmesh", "wan2: 192.0.2.3 port 5001 signal", "192.0.2.7: 192.0.2.7 fullmesh"];
    assert_eq!(found, expected);
    // Only the third has its address; the first and the last wait for theirs. The fourth belongs to no path any more,
    // and the second is not the daemon's.
    let plan = plan(&path, &seen);
    assert_eq!(changes(&plan), ["delete 192.0.2.4"]);
    assert_eq!((plan.serving.len(), plan.lingering.len(), plan.record.places.len()), (1, 2, 3));
}

#[test]
fn an_address_path_waits_for_its_address_although_its_device_is_a_path_too() {
    let path = mptcp("{device='wan1'}, {address='192.0.2.7'}");
    let mut seen = host(&[address("192.0.2.1", 1)]);
    seen.endpoints = vec![existing("192.0.2.1", 1, false, 1), existing("192.0.2.7", 1, false, 2)];
    seen.record.places = seen.endpoints.iter().map(|have| have.endpoint.place).collect();
    seen.claims = claims(&path, &seen);
    let plan = plan(&path, &seen);
    assert_eq!((changes(&plan), plan.serving.len(), plan.lingering.len()), (vec![], 1, 1));
    assert_eq!(plan.lingering[0].0, "192.0.2.7");
}

#[test]
fn a_limit_is_raised_a_second_time_only_if_the_first_attempt_was_interrupted() {
    let near = mptcp("{device='wan1'}");
    let raise = |now, was| {
        let raised = vec![Raised { limit: Limit::Subflows, was, set: 8 }];
        let limits = Limits { subflows: now, add_addr_accepted: 8 };
        let record = Record { raised, ..Record::default() };
        let raise = to_raise(&near, &Seen { limits, record: record.clone(), ..Seen::default() });
        assert_eq!(record.with(&[], &raise), record, "the record keeps the original value");
        raise.len()
    };
    assert_eq!([raise(8, 2), raise(2, 2), raise(5, 2)], [0, 1, 0]);
    let first = Seen { limits: Limits { subflows: 2, add_addr_accepted: 8 }, ..Seen::default() };
    assert_eq!(to_raise(&near, &first), [Raised { limit: Limit::Subflows, was: 2, set: 8 }]);
}
