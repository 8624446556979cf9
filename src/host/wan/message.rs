//! Conversion of routes and policy rules to rtnetlink messages, and back. EFFECT, because it uses the types of the
//! crate rtnetlink; it sends nothing itself.
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use rtnetlink::packet_core::{DefaultNla, Nla};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::host::rules::change::Family;
use crate::units::Mark;

use super::route::{Hop, Key, Path, Prefix, Route, Way};
use super::steering::{Does, PROTOCOL, Rule, SteeringRule};

/// The number of the main table: RT_TABLE_MAIN.
pub const MAIN: NonZeroU32 = NonZeroU32::new(254).expect("254 is not 0");
/// The kernel's unit of time in route messages: 1/100 s (USER_HZ).
const TICK: Duration = Duration::from_millis(10);

/// Returns a request for the routes in `table`.
pub fn in_table(family: Family, table: NonZeroU32) -> RouteMessage {
    let mut filter = RouteMessage::default();
    filter.header.address_family = address_family(family);
    filter.attributes.push(RouteAttribute::Table(table.get()));
    filter
}

/// Returns a request for the mirror's routes, in any table.
pub fn with_our_protocol(family: Family) -> RouteMessage {
    let mut filter = RouteMessage::default();
    filter.header.address_family = address_family(family);
    filter.header.protocol = RouteProtocol::Other(PROTOCOL);
    filter
}

/// Returns the table of `message`. Where the kernel cannot filter by the requested table, it sends other tables'
/// routes too.
pub fn table(message: &RouteMessage) -> Option<NonZeroU32> {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    NonZeroU32::new(attribute.unwrap_or(message.header.table.into()))
}

/// Tells whether `message` is a route of the mirror, by its protocol number.
pub fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(PROTOCOL)
}

/// Returns the time until the route expires, as routes of router advertisements do. `None`: it never expires; zero: it
/// has expired, and the kernel no longer uses it.
pub fn expiry(message: &RouteMessage) -> Option<Duration> {
    let ticks = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::CacheInfo(info) if info.expires != 0 => Some(info.expires.cast_signed()),
        _ => None,
    });
    ticks.map(|ticks| TICK * ticks.max(0).cast_unsigned())
}

/// Returns the route that `message` describes.
pub fn route(family: Family, message: &RouteMessage) -> Route {
    let all = Prefix::all(family);
    let prefix = |length, address| Prefix { length: Reverse(length), address };
    let mut key = Key { family, to: all, from: all, tos: Reverse(message.header.tos), metric: 0 };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                key.to = ip(to).map_or(all, |to| prefix(message.header.destination_prefix_length, to));
            }
            RouteAttribute::Source(from) => {
                key.from = ip(from).map_or(all, |from| prefix(message.header.source_prefix_length, from));
            }
            RouteAttribute::Priority(metric) => key.metric = *metric,
            _ => {}
        }
    }
    let way = match message.header.kind {
        RouteType::Throw => Way::Throw,
        RouteType::Unicast => path(message).map_or(Way::Other, Way::Out),
        _ => Way::Other,
    };
    Route { key, way }
}

/// Returns the path of a unicast route; `None` if an attribute is unknown or cannot be copied.
fn path(message: &RouteMessage) -> Option<Path> {
    let flags = message.header.flags;
    let (mut device, mut gateway, mut object, mut hops) = (None, None, false, Vec::new());
    let (mut source, mut metrics) = (None, BTreeMap::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(_)
            | RouteAttribute::Destination(_)
            | RouteAttribute::Source(_)
            | RouteAttribute::Priority(_)
            | RouteAttribute::Preference(_)
            | RouteAttribute::CacheInfo(_) => {}
            RouteAttribute::Oif(index) => device = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = Some(via(attribute)?),
            RouteAttribute::PrefSource(address) => source = Some(ip(address)?),
            RouteAttribute::NhId(_) => object = true,
            RouteAttribute::MultiPath(all) => hops = all.iter().map(hop).collect::<Option<_>>()?,
            RouteAttribute::Metrics(all) => metrics = all.iter().map(metric).collect(),
            _ => return None,
        }
    }
    let one = device.map(|device| Hop {
        device,
        gateway,
        weight: 0,
        onlink: flags.contains(RouteFlags::Onlink),
        dead: flags.contains(RouteFlags::Dead),
    });
    hops.extend(one);
    // All routes that use a nexthop object share the kernel's cached routes, and so their metrics. Therefore the copy
    // has the object's hop, not its number. A group of nexthop objects has its own rules of selection: it is not
    // copied.
    if object && hops.len() != 1 {
        return None;
    }
    Some(Path { scope: message.header.scope.into(), hops, source, metrics })
}

