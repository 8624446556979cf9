//! The changes to a host that installing and removing are made of, each with what takes it back. PURE.
use std::fmt;
use std::num::NonZeroU32;

use crate::units::Mark;

use super::ruleset::TABLE;
use super::state::Sysctl;

/// Marks our rules and routes as ours (`ip rule … protocol 155`): above what the kernel (0–4) and the routing
/// daemons of `/etc/iproute2/rt_protos` use.
pub const PROTOCOL: u8 = 155;
/// Of our policy rules: before those that operators add (from 32765 downwards) or number by hand.
pub const PRIORITY: u32 = 100;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// `ip rule add fwmark MARK lookup TABLE priority PRIORITY protocol PROTOCOL`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Which packets.
    pub mark: Mark,
    /// Where they look up their route.
    pub table: NonZeroU32,
    /// When.
    pub priority: u32,
}

/// `ip route add local default dev lo table TABLE protocol PROTOCOL`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRoute {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The table in which every address is the box's own.
    pub table: NonZeroU32,
}

/// One change to the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Add a policy rule.
    AddRule(PolicyRule),
    /// Delete one of ours.
    DeleteRule(PolicyRule),
    /// Add a route.
    AddRoute(LocalRoute),
    /// Delete one of ours.
    DeleteRoute(LocalRoute),
    /// Put `new` in the place of `old` in one transaction; each is a whole `table … { … }`.
    Table {
        /// What is there before; `None`: nothing.
        old: Option<String>,
        /// What is there afterwards; `None`: nothing.
        new: Option<String>,
    },
    /// Set a sysctl.
    Sysctl {
        /// Which.
        sysctl: Sysctl,
        /// The value before.
        from: u32,
        /// The value afterwards.
        to: u32,
    },
}

/// The transaction that makes `new` the whole of our table, whatever is there before. (A table cannot be flushed and
/// filled again: the priority of a chain that exists cannot change.)
pub fn script(new: Option<&str>) -> String {
    format!("table inet {TABLE} {{}}\ndelete table inet {TABLE}\n{}", new.unwrap_or_default())
}

impl Op {
    /// What takes this change back.
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

/// What the change does, after "could not" or as an item of a list.
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
    /// The program and option that speaks of this family.
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
    /// What follows `ip rule add` or `delete`.
    pub fn words(&self) -> String {
        format!("{} protocol {PROTOCOL}", self.bare())
    }

    /// The same for a rule that an operator adds: not ours.
    pub fn bare(&self) -> String {
        let Self { mark, table, priority, .. } = self;
        format!("fwmark {mark} lookup {table} priority {priority}")
    }
}

impl LocalRoute {
    /// What follows `ip route add` or `delete`.
    pub fn words(&self) -> String {
        format!("{} protocol {PROTOCOL}", self.bare())
    }

    /// The same for a route that an operator adds: not ours.
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
