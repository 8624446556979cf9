//! Whether an `input` chain lets intercepted packets through. PURE.
//!
//! A diverted packet has the divert mark, is TCP, is untracked (on the client leg) and arrives on `rules.interfaces`.
//! The matches of a rule are evaluated for such a packet, as far as its properties are known.
use serde_json::Value;

use super::ruleset::{Chain, Ruleset};
use crate::config::Config;

/// The fate of intercepted packets in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The chain accepts them.
    Accepted,
    /// The chain accepts only packets from certain addresses or interfaces.
    Depends,
    /// The chain drops them.
    Dropped,
}

/// Returns the fate of intercepted packets in `chain`, a chain at the input hook.
pub fn fate(config: &Config, ruleset: &Ruleset, chain: &Chain) -> Fate {
    let mut walk = Walk { config, ruleset, some_accepted: false };
    let dropped = match walk.chain(chain, 0) {
        Verdict::Accept => false,
        Verdict::Drop => true,
        Verdict::Through => chain.policy_drop,
    };
    match (dropped, walk.some_accepted) {
        (false, _) => Fate::Accepted,
        (true, true) => Fate::Depends,
        (true, false) => Fate::Dropped,
    }
}

/// Whether a match holds for none, some or all intercepted packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    No,
    Some,
    All,
}

/// The result of a chain's rules for packets that meet all matches; `Through`: no rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
    Through,
}

struct Walk<'a> {
    config: &'a Config,
    ruleset: &'a Ruleset,
    some_accepted: bool,
}

