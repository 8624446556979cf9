//! The mirror against a naive lookup: a flow that is sent to it takes the way of the main table, at every step of every
//! change.
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::message;
use super::plan::{Change, MOST_ROUTES, Obstacle, Seen, Table, changes_to, mirror, plan};
use super::route::{Hop, INITCWND, Key, Path, Prefix, Route, Way};
use super::steering::{self, Does, Move, Rule, SteeringRule};
use crate::config::{Config, Interface};
use crate::host::rules::change::Family;
use crate::units::Mark;

const WAN: [u32; 2] = [1, 2];
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Returns one of 256 addresses, so that routes often match flows.
fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// Returns the network that has the first `bits` of the eight bits of `last`; -1: all addresses.
fn prefix(family: Family, last: u8, bits: i8) -> Prefix {
    let Ok(bits) = u8::try_from(bits) else { return Prefix::all(family) };
    let whole = if family == Family::V4 { 24 } else { 120 };
    let network = last & u8::MAX.checked_shl(8 - u32::from(bits)).unwrap_or(0);
    Prefix { length: Reverse(whole + bits), address: address(family, network) }
}

fn prefixes(family: Family) -> impl Strategy<Value = Prefix> {
    (any::<u8>(), -1..=8_i8).prop_map(move |(last, bits)| prefix(family, last, bits))
}

fn keys() -> impl Strategy<Value = Key> {
    select(FAMILIES.to_vec()).prop_flat_map(|family| {
        let all = Prefix::all(family);
        let from = prop_oneof![4 => Just(all), 1 => prefixes(family)];
        (prefixes(family), from, select(vec![0_u8, 0, 0, 0x10]), 0..3_u32).prop_map(
            move |(to, from, tos, metric)| {
                let v4 = family == Family::V4;
                let (from, tos) = if v4 { (all, tos) } else { (from, 0) };
                Key { family, to, from, tos: Reverse(tos), metric }
            },
        )
    })
}

/// Generates next hops over the devices 1 to 4, of which 4 is down.
fn hops() -> impl Strategy<Value = Vec<Hop>> {
    let gateway = (select(FAMILIES.to_vec()), 0..=3_u8);
    let hop = (select(vec![1_u32, 1, 1, 2, 3, 4]), gateway).prop_map(|(device, (family, gateway))| Hop {
        device,
        gateway: (gateway > 0).then(|| address(family, gateway)),
        weight: 0,
        onlink: false,
        dead: device == 4,
    });
    vec(hop, 1..=2)
}

fn ways() -> impl Strategy<Value = Way> {
    let out =
        hops().prop_map(|hops| Way::Out(Path { scope: 0, hops, source: None, metrics: BTreeMap::new() }));
    prop_oneof![8 => out, 1 => Just(Way::Other), 1 => Just(Way::Throw)]
}

/// Generates tables; some keys occur twice, which the kernel permits.
fn tables() -> impl Strategy<Value = Vec<Route>> {
    vec((keys(), ways()).prop_map(|(key, way)| Route { key, way }), 0..30)
}

#[derive(Debug, Clone, Copy)]
struct Flow {
    family: Family,
    to: IpAddr,
    from: IpAddr,
    tos: u8,
}

fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let flow = (select(FAMILIES.to_vec()), any::<u8>(), any::<u8>(), select(vec![0_u8, 0x10]));
    let flow = flow.prop_map(|(family, to, from, tos)| Flow {
        family,
        to: address(family, to),
        from: address(family, from),
        tos,
    });
    vec(flow, 40)
}

fn contains(prefix: &Prefix, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let ((network, width), (address, other)) = (bits(prefix.address), bits(address));
    let differ = (network ^ address).checked_shr(128 - u32::from(prefix.length.0)).unwrap_or(0);
    width == other && differ == 0
}

