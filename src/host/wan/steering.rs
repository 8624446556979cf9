//! The policy rules that lead our own sockets to the mirror, and their place among those of the host. PURE.
use std::fmt;
use std::num::NonZeroU32;

use crate::host::rules::change::Family;
use crate::units::{Mark, OwnMark};

/// Marks our rules and routes as the mirror's (`ip route … protocol 156`). Those that bring connections to the listener
/// have another number, as they can live longer.
pub const PROTOCOL: u8 = 156;

/// `ip rule add iif lo fwmark MARK lookup TABLE priority PRIORITY`: `iif lo` is what this host sends itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SteeringRule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Of server legs, or of client legs.
    pub mark: Mark,
    /// The mirror.
    pub table: NonZeroU32,
    /// When.
    pub priority: u32,
}

/// A policy rule of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// They are asked in ascending order.
    pub priority: u32,
    /// What it does.
    pub does: Does,
}

/// What a policy rule does, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// One of ours.
    SteeringRule(SteeringRule),
    /// Every packet that comes so far looks up the main table.
    Main,
    /// Anything else.
    Other,
}

/// What has to change, so that the rules of `family` lead to `table`. `None`: no rule sends everything to the main
/// table, or it has another one of its priority before it, so that ours cannot come directly before it.
///
/// Directly before the main table: every rule that an operator has put before it goes before ours, too.
pub fn moved(rules: &[Rule], family: Family, own: OwnMark, table: NonZeroU32) -> Option<Move> {
    let main = rules.iter().position(|rule| rule.does == Does::Main)?;
    let priority = rules[main].priority.checked_sub(1)?;
    // Between rules of one priority there is no place.
    let beside = |rule: &Rule| rule.priority > priority && !matches!(rule.does, Does::SteeringRule(_));
    if rules[..main].iter().any(beside) {
        return None;
    }
    let steering = |bit| Some(SteeringRule { family, mark: Mark::new(bit, own.mask())?, table, priority });
    let wanted = [steering(own.server())?, steering(own.client())?];
    let ours = ours(rules);
    let before = &rules[main.saturating_sub(wanted.len())..main];
    let in_place =
        |steering: &SteeringRule| before.iter().any(|rule| rule.does == Does::SteeringRule(*steering));
    if ours.len() == wanted.len() && wanted.iter().all(in_place) {
        return Some(Move::default());
    }
    Some(Move { away: ours, here: wanted.to_vec() })
}

/// Those of ours.
pub fn ours(rules: &[Rule]) -> Vec<SteeringRule> {
    let steering =
        |rule: &Rule| if let Does::SteeringRule(steering) = rule.does { Some(steering) } else { None };
    rules.iter().filter_map(steering).collect()
}

/// Rules of ours that go and come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Move {
    /// What has to go first.
    pub away: Vec<SteeringRule>,
    /// What comes instead.
    pub here: Vec<SteeringRule>,
}

/// What follows `ip rule add` or `delete`.
impl fmt::Display for SteeringRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mark, table, priority, .. } = self;
        write!(f, "iif lo fwmark {mark} lookup {table} priority {priority} protocol {PROTOCOL}")
    }
}
