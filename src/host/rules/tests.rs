//! Tests of the pure part: the plans for different hosts, and the inverse of every change.
use std::num::NonZeroU32;

use proptest::prelude::*;

use super::chains;
use super::change::{Family, LocalRoute, Op, PRIORITY, PolicyRule, script};
use super::compare::{Verdict, differences, verdict};
use super::plan::{Effect, ForeignRoute, Plan, Seen, SeenTable};
use super::ruleset::Outline;
use super::state::{RulesOwner, Saved, State, Sysctl};
use super::{Gate, iptables};
use crate::config::{Config, FastOpen, Interface};
use crate::units::{OwnMark, Port};

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

fn interfaces(names: &[&str]) -> Config {
    config(|config| {
        config.rules.interfaces = names.iter().map(|name| Interface::new(name).unwrap()).collect()
    })
}

fn other_marks() -> Config {
    config(|config| {
        config.rules.mark = "0x10000/0xff0000".parse().unwrap();
        config.rules.own_mark = OwnMark::new("0x60000000/0x60000000".parse().unwrap()).unwrap();
        config.rules.table = NonZeroU32::new(1000).unwrap();
        config.listen.port = Port::new(5555).unwrap();
    })
}

fn fast_open() -> Config {
    config(|config| config.client.fast_open = FastOpen::Cookie)
}

/// Returns a host without any installation, with the kernel's default sysctls.
fn fresh() -> Seen {
    Seen { sysctls: vec![(Sysctl::EarlyDemux, 1), (Sysctl::FastOpen, 1)], ..Seen::default() }
}

/// Returns the state of a model host after `op`. The listing of its nft table is the text that was installed.
fn after(mut seen: Seen, op: &Op) -> Seen {
    match op {
        Op::AddRule(rule) => seen.rules.push(*rule),
        Op::DeleteRule(rule) => seen.rules.retain(|there| there != rule),
        Op::AddRoute(route) => seen.routes.push(*route),
        Op::DeleteRoute(route) => seen.routes.retain(|there| there != route),
        Op::Table { old, new } => {
            assert_eq!(seen.table.map(|table| table.listing), *old, "replaces what is there");
            seen.table = new.clone().map(read);
        }
        Op::Sysctl { sysctl, from, to } => {
            let value = seen.sysctls.iter_mut().find(|(known, _)| known == sysctl).unwrap();
            assert_eq!(value.1, *from);
            value.1 = *to;
        }
    }
    seen
}

/// Parses the text of our table naively: each chain's name, hook and comments.
fn read(listing: String) -> SeenTable {
    let mut outline = Outline::default();
    let mut chain = String::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["set", name, ..] => drop(outline.sets.insert((*name).to_owned())),
            ["chain", name, "{"] => {
                chain = (*name).to_owned();
                outline.chains.entry(chain.clone()).or_default();
            }
            ["type", "filter", "hook", point, "priority", priority, ..] => {
                let priority = priority.trim_end_matches(';').parse().unwrap();
                let hook = super::ruleset::Hook {
                    point: (*point).to_owned(),
                    priority,
                    policy: "accept".to_owned(),
                };
                outline.chains.get_mut(&chain).unwrap().hook = Some(hook);
            }
            _ => {
                let comment =
                    line.split_once(" comment \"").map(|(_, comment)| comment.trim_end_matches('"'));
                outline.chains.entry(chain.clone()).or_default().comments.extend(comment.map(str::to_owned));
            }
        }
    }
    outline.chains.remove("");
    let state = outline.chains.remove("state").and_then(|shape| State::parse(&shape.comments));
    SeenTable { outline, state, gate: Gate::Open, listing }
}

fn installed(plan: &Plan, seen: Seen) -> Seen {
    plan.ops(&seen).iter().fold(seen, after)
}