/// Returns the way on which the kernel sends `flow`: the longest prefix with a way that is not dead, then the lowest
/// metric, then the first.
fn lookup<'t>(table: impl IntoIterator<Item = (&'t Key, &'t Way)>, flow: Flow) -> Option<&'t Way> {
    let matches = |key: &Key| {
        let tos = key.tos.0 == 0 || key.tos.0 == flow.tos;
        let prefixes = contains(&key.to, flow.to) && contains(&key.from, flow.from);
        key.family == flow.family && prefixes && tos
    };
    let lives = |way: &Way| !matches!(way, Way::Out(path) if path.hops.iter().all(|hop| hop.dead));
    let mut found: Vec<_> = table.into_iter().filter(|(key, way)| matches(key) && lives(way)).collect();
    let lengths = |key: &Key| (255 - key.to.length.0, 255 - key.from.length.0, 255 - key.tos.0, key.metric);
    found.sort_by_key(|(key, _)| lengths(key));
    found.first().map(|(_, way)| *way)
}

/// Returns the way of a socket that is sent to the mirror, in terms of the main table.
fn marked(mirror: &Table, main: &[Route], flow: Flow) -> String {
    match lookup(mirror, flow) {
        Some(Way::Out(path)) => told(&path.hops),
        Some(Way::Other) => panic!("a mirror has no such route"),
        Some(Way::Throw) | None => unmarked(main, flow),
    }
}

/// Returns the way of any other socket.
fn unmarked(main: &[Route], flow: Flow) -> String {
    match lookup(main.iter().map(|route| (&route.key, &route.way)), flow) {
        Some(Way::Out(path)) => told(&path.hops),
        other => format!("{other:?}"),
    }
}

fn told(hops: &[Hop]) -> String {
    let hop = |hop: &Hop| format!("via {:?} dev {} weight {}", hop.gateway, hop.device, hop.weight);
    hops.iter().map(hop).collect::<Vec<_>>().join(", ")
}

fn routes(table: &Table) -> Vec<Route> {
    table.iter().map(|(key, way)| Route { key: key.clone(), way: way.clone() }).collect()
}

fn apply(table: &mut Table, change: &Change) {
    match change {
        Change::Put(key, way) => drop(table.insert(key.clone(), way.clone())),
        Change::Delete(key) => assert!(table.remove(key).is_some(), "{key} is not there"),
        Change::AddRule(_) | Change::DeleteRule(_) => panic!("no route: {change}"),
    }
}

