//! The changes to a host of which installation and removal consist, each with its inverse. PURE.
use std::fmt;
use std::num::NonZeroU32;

use crate::units::Mark;

use super::ruleset::TABLE;
use super::state::Sysctl;

/// The protocol number that identifies our rules and routes (`ip rule … protocol 155`). The kernel uses 0–4; the
/// routing daemons in `/etc/iproute2/rt_protos` do not use 155.
pub const PROTOCOL: u8 = 155;
/// The priority of our policy rules: before the rules that operators add without a number (from 32765 downwards), or
/// usually number by hand.
pub const PRIORITY: u32 = 100;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A policy rule of ours: `ip rule add fwmark MARK lookup TABLE priority PRIORITY protocol PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRule {
    /// The address family.
    pub family: Family,
    /// The mark of the packets that the rule matches.
    pub mark: Mark,
    /// The table in which these packets look up their route.
    pub table: NonZeroU32,
    /// The rule's place: the kernel tries rules in ascending order of priority.
    pub priority: u32,
}

/// A route of ours: `ip route add local default dev lo table TABLE protocol PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRoute {
    /// The address family.
    pub family: Family,
    /// The table in which every address is the box's own.
    pub table: NonZeroU32,
}

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Add a policy rule.
    AddRule(PolicyRule),
    /// Delete a policy rule of ours.
    DeleteRule(PolicyRule),
    /// Add a route.
    AddRoute(LocalRoute),
    /// Delete a route of ours.
    DeleteRoute(LocalRoute),
    /// Replace `old` by `new` in one transaction; each is a whole `table … { … }`.
    Table {
        /// The table before; `None`: no table.
        old: Option<String>,
        /// The table afterwards; `None`: no table.
        new: Option<String>,
    },
    /// Set a sysctl.
    Sysctl {
        /// The sysctl.
        sysctl: Sysctl,
        /// The value before.
        from: u32,
        /// The value afterwards.
        to: u32,
    },
}

/// Returns the transaction after which our table is exactly `new`, from any previous state. It deletes the table
/// instead of flushing it, because the priority of an existing chain cannot change.
pub fn script(new: Option<&str>) -> String {
    format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n{}", new.unwrap_or_default())
}

impl Op {
    /// Returns the change that undoes this one.
    pub fn inverse(&self) -> Self {
        match self.clone() {
            Self::AddRule(rule) => Self::DeleteRule(rule),
            Self::DeleteRule(rule) => Self::AddRule(rule),
            Self::AddRoute(route) => Self::DeleteRoute(route),
            Self::DeleteRoute(route) => Self::AddRoute(route),
            Self::Table { old, new } => Self::Table { old: new, new: old },
            Self::Sysctl { sysctl, from, to } => Self::Sysctl { sysctl, from: to, to: from },
        }
    }
}

/// Writes the change as a phrase that can follow "could not" or stand in a list.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddRule(rule) => write!(f, "add the policy rule {rule}"),
            Self::DeleteRule(rule) => write!(f, "delete the policy rule {rule}"),
            Self::AddRoute(route) => write!(f, "add the route {route}"),
            Self::DeleteRoute(route) => write!(f, "delete the route {route}"),
            Self::Table { old: None, .. } => write!(f, "add the nft table inet {TABLE}"),
            Self::Table { new: None, .. } => write!(f, "delete the nft table inet {TABLE}"),
            Self::Table { .. } => write!(f, "replace the nft table inet {TABLE}"),
            Self::Sysctl { sysctl, from, to } => {
                write!(f, "set {} to {to} (it was {from})", sysctl.name())
            }
        }
    }
}

impl Family {
    /// Returns the command of iproute2 for this family.
    pub const fn ip(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip -6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl PolicyRule {
    /// Returns the arguments of `ip rule add` or `ip rule delete`.
    pub fn words(&self) -> String {
        format!("{} protocol {PROTOCOL}", self.bare())
    }

    /// Returns the same arguments without our protocol number, for a rule that an operator adds.
    pub fn bare(&self) -> String {
        let Self { mark, table, priority, .. } = self;
        format!("fwmark {mark} lookup {table} priority {priority}")
    }
}

impl LocalRoute {
    /// Returns the arguments of `ip route add` or `ip route delete`.
    pub fn words(&self) -> String {
        format!("{} protocol {PROTOCOL}", self.bare())
    }

    /// Returns the same arguments without our protocol number, for a route that an operator adds.
    pub fn bare(&self) -> String {
        format!("local default dev lo table {}", self.table)
    }
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({})", self.words(), self.family)
    }
}

impl fmt::Display for LocalRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" ({})", self.words(), self.family)
    }
}
