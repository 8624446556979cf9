//! What there is for the paths of a configuration, for `check`: nothing is changed. EFFECT.
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

/// Somewhere beyond every network of a box: nothing is sent there, only its route is asked for.
const AFAR_V4: Ipv4Addr = Ipv4Addr::new(1, 0, 0, 1);
const AFAR_V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111);

/// What there is.
pub fn survey(config: &Config) -> Result<Survey, RulesError> {
    let manager = host::manager()?;
    let socket = events::listen(0).map_err(|err| RulesError::io("look at the devices", &err))?;
    let seen = host::seen(&config.mptcp, &manager, &socket)?;
    // As if nothing were there yet: what a running daemon has made is wanted just as well.
    let none = Seen { endpoints: Vec::new(), ..seen.clone() };
    let wanted = plan(&config.mptcp, &none).add;
    let ways = wanted.iter().map(|(endpoint, path)| (path.clone(), *endpoint, way(endpoint))).collect();
    Ok(Survey { seen, ways, counters: counters() })
}

/// By which device what is sent from there leaves. Connections that are joined from an endpoint are bound to its device.
fn way(endpoint: &Endpoint) -> Way {
    let (from, to, family) = match endpoint.place.address {
        IpAddr::V4(v4) => (RouteAddress::Inet(v4), RouteAddress::Inet(AFAR_V4), AddressFamily::Inet),
        IpAddr::V6(v6) => (RouteAddress::Inet6(v6), RouteAddress::Inet6(AFAR_V6), AddressFamily::Inet6),
    };
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    let length = if family == AddressFamily::Inet { 32 } else { 128 };
    // The entry itself: else, for a device without a route, the kernel assumes that all the world is on its link.
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
        // A connection that is bound to the device does not leave by another.
        false if !endpoint.flags.announced() => Way::None,
        false => Way::ByAnother,
    }
}

/// The kernel's counters about MPTCP (`nstat`), by their names there.
fn counters() -> Vec<(String, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("MPTcpExt: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let both = names.split(' ').zip(values.split(' '));
    both.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect()
}