proptest! {
    #[test]
    fn a_flow_that_is_sent_to_the_mirror_takes_the_way_of_the_main_table(main in tables(), flows in flows()) {
        let mirror = mirror(main.iter(), &WAN, 100);
        for flow in flows {
            prop_assert_eq!(marked(&mirror, &main, flow), unmarked(&main, flow), "{:?}", flow);
        }
    }

    #[test]
    fn while_the_mirror_changes_a_flow_takes_its_old_way_or_its_new_one(
        (before, after) in (tables(), tables()),
        sync in vec(any::<bool>(), 30),
        refuses in vec(any::<bool>(), 100),
        flows in flows(),
    ) {
        // Part of the table stays unchanged.
        let kept = before.iter().zip(sync).filter(|(_, sync)| *sync).map(|(route, _)| route.clone());
        let after: Vec<Route> = kept.chain(after).collect();
        let old = mirror(before.iter(), &WAN, 100);
        let wanted = mirror(after.iter(), &WAN, 100);
        let mut now = old.clone();
        let changes = changes_to(&wanted, &routes(&old));
        let mut refused = BTreeSet::new();
        for (change, refuse) in changes.iter().zip(refuses.iter().cycle()) {
            match change {
                Change::Put(key, Way::Out(_)) if *refuse => drop(refused.insert(key.clone())),
                change => apply(&mut now, change),
            }
            for &flow in &flows {
                let way = marked(&now, &after, flow);
                let right = unmarked(&after, flow);
                prop_assert!(way == right || way == marked(&old, &after, flow), "{}: {:?}", change, flow);
            }
        }
        prop_assert!(now.iter().all(|(key, way)| *way == Way::Throw || !refused.contains(key)));
        now.extend(refused.into_iter().map(|key| (key.clone(), wanted[&key].clone())));
        prop_assert_eq!(&now, &wanted);
        prop_assert_eq!(changes_to(&wanted, &routes(&wanted)), []);
    }

    #[test]
    fn a_route_is_unchanged_through_a_message_and_back(key in keys(), way in ways(), source in any::<bool>()) {
        let metrics = BTreeMap::from([(2, vec![1, 2, 3, 4]), (16, b"bbr\0".to_vec())]);
        let way = match way {
            Way::Out(path) => {
                let source = source.then(|| address(key.family, 9));
                Way::Out(Path { scope: 253, source, metrics, ..path }.copy(50))
            }
            _ => Way::Throw,
        };
        let put = message::put(NonZeroU32::new(6).unwrap(), &key, &way);
        let dead = |mut way: Way| {
            // Only the kernel sets this flag.
            if let Way::Out(path) = &mut way {
                path.hops.iter_mut().for_each(|hop| hop.dead = false);
            }
            way
        };
        prop_assert_eq!(message::route(key.family, &put), Route { key, way: dead(way) });
    }

    #[test]
    fn our_rules_come_directly_before_the_main_table_and_nothing_else_moves(
        rules in vec((0..6_u32, 0..8_u8), 0..8),
        moved_before in 0..3_usize,
    ) {
        let (own, table) = (Config::default().rules.own_mark, NonZeroU32::new(6).unwrap());
        let ours = |priority| SteeringRule { family: Family::V4, mark: Mark::new(2, 6).unwrap(), table, priority };
        let does = |(priority, what)| Rule {
            priority,
            does: match what {
                0 => Does::Main,
                1 => Does::SteeringRule(ours(priority)),
                _ => Does::Other,
            },
        };
        let mut rules: Vec<Rule> = rules.into_iter().map(does).collect();
        rules.sort_by_key(|rule| rule.priority);
        let others = |rules: &[Rule]| {
            rules.iter().filter(|rule| !matches!(rule.does, Does::SteeringRule(_))).copied().collect::<Vec<_>>()
        };
        let before = others(&rules);
        for _ in 0..=moved_before {
            let Some(Move { away, here }) = steering::moved(&rules, Family::V4, own, table) else {
                let Some(main) = before.iter().position(|rule| rule.does == Does::Main) else { return Ok(()) };
                let priority = before[main].priority;
                prop_assert!(priority == 0 || (main > 0 && before[main - 1].priority == priority));
                return Ok(());
            };
            rules.retain(|rule| !away.iter().any(|steering| rule.does == Does::SteeringRule(*steering)));
            for steering in here {
                // The kernel inserts a rule behind the rules of the same priority.
                let at = rules.partition_point(|rule| rule.priority <= steering.priority);
                rules.insert(at, Rule { priority: steering.priority, does: Does::SteeringRule(steering) });
            }
            prop_assert_eq!(others(&rules), before.clone());
            let main = rules.iter().position(|rule| rule.does == Does::Main).unwrap();
            let marks: Vec<u32> = steering::ours(&rules[main - 2..main]).iter().map(|steering| steering.mark.value()).collect();
            prop_assert_eq!(marks, [2, 4]);
            prop_assert_eq!(steering::ours(&rules).len(), 2);
            prop_assert_eq!(steering::moved(&rules, Family::V4, own, table), Some(Move::default()));
        }
    }
}

fn out(device: u32) -> Way {
    let hop = Hop { device, gateway: None, weight: 0, onlink: false, dead: false };
    Way::Out(Path { scope: 0, hops: vec![hop], source: None, metrics: BTreeMap::new() })
}

fn route(last: u8, bits: i8, way: Way) -> Route {
    let family = Family::V4;
    let (to, from) = (prefix(family, last, bits), Prefix::all(family));
    Route { key: Key { family, to, from, tos: Reverse(0), metric: 0 }, way }
}

