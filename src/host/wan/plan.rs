//! The mirror: its wanted content, and the changes that produce it, in an order that is safe at each step. PURE.
//!
//! A socket that is sent to the mirror must take the same way as through the main table. So the mirror has every route
//! of the main table under the same key. If the whole route leads over the wan devices, it is a copy with the window;
//! otherwise it is a `throw`, which leads back to the main table.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::{Interface, Wan};
use crate::host::rules::change::Family;
use crate::units::OwnMark;

use super::route::{Key, Route, Way};
use super::steering::{self, PROTOCOL, Rule, SteeringRule};

/// The largest main table that is mirrored. With so many routes, a look takes 0.15 s in a debug build, and the first
/// mirror 1 s.
pub const MOST_ROUTES: usize = 10_000;

/// The ways of a table by their keys.
pub type Table = BTreeMap<Key, Way>;

/// The observed state of the host.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The devices of the configuration, and their indexes where they exist.
    pub devices: Vec<(Interface, Option<u32>)>,
    /// The policy rules in their order.
    pub rules: Vec<(Family, Vec<Rule>)>,
    /// The main table.
    pub main: Vec<Route>,
    /// The program's routes in the table of the mirror.
    pub mirror: Vec<Route>,
    /// A route of another program in the table of the mirror.
    pub foreign: Option<Key>,
    /// The time until the first route of the main table expires.
    pub expiry: Option<Duration>,
}

/// A change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Delete a policy rule of the mirror.
    DeleteRule(SteeringRule),
    /// Put a route into the mirror; it replaces a route with the same key.
    Put(Key, Way),
    /// Delete a route of the mirror.
    Delete(Key),
    /// Add a policy rule.
    AddRule(SteeringRule),
}

/// The changes to make, and their result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The changes, in the order in which they are made.
    pub changes: Vec<Change>,
    /// The initial window that connections get, one sentence for each device or exception.
    pub standing: Vec<String>,
    /// The time until the next look if the kernel reports no change; `None`: no such limit.
    pub again: Option<Duration>,
}

/// The reason why the mirror cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Another program's route is in the table.
    #[error(
        "the routing table {table} has the {} route \"{route}\", which is not ours: choose another table (wan.table), or delete that route",
        route.family
    )]
    Taken {
        /// The table.
        table: NonZeroU32,
        /// The route in it.
        route: Key,
    },
    /// The main table has too many routes to follow.
    #[error("the main table has {0} routes; at most {MOST_ROUTES} are mirrored")]
    TooMany(usize),
}

/// Returns the changes that make the mirror as `wan` asks on a host in the state `seen`.
pub fn plan(wan: &Wan, own: OwnMark, seen: &Seen) -> Result<Plan, Obstacle> {
    if let Some(route) = seen.foreign.clone() {
        return Err(Obstacle::Taken { table: wan.table, route });
    }
    if seen.main.len() > MOST_ROUTES {
        return Err(Obstacle::TooMany(seen.main.len()));
    }
    let devices: Vec<u32> = seen.devices.iter().filter_map(|(_, index)| *index).collect();
    let (mut wanted, mut away, mut here, mut standing) = (Table::new(), Vec::new(), Vec::new(), Vec::new());
    for (family, rules) in &seen.rules {
        let main = seen.main.iter().filter(|route| route.key.family == *family);
        let mut table = mirror(main, &devices, wan.initial_window);
        match steering::moved(rules, *family, own, wan.table).filter(|_| !table.is_empty()) {
            Some(moved) => {
                away.extend(moved.away);
                here.extend(moved.here);
                wanted.append(&mut table);
            }
            None => {
                away.extend(steering::ours(rules));
                standing.extend((!table.is_empty()).then(|| no_place(*family)));
            }
        }
    }
    standing.extend(seen.devices.iter().map(|(name, index)| told(name, *index, &wanted, wan.initial_window)));
    let changes = away.into_iter().map(Change::DeleteRule);
    let changes =
        changes.chain(changes_to(&wanted, &seen.mirror)).chain(here.into_iter().map(Change::AddRule));
    Ok(Plan { changes: changes.collect(), standing, again: seen.expiry })
}

