//! The wanted state of the host, and the changes that lead to it, as data. PURE.
use crate::config::{Config, FastOpen};
use crate::units::OwnMark;

use super::chains;
use super::change::{Family, LocalRoute, Op, PRIORITY, PolicyRule};
use super::ruleset::{Gate, Outline, Ruleset, TABLE};
use super::state::{RulesOwner, Saved, State, Sysctl};

/// A route in our table that is not ours. It is never changed, but it can be an obstacle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// The address family.
    pub family: Family,
    /// The route, as `ip route` begins its line.
    pub text: String,
    /// The effect on diverted packets.
    pub effect: Effect,
}

/// The effect of a foreign route in our table on diverted packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is `local default dev lo`, exactly the route that we need (1.1.0's init script leaves it). It is used, and
    /// not removed.
    Serves,
    /// It is another default route, so ours cannot be added.
    Blocks,
    /// It routes some destinations elsewhere.
    Diverts,
}

/// The observed state of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The policy rules with our protocol number.
    pub rules: Vec<PolicyRule>,
    /// The routes with our protocol number, in any table.
    pub routes: Vec<LocalRoute>,
    /// The other routes in the table that the configuration names.
    pub foreign: Vec<ForeignRoute>,
    /// Our nft table.
    pub table: Option<SeenTable>,
    /// The present values of the sysctls that can be read.
    pub sysctls: Vec<(Sysctl, u32)>,
}

/// The observed nft table of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenTable {
    /// Names, hooks and comments, without the state.
    pub outline: Outline,
    /// The record in the table.
    pub state: Option<State>,
    /// The state of the gate.
    pub gate: Gate,
    /// The output of `nft list table`, which an undo restores.
    pub listing: String,
}

/// The wanted state of the host.
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
    /// Returns the state that `config` asks for, on a host with or without IPv6.
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

    /// Returns the same plan with `owner` as the owner of the rules.
    pub fn installed_by(self, owner: RulesOwner) -> Self {
        Self { owner, ..self }
    }

    /// Returns a foreign default route in the wanted table, because of which ours cannot be added; `None` if there is
    /// none.
    pub fn obstacle<'s>(&self, seen: &'s Seen) -> Option<&'s ForeignRoute> {
        let wanted = |route: &&ForeignRoute| self.routes.iter().any(|ours| ours.family == route.family);
        seen.foreign.iter().filter(wanted).find(|route| route.effect == Effect::Blocks)
    }

    /// Returns the changes from the state `seen` to the plan; empty if they agree. The routes and rules that the nft
    /// table needs come before it, because the table starts the interception. Stale routes and rules are deleted last.
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

    /// Returns the text of the whole nft table, with the record `state`.
    pub fn table(&self, state: &State) -> String {
        braces(&format!("{}{state}", self.ruleset))
    }

    /// Returns the policy rules and routes.
    pub fn netlink(&self) -> (&[PolicyRule], &[LocalRoute]) {
        (&self.rules, &self.routes)
    }

    /// Returns the sysctls to set.
    pub fn sysctls(&self) -> &[Sysctl] {
        &self.sysctls
    }

    /// Returns the outline that `nft` should list.
    pub fn outline(&self) -> Outline {
        self.ruleset.outline()
    }

    /// Returns the fingerprint of the ruleset.
    pub fn fingerprint(&self) -> u64 {
        self.ruleset.fingerprint()
    }

    /// Returns the owner of the rules. Rules that an operator has installed stay the operator's, also if a daemon
    /// repairs or replaces them.
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

/// Returns the value of `sysctl` before we first changed it; `None` if there is nothing to restore. An older record is
/// valid as long as the value has not been changed since.
fn was(seen: &Seen, sysctl: Sysctl) -> Option<u32> {
    let now = now(seen, sysctl)?;
    restored(seen, sysctl).or((now != sysctl.target(now)).then_some(now))
}

/// Returns the recorded value to which `sysctl` is restored; `None` if there is no record, or the value has been
/// changed since.
pub fn restored(seen: &Seen, sysctl: Sysctl) -> Option<u32> {
    let was = seen.table.as_ref()?.state.as_ref()?.was(sysctl)?;
    (now(seen, sysctl)? == sysctl.target(was)).then_some(was)
}

/// Returns a table that intercepts nothing and only keeps the record.
pub fn inert_table(state: &State) -> String {
    braces(&state.to_string())
}

fn braces(inside: &str) -> String {
    format!("table inet {TABLE} {{\n{inside}}}\n")
}