fn seen(main: Vec<Route>) -> Seen {
    let rules = vec![Rule { priority: 32766, does: Does::Main }];
    let devices = ["wan0", "wan1"].map(|name| Interface::new(name).unwrap());
    let devices = devices.into_iter().zip([Some(WAN[0]), None]).collect();
    Seen { rules: vec![(Family::V4, rules)], main, devices, ..Seen::default() }
}

fn planned(seen: &Seen) -> Result<super::Plan, Obstacle> {
    let config = Config::default();
    plan(&config.wan, config.rules.own_mark, seen)
}

#[test]
fn a_copy_has_the_window_and_every_other_attribute_of_the_route() {
    let metrics =
        BTreeMap::from([(1, vec![4, 0, 0, 0]), (2, vec![0x78, 5, 0, 0]), (INITCWND, vec![20, 0, 0, 0])]);
    let Way::Out(path) = out(1) else { panic!("out() leads out") };
    let path = Path { metrics: metrics.clone(), ..path };
    let copy = path.clone().copy(300);
    let mut with_window = metrics;
    with_window.insert(INITCWND, 300_u32.to_ne_bytes().to_vec());
    assert_eq!(copy, Path { metrics: with_window, ..path });
}

#[test]
fn policy_rules_are_added_last_and_deleted_first() {
    let coming = planned(&seen(vec![route(0, -1, out(1)), route(1, 8, out(3))])).unwrap();
    let words = |change: &Change| change.to_string().split(' ').take(4).collect::<Vec<_>>().join(" ");
    let rules =
        |changes: &[Change]| changes.iter().map(words).map(|text| text.contains("rule")).collect::<Vec<_>>();
    assert_eq!(rules(&coming.changes), [false, false, false, true, true], "{:?}", coming.changes);
    let mut there = seen(Vec::new());
    there.mirror = vec![route(0, -1, out(1)), route(1, 8, Way::Throw)];
    for change in &coming.changes {
        if let Change::AddRule(steering) = change {
            there.rules[0]
                .1
                .insert(0, Rule { priority: steering.priority, does: Does::SteeringRule(*steering) });
        }
    }
    let going = planned(&there).unwrap();
    assert_eq!(rules(&going.changes), [true, true, false, false], "{:?}", going.changes);
    assert!(going.changes[2].to_string().contains("default"), "{:?}", going.changes);
}

#[test]
fn without_a_route_over_the_devices_nothing_changes() {
    let plan = planned(&seen(vec![route(0, -1, out(3)), route(1, 8, Way::Other)])).unwrap();
    assert_eq!(plan.changes, []);
    assert!(plan.standing[0].starts_with("wan0: no route to mirror yet"), "{:?}", plan.standing);
    assert!(plan.standing[1].starts_with("wan1 does not exist yet"), "{:?}", plan.standing);
}

#[test]
fn a_host_without_a_rule_for_the_main_table_gets_no_mirror_and_a_reason() {
    let mut host = seen(vec![route(0, -1, out(1))]);
    host.rules[0].1[0].does = Does::Other;
    let plan = planned(&host).unwrap();
    assert_eq!(plan.changes, []);
    assert!(plan.standing[0].contains("no place directly before a policy rule"), "{:?}", plan.standing);
}

#[test]
fn a_table_in_use_and_a_main_table_with_too_many_routes_are_refused() {
    let key = route(0, -1, out(1)).key;
    let taken = Seen { foreign: Some(key.clone()), ..seen(Vec::new()) };
    assert_eq!(planned(&taken), Err(Obstacle::Taken { table: NonZeroU32::new(6).unwrap(), route: key }));
    let many = seen(vec![route(0, -1, out(1)); MOST_ROUTES + 1]);
    assert_eq!(planned(&many), Err(Obstacle::TooMany(MOST_ROUTES + 1)));
}
