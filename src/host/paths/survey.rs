//! Reads the state of a configuration's paths for `check`, without changing it. EFFECT.
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};

use crate::config::Config;
use crate::host::rules::RulesError;
use crate::host::rules::netlink::run;
use crate::host::wan::events;

use super::endpoint::Endpoint;
use super::plan::{Survey, Way, plan};
use super::{Seen, host};

/// Addresses outside every network of a box. Nothing is sent to them; only the route to them is looked up.
const AFAR_V4: Ipv4Addr = Ipv4Addr::new(1, 0, 0, 1);
const AFAR_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111);

/// Reads the state of the host and of the paths of `config`.
pub fn survey(config: &Config) -> Result<Survey, RulesError> {
    let manager = host::manager()?;
    let socket = events::listen(0).map_err(|err| RulesError::io("look at the devices", &err))?;
    let seen = host::seen(&config.mptcp, &manager, &socket)?;
    // The plan assumes that no endpoint exists, so that it includes those of a running daemon.
    let none = Seen { endpoints: Vec::new(), ..seen.clone() };
    let wanted = plan(&config.mptcp, &none).add;
    let ways = wanted.iter().map(|(endpoint, path)| (path.clone(), *endpoint, way(endpoint))).collect();
    Ok(Survey { seen, ways, counters: counters() })
}

/// Looks up the device by which packets from `endpoint` leave. Subflows from an endpoint are bound to its device.
fn way(endpoint: &Endpoint) -> Way {
    let (from, to, family) = match endpoint.place.address {
        IpAddr::V4(v4) => (RouteAddress::Inet(v4), RouteAddress::Inet(AFAR_V4), AddressFamily::Inet),
        IpAddr::V6(v6) => (RouteAddress::Inet6(v6), RouteAddress::Inet6(AFAR_V6), AddressFamily::Inet6),
    };
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let length = if family == AddressFamily::Inet { 32 } else { 128 };
    // Request the routing entry itself: without a route, the kernel otherwise assumes that every address is on the
    // link.
    request.header.flags = RouteFlags::FibMatch;
    (request.header.source_prefix_length, request.header.destination_prefix_length) = (length, length);
    request.attributes = vec![RouteAttribute::Source(from), RouteAttribute::Destination(to)];
    if !endpoint.flags.announced() {
        request.attributes.push(RouteAttribute::Oif(endpoint.device));
    }
    let found = run(async |handle| handle.route().get(request).execute().try_next().await);
    let Ok(Some(route)) = found else { return Way::None };
    let leads_out = route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(index) => *index == endpoint.device,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == endpoint.device),
        _ => false,
    });
    match leads_out {
        true => Way::Out,
        // A subflow that is bound to the device does not leave by another.
        false if !endpoint.flags.announced() => Way::None,
        false => Way::ByAnother,
    }
}

/// Reads the MPTCP counters of the kernel, with the names that `nstat` shows.
fn counters() -> Vec<(String, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("MPTcpExt: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let both = names.split(' ').zip(values.split(' '));
    both.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}
