//! Comparison of the observed state with the plan, in sentences. PURE.
use super::change::Op;
use super::plan::{Effect, Plan, Seen, SeenTable};
use super::ruleset::{Outline, Shape, TABLE};

/// The result of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The rules are installed as the configuration asks.
    Installed,
    /// Parts of the rules are missing or have been changed.
    Partly,
    /// The rules are those of another configuration or version.
    Differ,
    /// No rules of ours are installed.
    Absent,
}

/// Returns the verdict on the observed state `seen`.
pub fn verdict(plan: &Plan, seen: &Seen) -> Verdict {
    let state = seen.table.as_ref().and_then(|table| table.state.as_ref());
    if plan.ops(seen).is_empty() {
        Verdict::Installed
    } else if seen.table.is_none() && seen.rules.is_empty() && seen.routes.is_empty() {
        Verdict::Absent
    } else if state.is_some_and(|state| state.fingerprint != plan.fingerprint()) {
        Verdict::Differ
    } else {
        Verdict::Partly
    }
}

/// Returns every difference, one sentence each.
pub fn differences(plan: &Plan, seen: &Seen) -> Vec<String> {
    let words = |op: &Op| match op {
        Op::AddRule(rule) => vec![format!("the policy rule {rule} is missing")],
        Op::AddRoute(route) => vec![format!("the route {route} is missing")],
        Op::DeleteRule(rule) => {
            vec![format!("the policy rule {rule} is ours, but not of this configuration")]
        }
        Op::DeleteRoute(route) => vec![format!("the route {route} is ours, but not of this configuration")],
        Op::Table { .. } => match &seen.table {
            None => vec![format!("the nft table inet {TABLE} is missing")],
            Some(table) => table_differences(plan, table),
        },
        Op::Sysctl { sysctl, from, to } => vec![format!("{} is {from}, and should be {to}", sysctl.name())],
    };
    plan.ops(seen).iter().flat_map(words).collect()
}

/// Returns remarks about settings of the host that are not ours and affect the rules.
pub fn remarks(plan: &Plan, seen: &Seen, ipv6: bool) -> Vec<String> {
    let mut remarks = Vec::new();
    if !ipv6 {
        remarks.push("IPv6 is disabled on the loopback device: only IPv4 is intercepted".to_owned());
    }
    let (_, routes) = plan.netlink();
    for route in &seen.foreign {
        let Some(ours) = routes.iter().find(|ours| ours.family == route.family) else { continue };
        let what = format!(
            "table {} has the {} route \"{}\", which is not ours",
            ours.table, route.family, route.text
        );
        remarks.push(match route.effect {
            Effect::Serves => format!("{what}: it is used, and stays when the rules are removed"),
            Effect::Blocks => format!("{what}: ours cannot be added beside it; choose another table (rules.table)"),
            Effect::Diverts => format!(
                "{what}: intercepted connections that it matches fail; delete it or choose another table (rules.table)"
            ),
        });
    }
    remarks
}

fn table_differences(plan: &Plan, table: &SeenTable) -> Vec<String> {
    let mut all = outline_differences(&plan.outline(), &table.outline);
    match &table.state {
        None => all.push(format!("the nft table inet {TABLE} has no record of its configuration")),
        Some(state) if state.fingerprint != plan.fingerprint() => {
            all.push(format!("the nft table inet {TABLE} is that of another configuration or version"));
        }
        Some(_) if all.is_empty() => {
            all.push(format!("the nft table inet {TABLE} records other sysctls or marks"));
        }
        Some(_) => {}
    }
    all
}

fn outline_differences(want: &Outline, have: &Outline) -> Vec<String> {
    let mut all: Vec<String> =
        want.sets.difference(&have.sets).map(|set| format!("set {set} is missing")).collect();
    all.extend(have.sets.difference(&want.sets).map(|set| format!("set {set} is not ours")));
    for (name, want) in &want.chains {
        match have.chains.get(name) {
            None => all.push(format!("chain {name} is missing")),
            Some(have) => all.extend(shape_differences(name, want, have)),
        }
    }
    let extra = have.chains.keys().filter(|name| !want.chains.contains_key(*name));
    all.extend(extra.map(|name| format!("chain {name} is not ours")));
    all
}

fn shape_differences(name: &str, want: &Shape, have: &Shape) -> Vec<String> {
    let mut all = Vec::new();
    if want.hook != have.hook {
        all.push(format!("chain {name} has another hook, priority or policy"));
    }
    if want.comments == have.comments {
        return all;
    }
    let missing = want.comments.iter().filter(|rule| !have.comments.contains(rule));
    all.extend(missing.map(|rule| format!("chain {name}: the rule \"{rule}\" is missing")));
    let extra = have.comments.iter().filter(|rule| !want.comments.contains(rule));
    all.extend(extra.map(|rule| format!("chain {name}: the rule \"{rule}\" is not ours")));
    if all.is_empty() {
        all.push(format!("chain {name}: the rules are in another order or number"));
    }
    all
}
