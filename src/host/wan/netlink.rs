//! Reading and changing the host's routes and policy rules by rtnetlink. EFFECT.
use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::AsFd;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::{Error, Handle, IpVersion};
use rustix::net::netdevice::name_to_index;

use crate::config::Wan;
use crate::host::rules::RulesError;
use crate::host::rules::change::Family;
use crate::host::rules::netlink::{gone_is_fine, run, to_io};
use crate::host::rules::observe::families;

use super::message;
use super::plan::{Change, Seen, not_copied};
use super::route::Route;
use super::steering::{self, Rule, SteeringRule};

/// Reads the state of the host that matters for `wan`; `socket` serves to look up the indexes of devices.
pub fn seen(wan: &Wan, socket: impl AsFd) -> Result<Seen, RulesError> {
    // Any error counts as an absent device.
    let index = |name: &str| name_to_index(&socket, name).ok();
    let devices = wan.devices.iter().map(|name| (name.clone(), index(name.as_str()))).collect();
    let seen = run(async |handle| {
        let mut seen = Seen { devices, ..Seen::default() };
        for &family in families() {
            seen.rules.push((family, rules(&handle, family).await?));
            let main = dump(&handle, message::in_table(family, message::MAIN)).await?;
            for message in main.iter().filter(|message| message::table(message) == Some(message::MAIN)) {
                let expiry = message::expiry(message);
                if expiry.is_none_or(|expiry| !expiry.is_zero()) {
                    seen.main.push(message::route(family, message));
                    seen.expiry = expiry.into_iter().chain(seen.expiry).min();
                }
            }
            let mirror = dump(&handle, message::in_table(family, wan.table)).await?;
            let mirror = mirror.iter().filter(|message| message::table(message) == Some(wan.table));
            let (ours, foreign): (Vec<_>, Vec<_>) = mirror.partition(|message| message::is_ours(message));
            seen.mirror.extend(ours.into_iter().map(|message| message::route(family, message)));
            seen.foreign =
                seen.foreign.or(foreign.first().map(|message| message::route(family, message).key));
        }
        Ok(seen)
    });
    seen.map_err(|err| RulesError::io("list the routes and policy rules", &err))
}

/// The rules and routes of the mirror, of any configuration.
pub struct Ours {
    /// The policy rules of the mirror.
    pub steering_rules: Vec<SteeringRule>,
    /// The routes of the mirror, by table.
    pub routes: BTreeMap<NonZeroU32, Vec<Route>>,
}

/// Lists the rules and routes of the mirror.
pub fn ours() -> Result<Ours, RulesError> {
    let ours = run(async |handle| {
        let mut ours = Ours { steering_rules: Vec::new(), routes: BTreeMap::new() };
        for &family in families() {
            ours.steering_rules.extend(steering::ours(&rules(&handle, family).await?));
            let all = dump(&handle, message::with_our_protocol(family)).await?;
            for message in all.iter().filter(|message| message::is_ours(message)) {
                let Some(table) = message::table(message) else { continue };
                ours.routes.entry(table).or_default().push(message::route(family, message));
            }
        }
        Ok(ours)
    });
    ours.map_err(|err| RulesError::io("list the routes and policy rules", &err))
}

/// Makes the changes in their order, and stops at the first that fails. A refused copy of a route is no failure: its
/// destination already leads to the main table. Returns one sentence for each refused copy.
pub fn apply(table: NonZeroU32, changes: &[Change]) -> Result<Vec<String>, RulesError> {
    let all = async |handle: Handle| {
        let mut refused = Vec::new();
        for change in changes {
            match (make(&handle, table, change).await, change.copied()) {
                (Ok(()), _) => {}
                (Err(_), Some(key)) => refused.push(not_copied(key)),
                (Err(err), None) => return Ok(Err(RulesError::io(change, &err))),
            }
        }
        Ok(Ok(refused))
    };
    run(all).unwrap_or_else(|err| Err(RulesError::io("change routes", &err)))
}

/// Makes the changes, continues after a failure, and returns all errors.
pub fn apply_all(changes: &[(NonZeroU32, Change)]) -> Vec<RulesError> {
    let all = async |handle: Handle| {
        let mut errors = Vec::new();
        for (table, change) in changes {
            let made = make(&handle, *table, change).await;
            errors.extend(made.err().map(|err| RulesError::io(change, &err)));
        }
        Ok(errors)
    };
    run(all).unwrap_or_else(|err| vec![RulesError::io("change routes", &err)])
}

async fn make(handle: &Handle, table: NonZeroU32, change: &Change) -> io::Result<()> {
    match change {
        Change::AddRule(steering) => {
            let mut request = handle.rule().add();
            *request.message_mut() = message::steering(steering);
            request.execute().await.map_err(to_io)
        }
        Change::DeleteRule(steering) => {
            gone_is_fine(handle.rule().del(message::steering(steering)).execute().await.map_err(to_io))
        }
        Change::Delete(key) => {
            gone_is_fine(handle.route().del(message::delete(table, key)).execute().await.map_err(to_io))
        }
        Change::Put(key, way) => {
            let request = handle.route().add(message::put(table, key, way)).replace();
            request.execute().await.map_err(to_io)
        }
    }
}

async fn rules(handle: &Handle, family: Family) -> Result<Vec<Rule>, Error> {
    let version = match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    };
    let all: Vec<RuleMessage> = handle.rule().get(version).execute().try_collect().await?;
    Ok(all.iter().map(|message| message::rule(family, message)).collect())
}

async fn dump(handle: &Handle, filter: RouteMessage) -> Result<Vec<RouteMessage>, Error> {
    match handle.route().get(filter).execute().try_collect().await {
        // The kernel answers ENOENT for an IPv4 table that does not exist.
        Err(err) if to_io(err.clone()).kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}
