//! The policy rules that send the program's sockets to the mirror, and their place among the host's rules. PURE.
use std::fmt;
use std::num::NonZeroU32;

use crate::host::rules::change::Family;
use crate::units::{Mark, OwnMark};

/// The protocol number of the mirror's rules and routes (`ip route … protocol 156`). The rules that bring connections
/// to the listener have another number (155), because they can outlive the mirror.
pub const PROTOCOL: u8 = 156;

/// A policy rule of the mirror: `ip rule add iif lo fwmark MARK lookup TABLE priority PRIORITY`. `iif lo` matches the
/// packets that this host sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SteeringRule {
    /// The address family.
    pub family: Family,
    /// The mark of server legs, or of client legs.
    pub mark: Mark,
    /// The table of the mirror.
    pub table: NonZeroU32,
    /// The rule's place: the kernel tries rules in ascending order of priority.
    pub priority: u32,
}

/// A policy rule of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The rule's place: the kernel tries rules in ascending order of priority.
    pub priority: u32,
    /// The action, as far as it matters here.
    pub does: Does,
}

/// The action of a policy rule, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// A rule of the mirror.
    SteeringRule(SteeringRule),
    /// A rule that sends every packet to the main table.
    Main,
    /// Any other rule.
    Other,
}

/// Returns the changes after which the rules of `family` lead to `table`. `None`: no rule sends everything to the main
/// table, or another rule of the same priority comes before it and leaves no place directly before it.
///
/// The mirror's rules stand directly before the main table's rule. So every rule that an operator has put before the
/// main table also takes precedence over the mirror.
pub fn moved(rules: &[Rule], family: Family, own: OwnMark, table: NonZeroU32) -> Option<Move> {
    let main = rules.iter().position(|rule| rule.does == Does::Main)?;
    let priority = rules[main].priority.checked_sub(1)?;
    // No rule can be inserted between two rules of the same priority.
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

/// Returns the mirror's rules among `rules`.
pub fn ours(rules: &[Rule]) -> Vec<SteeringRule> {
    let steering =
        |rule: &Rule| if let Does::SteeringRule(steering) = rule.does { Some(steering) } else { None };
    rules.iter().filter_map(steering).collect()
}

/// A change of the mirror's policy rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Move {
    /// The rules to delete first.
    pub away: Vec<SteeringRule>,
    /// The rules to add afterwards.
    pub here: Vec<SteeringRule>,
}

/// Writes the arguments of `ip rule add` or `ip rule delete`.
impl fmt::Display for SteeringRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mark, table, priority, .. } = self;
        write!(f, "iif lo fwmark {mark} lookup {table} priority {priority} protocol {PROTOCOL}")
    }
}