#[test]
fn the_ruleset_for_each_kind_of_configuration() {
    let ruleset = |config: &Config, ipv6| chains::ruleset(config, ipv6).to_string();
    insta::assert_snapshot!("everywhere", ruleset(&Config::default(), true));
    insta::assert_snapshot!("everywhere_without_ipv6", ruleset(&Config::default(), false));
    insta::assert_snapshot!("one_interface", ruleset(&interfaces(&["lan0"]), true));
    insta::assert_snapshot!("several_interfaces", ruleset(&interfaces(&["lan0", "br-lan.7"]), true));
    insta::assert_snapshot!("other_marks_table_and_port", ruleset(&other_marks(), true));
}

#[test]
fn what_is_done_on_a_fresh_host_and_in_which_order() {
    let ops = |config: &Config, ipv6| {
        let ops = Plan::new(config, ipv6).ops(&fresh());
        ops.iter().map(|op| format!("{op}\n")).collect::<String>()
    };
    insta::assert_snapshot!("ops_default", ops(&Config::default(), true));
    insta::assert_snapshot!("ops_other_marks_without_ipv6", ops(&other_marks(), false));
    insta::assert_snapshot!("ops_fast_open", ops(&fast_open(), true));
}

#[test]
fn iptables_commands_for_two_kinds_of_configuration() {
    let commands = |config: &Config, ipv6| iptables::commands(config, &Plan::new(config, ipv6));
    insta::assert_snapshot!("iptables_everywhere", commands(&Config::default(), true));
    insta::assert_snapshot!("iptables_two_interfaces", commands(&interfaces(&["lan0", "lan1"]), false));
}

#[test]
fn a_second_installation_has_nothing_to_do() {
    for config in [Config::default(), interfaces(&["lan0"]), other_marks(), fast_open()] {
        let plan = Plan::new(&config, true);
        let seen = installed(&plan, fresh());
        assert_eq!(plan.ops(&seen), [], "{config:?}");
        assert_eq!(verdict(&plan, &seen), Verdict::Installed);
        assert_eq!(differences(&plan, &seen), [""; 0]);
    }
}

#[test]
fn interfaces_in_another_order_or_named_twice_are_no_difference() {
    let seen = installed(&Plan::new(&interfaces(&["lan0", "lan1"]), true), fresh());
    for names in [&["lan1", "lan0"][..], &["lan0", "lan1", "lan0"]] {
        let plan = Plan::new(&interfaces(names), true);
        assert_eq!((verdict(&plan, &seen), differences(&plan, &seen)), (Verdict::Installed, vec![]));
    }
}

#[test]
fn a_second_installation_keeps_the_sysctl_values_from_before_the_first() {
    let first = installed(&Plan::new(&Config::default(), true), fresh());
    let second = installed(&Plan::new(&fast_open(), true), first);
    let state = second.table.clone().unwrap().state.unwrap();
    let saved = [(Sysctl::EarlyDemux, 1), (Sysctl::FastOpen, 1)].map(|(sysctl, was)| Saved { sysctl, was });
    assert_eq!(state.saved, saved);
    assert_eq!(second.sysctls, [(Sysctl::EarlyDemux, 0), (Sysctl::FastOpen, 3)]);
    let third = installed(&Plan::new(&Config::default(), true), second);
    assert_eq!(
        third.sysctls,
        [(Sysctl::EarlyDemux, 0), (Sysctl::FastOpen, 1)],
        "fast open is no longer asked for"
    );
    assert_eq!(third.table.unwrap().state.unwrap().saved, saved[..1]);
}

#[test]
fn a_sysctl_that_was_right_already_is_not_saved() {
    let mut seen = fresh();
    seen.sysctls[0].1 = 0;
    let seen = installed(&Plan::new(&Config::default(), true), seen);
    assert_eq!(seen.table.unwrap().state.unwrap().saved, []);
}

#[test]
fn a_sysctl_that_an_operator_changed_meanwhile_is_saved_with_the_operators_value() {
    let plan = Plan::new(&fast_open(), true);
    let mut seen = installed(&plan, fresh());
    seen.sysctls[1].1 = 0x400;
    let seen = installed(&plan, seen);
    assert_eq!(seen.sysctls[1].1, 0x402);
    assert_eq!(seen.table.unwrap().state.unwrap().was(Sysctl::FastOpen), Some(0x400));
}

