//! The initial window: connections over the devices of `[wan]` begin with more segments in flight. EFFECT.
//!
//! The kernel takes a connection's initial congestion window from its route. So that no route of the operator's is changed, our own
//! sockets, which carry a mark, look up a table of ours first: the mirror of the main table. How it is made and why it is safe is
//! in `docs/rules.md`.
//!
//! [`plan`], [`route`] and [`lead`] decide (PURE); `netlink`, `message` and `events` look and change (EFFECT); [`keep`] keeps the
//! mirror in step while the daemon runs (WIRING). The functions here block, and need no runtime.
pub(crate) mod events;
mod message;
mod netlink;
pub mod plan;
pub mod route;
pub mod steering;
pub mod sync;
#[cfg(test)]
mod tests;

use std::time::Duration;

use socket2::Socket;

use crate::config::{Config, Interface, Wan};
use crate::host::rules::{self, Caller, Errors, Removed, RulesError};
use crate::units::OwnMark;

use netlink::Ours;
use plan::{Change, Plan, Seen, Table};
use route::Key;
pub use steering::PROTOCOL;

/// While routes keep changing, they are read again so often before what was read is taken.
const LOOKS: usize = 3;

/// Why `[wan]` may come to nothing.
pub const UNMANAGED: &str =
    "rules.manage = false: nobody keeps its routes in step, so there are none, and wan.devices has no effect";

/// What a look at the host came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// What connections over each device get, a sentence each.
    pub standing: Vec<String>,
    /// When to look again although nothing has been said to change.
    pub again: Option<Duration>,
}

/// Looks at the host and makes the mirror right. `socket` is from [`events::listen`]; what has come there is dealt with.
fn look(wan: &Wan, own: OwnMark, socket: &Socket) -> Result<Look, RulesError> {
    let drain = || events::drain(socket).map_err(|err| RulesError::io("hear of changed routes", &err));
    drain()?;
    let mut looks = 0;
    let (seen, settled) = loop {
        let seen = netlink::seen(wan, socket)?;
        looks += 1;
        // What changes while it is read may have been read by halves.
        let changing = drain()?;
        if !changing || looks == LOOKS {
            break (seen, !changing);
        }
    };
    let Plan { changes, mut standing, again } = planned(wan, own, &seen)?;
    standing.extend(netlink::apply(wan.table, &changes)?);
    Ok(Look { standing, again: if settled { again } else { Some(Duration::ZERO) } })
}

fn planned(wan: &Wan, own: OwnMark, seen: &Seen) -> Result<Plan, RulesError> {
    let step = format!("mirror the main table in table {}", wan.table);
    plan::plan(wan, own, seen).map_err(|why| RulesError::Failed { step, why: why.to_string() })
}

/// Takes the mirror away, whatever configuration it is from: goes on after an error, and returns all. A running daemon's
/// is left to an operator's `rules remove`: it would be back at once.
pub fn remove(own: OwnMark, caller: Caller) -> Result<Removed, Errors> {
    let Ours { steering_rules, routes } = netlink::ours()?;
    let mut removed = Removed::default();
    if steering_rules.is_empty() && routes.is_empty() {
        return Ok(removed);
    }
    if caller == Caller::Operator && rules::in_use(own).unwrap_or(true) {
        removed.remarks.push(
            "the routes and policy rules of the initial window (protocol 156) are the running daemon's: they go when it ends"
                .to_owned(),
        );
        return Ok(removed);
    }
    let mut changes: Vec<_> =
        steering_rules.iter().map(|steering| (steering.table, Change::DeleteRule(*steering))).collect();
    removed.changes.extend(changes.iter().map(|(_, change)| change.to_string()));
    for (table, routes) in &routes {
        changes.extend(plan::changes_to(&Table::new(), routes).into_iter().map(|change| (*table, change)));
        removed.changes.push(format!("delete {} routes of ours from table {table}", routes.len()));
    }
    Errors::collect(netlink::apply_all(&changes)).map_or(Ok(removed), Err)
}

/// What there is of the mirror that `config` asks for, a sentence each; nothing where it asks for none.
pub fn status(config: &Config) -> Result<Vec<String>, RulesError> {
    if config.wan.devices.is_empty() {
        return Ok(Vec::new());
    }
    if !config.rules.manage {
        return Ok(vec![format!("initial window: {UNMANAGED}")]);
    }
    let seen = seen(config)?;
    let Plan { changes, mut standing, .. } = planned(&config.wan, config.rules.own_mark, &seen)?;
    let there =
        !seen.mirror.is_empty() || seen.rules.iter().any(|(_, rules)| !steering::ours(rules).is_empty());
    // A copy that is missing although its key is there has been refused.
    let refused: Vec<&Key> = changes.iter().filter_map(Change::copied).collect();
    let head = match (there, refused.len() == changes.len()) {
        (_, true) => "as it should be",
        (true, false) => {
            "not in step with the main table: the daemon mends it at once; without a daemon it harms nobody"
        }
        (false, false) => {
            "not there: `run` adds it, keeps it in step with the main table and removes it at its end"
        }
    };
    match refused.len() == changes.len() {
        true => standing.extend(refused.into_iter().filter(|_| there).map(plan::not_copied)),
        false => standing.clear(),
    }
    let standing = standing.into_iter().map(|line| format!("initial window: {line}"));
    Ok(std::iter::once(format!("initial window (table {}): {head}", config.wan.table))
        .chain(standing)
        .collect())
}

/// Why the mirror that `config` asks for cannot be made, if so.
pub fn obstacle(config: &Config) -> Option<String> {
    if config.wan.devices.is_empty() || !config.rules.manage {
        return None;
    }
    let seen = seen(config).map_err(|err| err.to_string());
    let plan = |seen: Seen| {
        plan::plan(&config.wan, config.rules.own_mark, &seen).map(drop).map_err(|why| why.to_string())
    };
    seen.and_then(plan).err()
}

fn seen(config: &Config) -> Result<Seen, RulesError> {
    let socket =
        events::listen(events::ROUTES).map_err(|err| RulesError::io("hear of changed routes", &err))?;
    netlink::seen(&config.wan, &socket)
}

/// What `run` would add, as comments for people; nothing where `config` asks for none.
pub fn print(config: &Config) -> String {
    let wan = &config.wan;
    if wan.devices.is_empty() || !config.rules.manage {
        return String::new();
    }
    let names: Vec<&str> = wan.devices.iter().map(Interface::as_str).collect();
    let own = config.rules.own_mark;
    format!(
        "# While `run` runs: what own sockets send asks the routing table {table} directly before the main table.\n\
         #   from all fwmark {server:#x}/{mask:#x} iif lo lookup {table} proto {PROTOCOL}\n\
         #   from all fwmark {client:#x}/{mask:#x} iif lo lookup {table} proto {PROTOCOL}\n\
         # It has each route of the main table: those over {names} with initcwnd {window}, the others as throw.\n",
        table = wan.table,
        server = own.server(),
        client = own.client(),
        mask = own.mask(),
        names = names.join(", "),
        window = wan.initial_window,
    )
}
