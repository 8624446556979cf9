//! What the host should look like, and the changes that make it so, as data. PURE.
use crate::config::{Config, FastOpen};
use crate::units::OwnMark;

use super::chains;
use super::change::{Family, LocalRoute, Op, PRIORITY, PolicyRule};
use super::ruleset::{Gate, Outline, Ruleset, TABLE};
use super::state::{RulesOwner, Saved, State, Sysctl};

/// A route in our table that is not ours: never touched, but it may stand in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// IPv4 or IPv6.
    pub family: Family,
    /// As `ip route` would begin the line.
    pub text: String,
    /// What it means for us.
    pub effect: Effect,
}

/// What a foreign route in our table does to diverted packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is `local default dev lo`, the very route that we need (1.1.0's init script leaves it): used and left.
    Serves,
    /// It is another default route: ours cannot be added.
    Blocks,
    /// It takes some destinations away.
    Diverts,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The policy rules with our protocol number.
    pub rules: Vec<PolicyRule>,
    /// The routes with our protocol number, in any table.
    pub routes: Vec<LocalRoute>,
    /// The others in the table that we want.
    pub foreign: Vec<ForeignRoute>,
    /// Our nft table.
    pub table: Option<SeenTable>,
    /// The present values, as far as they can be read.
    pub sysctls: Vec<(Sysctl, u32)>,
}

/// Our nft table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenTable {
    /// Names, hooks and comments, without the state.
    pub outline: Outline,
    /// The record in it.
    pub state: Option<State>,
    /// Whether its gate is open.
    pub gate: Gate,
    /// As `nft list table` prints it: what an undo puts back.
    pub listing: String,
}

/// What should be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    rules: Vec<PolicyRule>,
    routes: Vec<LocalRoute>,
    ruleset: Ruleset,
    sysctls: Vec<Sysctl>,
    own: OwnMark,
    owner: RulesOwner,
}

impl Plan {
    /// What `config` asks for, on a host with or without IPv6.
    pub fn new(config: &Config, ipv6: bool) -> Self {
        let (mark, table) = (config.rules.mark, config.rules.table);
        let families = if ipv6 { vec![Family::V4, Family::V6] } else { vec![Family::V4] };
        let rule = |&family| PolicyRule { family, mark, table, priority: PRIORITY };
        let mut sysctls = vec![Sysctl::EarlyDemux];
        if config.client.fast_open != FastOpen::Off {
            sysctls.push(Sysctl::FastOpen);
        }
        Self {
            rules: families.iter().map(rule).collect(),
            routes: families.iter().map(|&family| LocalRoute { family, table }).collect(),
            ruleset: chains::ruleset(config, ipv6),
            sysctls,
            own: config.rules.own_mark,
            owner: RulesOwner::Daemon,
        }
    }

    /// The same, installed by `keeper`.
    pub fn installed_by(self, owner: RulesOwner) -> Self {
        Self { owner, ..self }
    }