#[test]
fn another_configuration_replaces_the_old_rules_after_the_new_ones_work() {
    let old = installed(&Plan::new(&Config::default(), true), fresh());
    let plan = Plan::new(&other_marks(), true);
    assert_eq!(verdict(&plan, &old), Verdict::Differ);
    let ops = plan.ops(&old);
    let table = ops.iter().position(|op| matches!(op, Op::Table { .. })).unwrap();
    let is_delete = |op: &Op| matches!(op, Op::DeleteRule(_) | Op::DeleteRoute(_));
    assert!(!ops[..table].iter().any(is_delete) && ops[table + 1..].iter().all(is_delete), "{ops:?}");
    let seen = installed(&plan, old);
    assert_eq!(verdict(&plan, &seen), Verdict::Installed);
    assert!(seen.rules.iter().all(|rule| rule.table.get() == 1000));
}

#[test]
fn a_foreign_identical_route_is_used_and_another_default_route_is_an_obstacle() {
    let plan = Plan::new(&Config::default(), true);
    let foreign = |effect| ForeignRoute { family: Family::V4, text: "default".to_owned(), effect };
    let serves = Seen { foreign: vec![foreign(Effect::Serves)], ..fresh() };
    assert!(
        !plan.ops(&serves).iter().any(|op| matches!(op, Op::AddRoute(route) if route.family == Family::V4))
    );
    assert_eq!(plan.obstacle(&serves), None);
    let blocks = Seen { foreign: vec![foreign(Effect::Blocks)], ..fresh() };
    assert_eq!(plan.obstacle(&blocks), Some(&blocks.foreign[0]));
}