/// Returns the mirror of `main`; empty when no route leads over `devices` alone.
pub fn mirror<'r>(main: impl Iterator<Item = &'r Route>, devices: &[u32], segments: u32) -> Table {
    let mut table = Table::new();
    for Route { key, way } in main {
        let way = match way {
            Way::Out(path) if path.is_over(devices) && !key.to.is_link_local() => {
                Way::Out(path.clone().copy(segments))
            }
            _ => Way::Throw,
        };
        // Between two routes with the same key, the kernel chooses by properties that cannot be copied.
        table.entry(key.clone()).and_modify(|way| *way = Way::Throw).or_insert(way);
    }
    if table.values().all(|way| *way == Way::Throw) {
        table.clear();
    }
    table
}

/// Returns the changes that turn `present` into `wanted`. At each step, a destination is routed as before or as wanted:
///
/// 1. Every key that is not yet right becomes a `throw`, which leads to the main table.
/// 2. The copies follow. If the kernel refuses one, its `throw` stays.
/// 3. Stale copies are deleted, the least specific first; stale `throw` routes are deleted last.
pub fn changes_to(wanted: &Table, present: &[Route]) -> Vec<Change> {
    let there: BTreeMap<&Key, &Way> = present.iter().map(|route| (&route.key, &route.way)).collect();
    let wrong = wanted.iter().filter(|(key, way)| there.get(key) != Some(way));
    let (throws, ways): (Vec<_>, Vec<_>) = wrong.partition(|(_, way)| **way == Way::Throw);
    let not_thrown = |key: &&Key| there.get(*key) != Some(&&Way::Throw);
    let first = throws.iter().chain(&ways).map(|(key, _)| *key).filter(not_thrown);
    let stale = there.iter().rev().filter(|(key, _)| !wanted.contains_key(**key));
    let (stale_throws, stale_ways): (Vec<_>, Vec<_>) = stale.partition(|(_, way)| ***way == Way::Throw);
    first
        .map(|key| Change::Put(key.clone(), Way::Throw))
        .chain(ways.iter().map(|(key, way)| Change::Put((*key).clone(), (*way).clone())))
        .chain(stale_ways.into_iter().chain(stale_throws).map(|(key, _)| Change::Delete((*key).clone())))
        .collect()
}

/// Returns the sentence about the initial window of connections over a device.
fn told(name: &Interface, index: Option<u32>, table: &Table, segments: u32) -> String {
    let name = name.as_str();
    let Some(index) = index else {
        return format!(
            "{name} does not exist yet: its connections get the initial window as soon as it does"
        );
    };
    let over = |way: &Way| matches!(way, Way::Out(path) if path.hops.iter().any(|hop| hop.device == index));
    let families: BTreeSet<Family> =
        table.iter().filter(|(_, way)| over(way)).map(|(key, _)| key.family).collect();
    match families.into_iter().map(|family| family.to_string()).collect::<Vec<_>>() {
        none if none.is_empty() => {
            format!("{name}: no route to mirror yet: its connections have the kernel's initial window")
        }
        some => {
            format!("{name}: {} connections begin with a window of {segments} segments", some.join(" and "))
        }
    }
}

/// Returns the sentence about a route whose copy the kernel refuses.
pub fn not_copied(key: &Key) -> String {
    let family = key.family;
    format!(
        "the kernel refuses a copy of the {family} route \"{key}\": its connections have the kernel's initial window"
    )
}

fn no_place(family: Family) -> String {
    format!(
        "{family}: there is no place directly before a policy rule that sends everything to the main table: connections have the kernel's initial window"
    )
}

impl Change {
    /// Returns the key if the change puts a copy of a route; `None` for all other changes.
    pub fn copied(&self) -> Option<&Key> {
        match self {
            Self::Put(key, Way::Out(_)) => Some(key),
            _ => None,
        }
    }
}

/// Writes the change as a phrase that can follow "could not" or stand in a list.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ours = format!("protocol {PROTOCOL}");
        match self {
            Self::DeleteRule(steering) => {
                write!(f, "delete the policy rule \"{steering}\" ({})", steering.family)
            }
            Self::AddRule(steering) => write!(f, "add the policy rule \"{steering}\" ({})", steering.family),
            Self::Put(key, Way::Throw) => write!(f, "put the route \"throw {key} {ours}\" ({})", key.family),
            Self::Put(key, _) => write!(f, "put the route \"{key} {ours}\" ({})", key.family),
            Self::Delete(key) => write!(f, "delete the route \"{key} {ours}\" ({})", key.family),
        }
    }
}