    /// What stands in the way: somebody else's default route in the table that we want.
    pub fn obstacle<'s>(&self, seen: &'s Seen) -> Option<&'s ForeignRoute> {
        let wanted = |route: &&ForeignRoute| self.routes.iter().any(|ours| ours.family == route.family);
        seen.foreign.iter().filter(wanted).find(|route| route.effect == Effect::Blocks)
    }

    /// The changes from what is `seen` to what should be; none when all is as it should be. What the table needs
    /// comes before the table, which starts the interception; what it no longer needs goes last.
    pub fn ops(&self, seen: &Seen) -> Vec<Op> {
        let state = self.state(seen);
        let missing_rules = self.rules.iter().filter(|rule| !seen.rules.contains(rule)).copied();
        let missing_routes = self.routes.iter().filter(|route| !has_route(seen, route)).copied();
        let stale_rules = seen.rules.iter().filter(|rule| !self.rules.contains(rule)).copied();
        let stale_routes = seen.routes.iter().filter(|route| !self.routes.contains(route)).copied();
        missing_routes
            .map(Op::AddRoute)
            .chain(missing_rules.map(Op::AddRule))
            .chain(self.table_op(seen, &state))
            .chain(self.sysctl_ops(seen))
            .chain(stale_rules.map(Op::DeleteRule))
            .chain(stale_routes.map(Op::DeleteRoute))
            .collect()
    }

    /// The whole table, with the record `state`.
    pub fn table(&self, state: &State) -> String {
        braces(&format!("{}{state}", self.ruleset))
    }

    /// The policy rules and routes.
    pub fn netlink(&self) -> (&[PolicyRule], &[LocalRoute]) {
        (&self.rules, &self.routes)
    }

    /// The sysctls.
    pub fn sysctls(&self) -> &[Sysctl] {
        &self.sysctls
    }

    /// What `nft` should list.
    pub fn outline(&self) -> Outline {
        self.ruleset.outline()
    }

    /// The fingerprint of the ruleset.
    pub fn fingerprint(&self) -> u64 {
        self.ruleset.fingerprint()
    }

    /// What an operator installed stays his, also when a daemon has to mend or replace it.
    pub fn owner(&self, seen: &Seen) -> RulesOwner {
        match seen.table.as_ref().and_then(|table| table.state.as_ref()) {
            Some(State { owner: RulesOwner::Operator, .. }) => RulesOwner::Operator,
            _ => self.owner,
        }
    }

    fn state(&self, seen: &Seen) -> State {
        let saved = self.sysctls.iter().filter_map(|&sysctl| Some(Saved { sysctl, was: was(seen, sysctl)? }));
        let fingerprint = self.ruleset.fingerprint();
        State { fingerprint, own: self.own, owner: self.owner(seen), saved: saved.collect() }
    }

    fn table_op(&self, seen: &Seen, state: &State) -> Option<Op> {
        let there = |table: &SeenTable| {
            table.outline == self.ruleset.outline() && table.state.as_ref() == Some(state)
        };
        let old = seen.table.as_ref();
        (!old.is_some_and(there))
            .then(|| Op::Table { old: old.map(|table| table.listing.clone()), new: Some(self.table(state)) })
    }

    fn sysctl_ops(&self, seen: &Seen) -> Vec<Op> {
        let op = |&(sysctl, from): &(Sysctl, u32)| {
            let to = match self.sysctls.contains(&sysctl) {
                true => sysctl.target(from),
                false => restored(seen, sysctl)?,
            };
            (from != to).then_some(Op::Sysctl { sysctl, from, to })
        };
        seen.sysctls.iter().filter_map(op).collect()
    }
}

fn has_route(seen: &Seen, route: &LocalRoute) -> bool {
    let serves = |other: &ForeignRoute| other.family == route.family && other.effect == Effect::Serves;
    seen.routes.contains(route) || seen.foreign.iter().any(serves)
}

fn now(seen: &Seen, sysctl: Sysctl) -> Option<u32> {
    seen.sysctls.iter().find(|(known, _)| *known == sysctl).map(|&(_, value)| value)
}

/// What `sysctl` was before we ever changed it; `None` when there is nothing to restore. An older record counts as
/// long as nobody has changed the value since.
fn was(seen: &Seen, sysctl: Sysctl) -> Option<u32> {
    let now = now(seen, sysctl)?;
    restored(seen, sysctl).or((now != sysctl.target(now)).then_some(now))
}

/// What `sysctl` is to be again: what the record says, unless somebody has changed the value since.
pub fn restored(seen: &Seen, sysctl: Sysctl) -> Option<u32> {
    let was = seen.table.as_ref()?.state.as_ref()?.was(sysctl)?;
    (now(seen, sysctl)? == sysctl.target(was)).then_some(was)
}

/// A table that intercepts nothing and only keeps the record.
pub fn inert_table(state: &State) -> String {
    braces(&state.to_string())
}

fn braces(inside: &str) -> String {
    format!("table inet {TABLE} {{\n{inside}}}\n")
}
