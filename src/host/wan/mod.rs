//! The initial window: connections over the devices of `[wan]` begin with more segments in flight. EFFECT.
//!
//! The kernel takes a connection's initial congestion window from its route. The operator's routes stay unchanged: the
//! program's sockets, which carry a mark, first look up a table of their own, the mirror of the main table.
//! `docs/rules.md` describes how it is made and why it is safe.
//!
//! [`plan`], [`route`] and [`steering`] decide (PURE); `netlink`, `message` and `events` read and change the host
//! (EFFECT); [`sync`] keeps the mirror in step while the daemon runs (WIRING). The functions here block, and need no
//! runtime.
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

/// The number of times that the routes are read while they keep changing; the last reading is then used.
const LOOKS: usize = 3;

/// The reason why `[wan]` has no effect with `rules.manage = false`.
pub const UNMANAGED: &str = "rules.manage = false: the daemon adds no routes, so wan.devices has no effect";

/// The result of a look at the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The initial window that connections get, one sentence for each device or exception.
    pub standing: Vec<String>,
    /// The time until the next look if the kernel reports no change; `None`: no such limit.
    pub again: Option<Duration>,
}

/// Reads the host's routes and rules and corrects the mirror. `socket` is from [`events::listen`]; its events are
/// drained.
fn look(wan: &Wan, own: OwnMark, socket: &Socket) -> Result<Look, RulesError> {
    let drain = || events::drain(socket).map_err(|err| RulesError::io("listen for route changes", &err));
    drain()?;
    let mut looks = 0;
    let (seen, settled) = loop {
        let seen = netlink::seen(wan, socket)?;
        looks += 1;
        // Routes that change during the dump may be incomplete in it.
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

/// Removes the mirror of any configuration; continues after an error, and returns all errors.
///
/// For an operator's `rules remove` it leaves a running daemon's mirror: the daemon would add it again at once.
pub fn remove(own: OwnMark, caller: Caller) -> Result<Removed, Errors> {
    let Ours { steering_rules, routes } = netlink::ours()?;
    let mut removed = Removed::default();
    if steering_rules.is_empty() && routes.is_empty() {
        return Ok(removed);
    }
    if caller == Caller::Operator && rules::in_use(own).unwrap_or(true) {
        removed.remarks.push(
            "the routes and policy rules of the initial window (protocol 156) belong to the running daemon, which removes them when it ends"
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

/// Returns the state of the mirror that `config` asks for, in sentences; empty if it asks for none.
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
    // A copy that is missing while its key is there: the kernel has refused it.
    let refused: Vec<&Key> = changes.iter().filter_map(Change::copied).collect();
    let head = match (there, refused.len() == changes.len()) {
        (_, true) => "as it should be",
        (true, false) => {
            "not in step with the main table: a running daemon corrects it at once; without one it has no effect"
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

/// Returns the reason why the mirror that `config` asks for cannot be made; `None` if it can, or is not asked for.
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
        events::listen(events::ROUTES).map_err(|err| RulesError::io("listen for route changes", &err))?;
    netlink::seen(&config.wan, &socket)
}

/// Returns what `run` would add, as comments to read; empty if `config` asks for no mirror.
pub fn print(config: &Config) -> String {
    let wan = &config.wan;
    if wan.devices.is_empty() || !config.rules.manage {
        return String::new();
    }
    let names: Vec<&str> = wan.devices.iter().map(Interface::as_str).collect();
    let own = config.rules.own_mark;
    format!(
        "# While `run` runs, packets of its own sockets look up the routing table {table} directly before the main table.\n\
         #   from all fwmark {server:#x}/{mask:#x} iif lo lookup {table} proto {PROTOCOL}\n\
         #   from all fwmark {client:#x}/{mask:#x} iif lo lookup {table} proto {PROTOCOL}\n\
         # This table has each route of the main table: those over {names} with initcwnd {window}, the others as throw.\n",
        table = wan.table,
        server = own.server(),
        client = own.client(),
        mask = own.mask(),
        names = names.join(", "),
        window = wan.initial_window,
    )
}
