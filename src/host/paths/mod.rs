//! The paths between two boxes: endpoints and limits of the kernel's MPTCP path manager, for `[[mptcp.path]]`. EFFECT.
//! `docs/pair.md` explains how to configure a pair.
//!
//! [`plan`], [`endpoint`], [`record`], [`lingering`] and [`standing`] decide (PURE); `host` and `netlink` read and
//! change the host (EFFECT); [`sync`] follows addresses that appear and vanish while the daemon runs (WIRING). The
//! functions here block, and need no runtime.
pub mod endpoint;
mod host;
pub mod lingering;
mod netlink;
pub mod plan;
pub mod record;
pub mod standing;
mod survey;
pub mod sync;
#[cfg(test)]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::config::{Config, Mptcp};
use crate::host::rules::{self, Caller, Errors, Removed, RulesError};
use crate::host::wan::events;
use crate::units::OwnMark;

use endpoint::{Endpoint, Existing};
use lingering::{Served, claims};
use netlink::PathManager;
use plan::{Plan, Seen};
use record::{Raised, Record};
use standing::Standing;
pub use survey::survey;

/// The log line for a host on which Multipath TCP is switched off, so that no path is used.
pub const SWITCHED_OFF: &str =
    "net.mptcp.enabled = 0: connections are plain TCP, and no path is used: sysctl -w net.mptcp.enabled=1";

/// The daemon's own part of the path manager's state, while the daemon runs.
#[derive(Debug)]
struct Ours {
    record: Record,
    /// The daemon's endpoints, and since when their addresses are missing.
    served: Served,
    /// Whether the limits have been raised; the operator may change them afterwards.
    limits: bool,
}

impl Ours {
    /// Restores the state from the record in `seen`. The record is empty after a start that removed everything.
    fn found(mptcp: &Mptcp, seen: &Seen) -> Self {
        Self { record: seen.record.clone(), served: Served::at_first(claims(mptcp, seen)), limits: false }
    }
}

/// The result of one look at the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Look {
    /// The state of each path.
    pub standing: Vec<Standing>,
    /// The steps that the kernel refused, one sentence each; a retry may succeed.
    pub refused: Vec<String>,
    /// The limits that have been raised.
    pub raised: Vec<Raised>,
    /// The time until the next look if the kernel reports no change.
    pub again: Option<Duration>,
}

/// Looks at the host and corrects the endpoints. At the first look, the record determines the daemon's own part.
fn look(mptcp: &Mptcp, ours: &mut Option<Ours>, socket: &Socket) -> Result<Look, RulesError> {
    events::drain(socket).map_err(|err| RulesError::io("read the changes of addresses", &err))?;
    let manager = host::manager()?;
    let now = Instant::now();
    let recorded = host::record()?;
    let seen = Seen { record: recorded.clone(), ..host::seen(mptcp, &manager, socket)? };
    let ours = ours.get_or_insert_with(|| Ours::found(mptcp, &seen));
    let seen = Seen { record: ours.record.clone(), claims: ours.served.claims(now), ..seen };
    let plan = plan::plan(mptcp, &seen);
    let raise = if ours.limits { Vec::new() } else { plan::to_raise(mptcp, &seen) };
    // The record comes before the changes, so that the next process can attribute an interrupted change.
    let meanwhile = ours.record.with(&plan.record.places, &raise);
    if meanwhile != recorded {
        host::remember(&meanwhile)?;
    }
    ours.record = meanwhile.clone();
    let look = apply(&manager, plan, &raise, ours, now)?;
    if ours.record != meanwhile {
        host::remember(&ours.record)?;
    }
    Ok(look)
}

fn apply(
    manager: &PathManager,
    plan: Plan,
    raise: &[Raised],
    ours: &mut Ours,
    now: Instant,
) -> Result<Look, RulesError> {
    let Plan { delete, add, record, serving, lingering, standing } = plan;
    let mut look = Look { standing, ..Look::default() };
    for raised in raise {
        match manager.set_limit(raised.limit, raised.set) {
            Ok(()) => look.raised.push(*raised),
            Err(err) => look.refused.push(format!("{raised}: refused: {err}")),
        }
    }
    ours.limits = look.raised.len() == raise.len();
    for endpoint in &delete {
        let step = format!("delete the MPTCP endpoint {}", endpoint.endpoint.place);
        manager.delete(endpoint).map_err(|err| RulesError::io(step, &err))?;
    }
    ours.record.places = record.places;
    ours.served.update(serving, lingering, now);
    look.again = ours.served.next(now);
    for (endpoint, path) in &add {
        let Err(err) = manager.add(endpoint) else { continue };
        ours.record.places.retain(|place| *place != endpoint.place);
        look.standing.retain(|standing| !standing.serves(endpoint.place));
        look.refused.push(format!("{path}: {}", refusal(endpoint, &err)));
    }
    Ok(look)
}