impl Walk<'_> {
    fn chain(&mut self, chain: &Chain, depth: usize) -> Verdict {
        for rule in &chain.rules {
            let (holds, statement) = self.matches(&rule.expr);
            let Some((name, body)) = statement.filter(|_| holds > Holds::No) else { continue };
            let verdict = match name {
                "accept" => Verdict::Accept,
                "drop" | "reject" => Verdict::Drop,
                "return" if holds == Holds::All => return Verdict::Through,
                "jump" | "goto" => self.called(chain, body, depth),
                _ => Verdict::Through,
            };
            match (verdict, holds) {
                (Verdict::Accept, Holds::Some) => self.some_accepted = true,
                (Verdict::Accept | Verdict::Drop, Holds::All) => return verdict,
                _ if name == "goto" && holds == Holds::All => return Verdict::Through,
                _ => {}
            }
        }
        Verdict::Through
    }

    fn called(&mut self, from: &Chain, body: &Value, depth: usize) -> Verdict {
        const DEEPEST: usize = 16; // NFT_JUMP_STACK_SIZE
        let target = body.get("target").and_then(Value::as_str);
        match target.and_then(|name| self.ruleset.target(from, name)) {
            Some(chain) if depth < DEEPEST => self.chain(chain, depth + 1),
            _ => Verdict::Through,
        }
    }

    /// Returns for which packets all matches of a rule hold, and the statement that the rule then executes.
    fn matches<'e>(&self, expr: &'e [Value]) -> (Holds, Option<(&'e str, &'e Value)>) {
        let mut holds = Holds::All;
        for part in expr {
            let Some((name, body)) = part.as_object().and_then(|object| object.iter().next()) else {
                continue;
            };
            match name.as_str() {
                "match" => holds = holds.min(self.holds(body)),
                "counter" | "log" | "mangle" => {}
                "xt" if body.get("name").is_some_and(|name| name == "comment") => {}
                "xt" if body.get("name").is_some_and(|name| name == "REJECT") => {
                    return (holds, Some(("reject", body)));
                }
                "vmap" => return self.mapped(body, holds),
                "accept" | "drop" | "reject" | "return" | "jump" | "goto" => {
                    return (holds, Some((name, body)));
                }
                // A limit, or an expression that is unknown here: the rule counts as one that does not match.
                _ => holds = Holds::No,
            }
        }
        (holds, None)
    }

    /// Looks up untracked packets in a verdict map by the state of connection tracking.
    fn mapped<'e>(&self, body: &'e Value, holds: Holds) -> (Holds, Option<(&'e str, &'e Value)>) {
        let by_state = body.pointer("/key/ct/key").is_some_and(|key| key == "state");
        let entries = body.pointer("/data/set").and_then(Value::as_array).filter(|_| by_state);
        let entry = entries
            .into_iter()
            .flatten()
            .find(|entry| entry.get(0).is_some_and(|state| state == "untracked"));
        let verdict = entry.and_then(|entry| entry.get(1)?.as_object()?.iter().next());
        (holds, verdict.map(|(name, body)| (name.as_str(), body)))
    }

    fn holds(&self, body: &Value) -> Holds {
        let (Some(left), Some(right)) = (body.get("left"), body.get("right")) else { return Holds::No };
        let negated = body.get("op").is_some_and(|op| op == "!=");
        let holds = |yes: bool| if yes != negated { Holds::All } else { Holds::No };
        let path = |pointer: &str| left.pointer(pointer).and_then(Value::as_str);
        match (path("/meta/key"), path("/payload/field"), path("/ct/key")) {
            (Some("mark"), ..) => holds(contains_number(right, self.config.rules.mark.value())),
            (Some("l4proto"), ..) | (_, Some("protocol" | "nexthdr"), _) => {
                holds(names(right).any(|name| name == "tcp"))
            }
            (Some("iif" | "iifname"), ..) => self.arrives_on(right, negated),
            (Some("nfproto" | "iifgroup" | "iiftype"), ..) | (_, Some("saddr" | "sport"), _) => Holds::Some,
            (_, _, Some("state")) => holds(names(right).any(|name| name == "untracked")),
            _ if path("/socket/key") == Some("transparent") => holds(right == 1),
            _ => masked_mark(left).map_or(Holds::No, |mask| {
                holds(contains_number(right, self.config.rules.mark.value() & mask))
            }),
        }
    }

    /// Returns whether intercepted packets arrive on the interfaces of a match.
    fn arrives_on(&self, right: &Value, negated: bool) -> Holds {
        let listed: Vec<&str> = names(right).collect();
        let ours = &self.config.rules.interfaces;
        let known = !listed.iter().any(|name| name.contains(['@', '*']));
        let here = ours.iter().filter(|ours| listed.contains(&ours.as_str())).count();
        match (known, listed.as_slice(), negated) {
            (true, ["lo"], _) => {
                if negated {
                    Holds::All
                } else {
                    Holds::No
                }
            }
            (true, _, false) if !ours.is_empty() && here == ours.len() => Holds::All,
            (true, _, true) if !ours.is_empty() && here == 0 => Holds::All,
            (true, _, false) if !ours.is_empty() && here == 0 => Holds::No,
            _ => Holds::Some,
        }
    }
}

/// Returns the mask of `meta mark & MASK`.
fn masked_mark(left: &Value) -> Option<u32> {
    let parts = left.get("&")?;
    parts.get(0)?.pointer("/meta/key").filter(|key| *key == "mark")?;
    u32::try_from(parts.get(1)?.as_u64()?).ok()
}

/// Returns the names on the right side of a match: one, a list, or a set.
fn names(right: &Value) -> impl Iterator<Item = &str> {
    items(right).iter().filter_map(Value::as_str)
}

fn contains_number(right: &Value, number: u32) -> bool {
    items(right).iter().any(|item| match item.pointer("/range") {
        Some(range) => {
            let end = |at| range.get(at).and_then(Value::as_u64);
            end(0).zip(end(1)).is_some_and(|(first, last)| (first..=last).contains(&u64::from(number)))
        }
        None => *item == number,
    })
}

fn items(right: &Value) -> &[Value] {
    let list = right.get("set").unwrap_or(right);
    list.as_array().map_or(std::slice::from_ref(list), Vec::as_slice)
}