#[test]
fn differences_names_every_difference() {
    let plan = Plan::new(&Config::default(), true);
    let whole = installed(&plan, fresh());
    let table = |seen: &mut Seen, damage: fn(&mut Outline)| damage(&mut seen.table.as_mut().unwrap().outline);
    type Damage<'d> = &'d dyn Fn(&mut Seen);
    let cases: [(&str, Damage<'_>); 8] = [
        ("policy rule", &|seen| seen.rules.truncate(1)),
        ("route", &|seen| seen.routes.truncate(1)),
        ("nft table", &|seen| seen.table = None),
        ("set taken6 is missing", &|seen| table(seen, |outline| outline.sets.retain(|set| set != "taken6"))),
        ("chain full is missing", &|seen| {
            table(seen, |outline| outline.chains.retain(|name, _| name != "full"))
        }),
        ("TCP-MD5 (BGP)\" is missing", &|seen| {
            table(seen, |outline| {
                let comments = &mut outline.chains.get_mut("syn").unwrap().comments;
                comments.retain(|comment| !comment.starts_with("TCP-MD5"));
            });
        }),
        ("hook, priority or policy", &|seen| {
            table(seen, |outline| outline.chains.get_mut("server_leg").unwrap().hook = None);
        }),
        ("net.ipv4.tcp_early_demux is 1", &|seen| seen.sysctls[0].1 = 1),
    ];
    for (expected, damage) in cases {
        let mut seen = whole.clone();
        damage(&mut seen);
        let found = differences(&plan, &seen);
        assert_eq!(verdict(&plan, &seen), Verdict::Partly, "{expected}");
        assert!(found.iter().any(|text| text.contains(expected)), "{expected}: {found:?}");
        assert_eq!(verdict(&plan, &installed(&plan, seen)), Verdict::Installed, "{expected}: repaired");
    }
}

#[test]
fn the_gate_is_switched_by_one_rule() {
    assert_eq!(Gate::Open.script(), "flush chain inet tcp_intercept gate\n");
    assert_eq!(Gate::Closed.script().lines().count(), 2);
}

#[test]
fn a_comment_fits_into_the_kernel() {
    let state = State {
        fingerprint: 0,
        own: Config::default().rules.own_mark,
        owner: RulesOwner::Operator,
        saved: Vec::new(),
    };
    let texts = [chains::ruleset(&Config::default(), true).to_string(), state.to_string()].concat();
    let comments = texts.lines().filter_map(|line| line.split_once(" comment \""));
    assert!(comments.clone().count() > 15);
    comments.for_each(|(_, comment)| assert!(comment.len() < 128, "NFTNL_UDATA_COMMENT_MAXLEN: {comment}"));
}

/// Generates any mixture of remains of several installations and interruptions.
fn any_seen() -> impl Strategy<Value = Seen> {
    let configs =
        prop::sample::select(vec![Config::default(), interfaces(&["lan0"]), other_marks(), fast_open()]);
    let left =
        (configs, any::<bool>(), any::<[bool; 6]>(), 0u32..=1, prop::sample::select(vec![0u32, 1, 3, 0x401]));
    left.prop_map(|(config, ipv6, there, demux, fast_open)| {
        let mut seen = installed(&Plan::new(&config, ipv6), fresh());
        let kept = |index: usize| there[index];
        seen.rules = seen.rules.iter().enumerate().filter(|(n, _)| kept(*n)).map(|(_, rule)| *rule).collect();
        seen.routes =
            seen.routes.iter().enumerate().filter(|(n, _)| kept(n + 2)).map(|(_, route)| *route).collect();
        seen.table = seen.table.filter(|_| kept(4));
        if kept(5) {
            seen.sysctls = vec![(Sysctl::EarlyDemux, demux), (Sysctl::FastOpen, fast_open)];
        }
        seen
    })
}

fn sorted(mut seen: Seen) -> Seen {
    seen.rules.sort_by_key(|rule| format!("{rule:?}"));
    seen.routes.sort_by_key(|route| format!("{route:?}"));
    seen
}

proptest! {
    #[test]
    fn from_any_half_state_one_installation_leads_to_the_plan(seen in any_seen(), ipv6: bool) {
        for config in [Config::default(), other_marks(), fast_open()] {
            let plan = Plan::new(&config, ipv6);
            prop_assert_eq!(plan.ops(&installed(&plan, seen.clone())), []);
        }
    }

    #[test]
    fn after_a_failure_at_any_step_the_undo_leads_back(seen in any_seen(), ipv6: bool) {
        let plan = Plan::new(&other_marks(), ipv6);
        let ops = plan.ops(&seen);
        for done in 0..=ops.len() {
            let half = ops[..done].iter().fold(seen.clone(), after);
            let back = ops[..done].iter().rev().map(Op::inverse).fold(half, |seen, op| after(seen, &op));
            prop_assert_eq!(sorted(back), sorted(seen.clone()));
        }
    }
}

#[test]
fn a_rule_and_a_route_are_written_as_arguments_of_ip() {
    let table = NonZeroU32::new(5).unwrap();
    let mark = "0x1/0x1".parse().unwrap();
    let rule = PolicyRule { family: Family::V6, mark, table, priority: PRIORITY };
    assert_eq!(rule.words(), "fwmark 0x1/0x1 lookup 5 priority 100 protocol 155");
    let route = LocalRoute { family: Family::V4, table };
    assert_eq!(route.words(), "local default dev lo table 5 protocol 155");
    assert!(
        script(None).ends_with("delete table inet tcp_intercept\n"),
        "deleting is the same for any half state"
    );
}

#[test]
fn rules_of_an_operator_keep_their_owner_and_those_of_a_daemon_can_become_the_operators() {
    let plan = |owner| Plan::new(&Config::default(), true).installed_by(owner);
    let owner = |seen: &Seen| seen.table.as_ref().unwrap().state.as_ref().unwrap().owner;
    let his = installed(&plan(RulesOwner::Operator), fresh());
    assert_eq!(plan(RulesOwner::Daemon).ops(&his), []);
    assert_eq!(owner(&installed(&Plan::new(&other_marks(), true), his)), RulesOwner::Operator);
    let left = installed(&plan(RulesOwner::Daemon), fresh());
    assert_eq!(plan(RulesOwner::Daemon).owner(&left), RulesOwner::Daemon);
    assert_eq!(owner(&installed(&plan(RulesOwner::Operator), left)), RulesOwner::Operator);
}