fn hop(next: &RouteNextHop) -> Option<Hop> {
    Some(Hop {
        device: next.interface_index,
        gateway: match next.attributes.as_slice() {
            [] => None,
            [gateway] => Some(via(gateway)?),
            _ => return None,
        },
        weight: next.hops,
        onlink: next.flags.contains(RouteNextHopFlags::Onlink),
        dead: next.flags.contains(RouteNextHopFlags::Dead),
    })
}

fn via(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn metric(metric: &RouteMetric) -> (u16, Vec<u8>) {
    let mut value = vec![0; metric.value_len()];
    metric.emit_value(&mut value);
    (metric.kind(), value)
}

/// Returns the message that puts `way` into `table` under `key`.
pub fn put(table: NonZeroU32, key: &Key, way: &Way) -> RouteMessage {
    let mut message = keyed(table, key);
    message.header.kind = RouteType::Throw;
    if let Way::Out(path) = way {
        message.header.kind = RouteType::Unicast;
        message.header.scope = RouteScope::from(path.scope);
        message.attributes.extend(path.source.map(|source| RouteAttribute::PrefSource(source.into())));
        let metrics = path.metrics.iter();
        let metrics = metrics.map(|(kind, value)| RouteMetric::Other(DefaultNla::new(*kind, value.clone())));
        message.attributes.push(RouteAttribute::Metrics(metrics.collect()));
        if let [hop] = path.hops.as_slice() {
            message.header.flags.set(RouteFlags::Onlink, hop.onlink);
            message.attributes.push(RouteAttribute::Oif(hop.device));
            message.attributes.extend(hop.gateway.map(|address| towards(key.family, address)));
        } else {
            let hops = path.hops.iter().map(|hop| next_hop(key.family, hop));
            message.attributes.push(RouteAttribute::MultiPath(hops.collect()));
        }
    }
    message
}

/// Returns the message that deletes the mirror's route under `key` in `table`, and no route of another program.
pub fn delete(table: NonZeroU32, key: &Key) -> RouteMessage {
    let mut message = keyed(table, key);
    message.header.scope = RouteScope::NoWhere;
    message
}

fn keyed(table: NonZeroU32, key: &Key) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(key.family);
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.destination_prefix_length = key.to.length.0;
    message.header.source_prefix_length = key.from.length.0;
    message.header.tos = key.tos.0;
    message.attributes = vec![
        RouteAttribute::Table(table.get()),
        RouteAttribute::Destination(key.to.address.into()),
        RouteAttribute::Priority(key.metric),
    ];
    if key.from.length.0 != 0 {
        message.attributes.push(RouteAttribute::Source(key.from.address.into()));
    }
    message
}

fn next_hop(family: Family, hop: &Hop) -> RouteNextHop {
    let mut next = RouteNextHop::default();
    next.interface_index = hop.device;
    next.hops = hop.weight;
    next.flags.set(RouteNextHopFlags::Onlink, hop.onlink);
    next.attributes.extend(hop.gateway.map(|address| towards(family, address)));
    next
}

/// Returns the attribute for `gateway`: RTA_VIA for an IPv6 gateway of an IPv4 route, otherwise RTA_GATEWAY.
fn towards(family: Family, gateway: IpAddr) -> RouteAttribute {
    match (family, gateway) {
        (Family::V4, IpAddr::V6(address)) => RouteAttribute::Via(RouteVia::Inet6(address)),
        (_, address) => RouteAttribute::Gateway(address.into()),
    }
}

/// Returns the policy rule that `message` describes.
pub fn rule(family: Family, message: &RuleMessage) -> Rule {
    let mut priority = 0;
    let (mut value, mut mask, mut table, mut ours) = (0, 0, None, false);
    let header = &message.header;
    let mut plain = header.src_len == 0 && header.dst_len == 0 && header.tos == 0;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(is) => priority = *is,
            RuleAttribute::Table(is) => table = NonZeroU32::new(*is),
            RuleAttribute::Protocol(is) => ours = *is == RouteProtocol::Other(PROTOCOL),
            RuleAttribute::FwMark(is) => value = *is,
            RuleAttribute::FwMask(is) => mask = *is,
            // This value means that the rule has no suppressor.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => plain = false,
        }
    }
    let to_table = header.action == RuleAction::ToTable && !header.flags.contains(RuleFlags::Invert);
    let steering = || Some(SteeringRule { family, mark: Mark::new(value, mask)?, table: table?, priority });
    let does = match steering().filter(|_| to_table && ours) {
        Some(steering) => Does::SteeringRule(steering),
        None if to_table && plain && mask == 0 && table == Some(MAIN) => Does::Main,
        None => Does::Other,
    };
    Rule { priority, does }
}

/// Returns the message that adds or deletes `steering`.
pub fn steering(steering: &SteeringRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(steering.family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(steering.priority),
        RuleAttribute::Iifname("lo".to_owned()),
        RuleAttribute::FwMark(steering.mark.value()),
        RuleAttribute::FwMask(steering.mark.mask()),
        RuleAttribute::Table(steering.table.get()),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}