fn refusal(endpoint: &Endpoint, err: &io::Error) -> String {
    let Endpoint { place, id, .. } = endpoint;
    let why = match (err.kind(), place.port, id) {
        (io::ErrorKind::AddrInUse, Some(_), _) => {
            "another program listens on that port: give the path another one (mptcp.path.port)".to_owned()
        }
        (io::ErrorKind::AlreadyExists, _, Some(id)) => {
            format!("the kernel has an endpoint with that address, or the id {id} (mptcp.path.id): {err}")
        }
        _ => err.to_string(),
    };
    format!("{place} cannot be an endpoint: {why}")
}

/// Removes the daemon's own endpoints and restores the limits, independent of the current configuration. Continues
/// after an error, and returns all errors. An operator's `rules remove` leaves the state of a running daemon alone.
pub fn remove(own: OwnMark, caller: Caller) -> Result<Removed, Errors> {
    let record = host::record()?;
    let mut removed = Removed::default();
    if record == Record::default() {
        return Ok(removed);
    }
    if caller == Caller::Operator && rules::in_use(own).unwrap_or(true) {
        removed.remarks.push(
            "the MPTCP endpoints and limits belong to the running daemon, which removes them when it ends"
                .to_owned(),
        );
        return Ok(removed);
    }
    let manager = host::manager()?;
    let mut errors = Vec::new();
    match manager.endpoints() {
        Ok(endpoints) => {
            let ours = endpoints.iter().filter(|found| record.places.contains(&found.endpoint.place));
            for endpoint in ours {
                delete(&manager, endpoint, &mut removed, &mut errors);
            }
        }
        Err(err) => errors.push(RulesError::io("list the MPTCP endpoints", &err)),
    }
    restore(&manager, &record, &mut removed, &mut errors);
    if errors.is_empty() {
        errors.extend(host::remember(&Record::default()).err());
    }
    Errors::collect(errors).map_or(Ok(removed), Err)
}

fn delete(manager: &PathManager, found: &Existing, removed: &mut Removed, errors: &mut Vec<RulesError>) {
    let change = format!("delete the MPTCP endpoint {}", found.endpoint.place);
    match manager.delete(found) {
        Ok(()) => removed.changes.push(change),
        Err(err) => errors.push(RulesError::io(change, &err)),
    }
}

/// Restores the limits. A limit that another program has changed in the meantime is left as it is.
fn restore(manager: &PathManager, record: &Record, removed: &mut Removed, errors: &mut Vec<RulesError>) {
    for &Raised { limit, was, set } in &record.raised {
        let name = limit.name();
        let step = format!("set the MPTCP limit {name} back to {was}");
        match manager.limits().map(|limits| limit.of(&limits)) {
            Ok(now) if now == set => match manager.set_limit(limit, was) {
                Ok(()) => removed.changes.push(step),
                Err(err) => errors.push(RulesError::io(step, &err)),
            },
            Ok(now) if now == was => {}
            Ok(now) => {
                removed.remarks.push(format!(
                    "the MPTCP limit {name} is {now}, which the daemon did not set: left unchanged"
                ));
            }
            Err(err) => errors.push(RulesError::io(step, &err)),
        }
    }
}

/// Returns what `run` would configure on this host, as comments for people; empty if `config` names no path.
pub fn print(config: &Config) -> String {
    if config.mptcp.paths.is_empty() {
        return String::new();
    }
    let line = |path: &crate::config::MptcpPath| {
        let flags = endpoint::Flags::new(path.announce.is_some(), path.backup);
        let port = path.announce.map(|port| format!(" port {port}")).unwrap_or_default();
        format!("#   endpoint of {path}: {flags}{port}\n")
    };
    let lines: String = config.mptcp.paths.iter().map(line).collect();
    format!("# While `run` runs, for the kernel's MPTCP path manager (`ip mptcp`):\n{lines}")
}
