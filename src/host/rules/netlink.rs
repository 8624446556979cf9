//! Reading and changing policy rules and routes by rtnetlink. EFFECT.
//!
//! Each call has a thread, a runtime and a socket of its own: callers need no runtime, and may run inside one.
use std::io;
use std::net::IpAddr;
use std::num::NonZeroU32;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion};

use crate::units::Mark;

use super::change::{Family, LocalRoute, PROTOCOL, PolicyRule};
use super::plan::{Effect, ForeignRoute};

/// The index of the loopback device in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
const LOOPBACK: u32 = 1;

/// Lists the policy rules that have our protocol number and the form of ours.
pub fn rules(family: Family) -> io::Result<Vec<PolicyRule>> {
    run(async |handle| {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let all: Vec<RuleMessage> = handle.rule().get(version).execute().try_collect().await?;
        Ok(all.iter().filter_map(|message| our_rule(family, message)).collect())
    })
}

/// Lists the routes that have our protocol number and the form of ours, in any table.
pub fn routes(family: Family) -> io::Result<Vec<LocalRoute>> {
    let mut filter = RouteMessage::default();
    filter.header.protocol = RouteProtocol::Other(PROTOCOL);
    let all = dump(family, filter)?;
    let ours = all.iter().filter(|message| is_local_default(message) && is_ours(message));
    Ok(ours.filter_map(|message| Some(LocalRoute { family, table: table(message)? })).collect())
}

/// Lists the routes in `in_table` that are not ours.
pub fn foreign_routes(family: Family, in_table: NonZeroU32) -> io::Result<Vec<ForeignRoute>> {
    let mut filter = RouteMessage::default();
    filter.attributes.push(RouteAttribute::Table(in_table.get()));
    let all = dump(family, filter)?;
    let foreign = all.iter().filter(|message| table(message) == Some(in_table));
    let foreign = foreign.filter(|message| !(is_local_default(message) && is_ours(message)));
    Ok(foreign.map(|message| foreign_route(family, message)).collect())
}

/// Adds a policy rule, as `ip rule add` does.
pub fn add_rule(rule: &PolicyRule) -> io::Result<()> {
    run(async |handle| {
        let mut request = handle.rule().add();
        *request.message_mut() = rule_message(rule);
        request.execute().await
    })
}

/// Deletes a policy rule, as `ip rule delete` does; a rule that does not exist is no error.
pub fn delete_rule(rule: &PolicyRule) -> io::Result<()> {
    gone_is_fine(run(async |handle| handle.rule().del(rule_message(rule)).execute().await))
}

/// Adds a route, as `ip route add` does.
pub fn add_route(route: &LocalRoute) -> io::Result<()> {
    run(async |handle| handle.route().add(route_message(route)).execute().await)
}

/// Deletes a route, as `ip route delete` does; a route that does not exist is no error.
pub fn delete_route(route: &LocalRoute) -> io::Result<()> {
    gone_is_fine(run(async |handle| handle.route().del(route_message(route)).execute().await))
}

/// Runs `work` on a new thread with a netlink connection of its own, and waits for its result.
pub(crate) fn run<T: Send>(work: impl AsyncFnOnce(Handle) -> Result<T, Error> + Send) -> io::Result<T> {
    let on_thread = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let _inside = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        runtime.spawn(connection);
        runtime.block_on(work(handle)).map_err(to_io)
    };
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new().name("rtnetlink".to_owned()).spawn_scoped(scope, on_thread)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the rtnetlink thread panicked")))
    })
}

/// Converts the error; keeps the errno if the kernel has answered.
pub(crate) fn to_io(err: Error) -> io::Error {
    match err {
        Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

/// Ignores the error of a deletion whose object does not exist: ENOENT for a rule, ESRCH for a route.
pub(crate) fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    let gone = [rustix::io::Errno::NOENT, rustix::io::Errno::SRCH].map(|errno| Some(errno.raw_os_error()));
    match result {
        Err(err) if gone.contains(&err.raw_os_error()) => Ok(()),
        other => other,
    }
}

fn dump(family: Family, mut filter: RouteMessage) -> io::Result<Vec<RouteMessage>> {
    filter.header.address_family = address_family(family);
    let all = run(async |handle| handle.route().get(filter).execute().try_collect().await);
    match all {
        // The kernel answers ENOENT for an IPv4 table that does not exist.
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn rule_message(rule: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::FwMark(rule.mark.value()),
        RuleAttribute::FwMask(rule.mark.mask()),
        RuleAttribute::Table(rule.table.get()),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    message
}

fn our_rule(family: Family, message: &RuleMessage) -> Option<PolicyRule> {
    let (mut value, mut mask, mut table, mut priority, mut ours) = (None, None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::Other(PROTOCOL),
            RuleAttribute::FwMark(is) => value = Some(*is),
            RuleAttribute::FwMask(is) => mask = Some(*is),
            RuleAttribute::Table(is) => table = NonZeroU32::new(*is),
            RuleAttribute::Priority(is) => priority = Some(*is),
            _ => {}
        }
    }
    let mark = Mark::new(value?, mask?)?;
    (ours && message.header.action == RuleAction::ToTable).then_some(PolicyRule {
        family,
        mark,
        table: table?,
        priority: priority?,
    })
}

fn route_message(route: &LocalRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(route.family);
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![RouteAttribute::Table(route.table.get()), RouteAttribute::Oif(LOOPBACK)];
    message
}

fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(PROTOCOL)
}

fn is_local_default(message: &RouteMessage) -> bool {
    message.header.kind == RouteType::Local
        && message.header.destination_prefix_length == 0
        && message.attributes.contains(&RouteAttribute::Oif(LOOPBACK))
}

fn table(message: &RouteMessage) -> Option<NonZeroU32> {
    let attribute = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    NonZeroU32::new(attribute.unwrap_or(message.header.table.into()))
}

fn foreign_route(family: Family, message: &RouteMessage) -> ForeignRoute {
    let length = message.header.destination_prefix_length;
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::from(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::from(*address)),
        _ => None,
    });
    let to = destination.map_or_else(|| "default".to_owned(), |address| format!("{address}/{length}"));
    let effect = match (is_local_default(message), length) {
        (true, _) => Effect::Serves,
        (false, 0) => Effect::Blocks,
        (false, _) => Effect::Diverts,
    };
    let kind = format!("{:?}", message.header.kind).to_lowercase();
    ForeignRoute { family, text: format!("{kind} {to}"), effect }
}
