//! Tests of the findings, with facts as data.
use insta::assert_snapshot;
use serde_json::{Value, json};

use super::facts::{Congestion, Degraded, Errno, Facts, Interface, LegacyInput, Nft, Privileges, Rules};
use super::ruleset::Ruleset;
use super::{Level, exit, judge, text};
use crate::config::Config;
use crate::exit::Exit;

const ENOENT: Errno = Errno(2);

fn config(text: &str) -> Config {
    Config::parse(text, &[]).unwrap()
}

/// Returns the facts of a host without problems.
fn healthy() -> Facts {
    let sysctls = [
        ("fs.pipe-max-size", "1048576"),
        ("fs.pipe-user-pages-soft", "16384"),
        ("net.core.somaxconn", "4096"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.all.src_valid_mark", "0"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "1024"),
        ("net.ipv4.tcp_allowed_congestion_control", "reno bbr"),
        ("net.ipv4.tcp_available_congestion_control", "reno bbr cubic"),
        ("net.ipv4.tcp_congestion_control", "cubic"),
        ("net.ipv4.tcp_fastopen", "1"),
        ("net.ipv4.tcp_fastopen_blackhole_timeout_sec", "0"),
        ("net.ipv4.tcp_fwmark_accept", "0"),
        ("net.ipv4.tcp_rfc1337", "0"),
        ("net.ipv4.tcp_timestamps", "1"),
        ("net.ipv4.tcp_tw_reuse", "2"),
        ("net.ipv6.conf.all.forwarding", "1"),
        ("net.mptcp.blackhole_timeout", "0"),
        ("net.mptcp.enabled", "1"),
        ("net.netfilter.nf_conntrack_max", "262144"),
    ];
    let bbr = Congestion { name: "bbr".to_owned(), refused: None };
    Facts {
        privileges: Privileges {
            net_admin: true,
            net_raw: true,
            bind_service: true,
            pipes_unlimited: true,
            transparent: None,
            mark: None,
        },
        sysctls: sysctls.into_iter().map(|(key, value)| (key, value.to_owned())).collect(),
        interfaces: vec![Interface { name: "lan0".to_owned(), ..Interface::default() }],
        nft: ruleset(json!([])),
        client: bbr.clone(),
        server: bbr,
        descriptors: 20_000,
        ..Facts::default()
    }
}

fn ruleset(objects: Value) -> Nft {
    let ruleset = Ruleset::parse(&json!({ "nftables": objects }).to_string()).unwrap();
    Nft::Works { ruleset, refused: None }
}

/// Returns all findings except those at the level `ok`, and the exit status.
fn told(config_text: &str, facts: &Facts) -> String {
    let mut findings = judge(&config(config_text), facts);
    let exit = exit(&findings);
    findings.retain(|finding| finding.level != Level::Ok);
    format!("{}exit {}\n", text(&findings), exit as u8)
}

fn told_with(facts: impl Fn(&mut Facts)) -> String {
    let mut host = healthy();
    facts(&mut host);
    told("", &host)
}

#[test]
fn a_healthy_host_is_told_line_by_line_and_ends_well() {
    let findings = judge(&config(""), &healthy());
    assert_eq!(exit(&findings), Exit::Ok);
    assert_snapshot!(text(&findings));
}

#[test]
fn each_sysctl_in_the_way_is_told_with_the_command_that_mends_it() {
    let mut facts = healthy();
    let wrong = [
        ("net.core.somaxconn", "128"),
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv4.tcp_fwmark_accept", "1"),
        ("net.ipv4.tcp_rfc1337", "1"),
        ("net.ipv4.tcp_timestamps", "0"),
        ("net.ipv4.tcp_tw_reuse", "2"),
        ("net.ipv6.conf.all.forwarding", "0"),
        ("net.mptcp.blackhole_timeout", "3600"),
    ];
    facts.sysctls.extend(wrong.map(|(key, value)| (key, value.to_owned())));
    assert_snapshot!(told("server.mptcp = true", &facts));
    for (source, kernel_chooses) in
        [("client", false), ("gateway", true), ("192.0.2.1:0", true), ("192.0.2.1:7", false)]
    {
        let told = told(&format!("server.source = '{source}'"), &facts);
        assert_eq!(told.contains("tcp_tw_reuse"), kernel_chooses, "{source}: {told}");
        assert_eq!(told.contains("tcp_timestamps"), source == "client", "{source}: {told}");
    }
}

#[test]
fn what_switches_fast_open_off_matters_to_who_asks_for_it() {
    let mut facts = healthy();
    let wrong = [("net.ipv4.tcp_fastopen", "2"), ("net.ipv4.tcp_fastopen_blackhole_timeout_sec", "3600")];
    facts.sysctls.extend(wrong.map(|(key, value)| (key, value.to_owned())));
    assert_snapshot!(told("server.fast-open = true", &facts));
    assert!(!told("client.fast-open = true", &facts).contains("fastopen"));
}

#[test]
fn a_reverse_path_filter_is_judged_as_the_kernel_does_by_the_greater_value() {
    let told = |all: &str, own| {
        told_with(|facts| {
            facts.sysctls.insert("net.ipv4.conf.all.rp_filter", all.to_owned());
            facts.interfaces[0].rp_filter = own;
        })
    };
    assert_snapshot!(told("0", 1));
    assert_eq!(told("1", 0), told("0", 1));
    assert!(!told("2", 1).contains("rp_filter"));
    assert!(!told("1", 2).contains("rp_filter"));
}

#[test]
fn src_valid_mark_is_an_error_wherever_it_is_set() {
    assert_snapshot!(told_with(|facts| {
        facts.sysctls.insert("net.ipv4.conf.all.src_valid_mark", "1".to_owned());
        facts.interfaces.push(Interface {
            name: "eth0.5".to_owned(),
            src_valid_mark: true,
            ..Interface::default()
        });
    }));
}

#[test]
fn missing_privileges_end_with_77_and_say_which() {
    let none = |facts: &mut Facts| {
        facts.privileges = Privileges { transparent: Some(Errno::EPERM), ..Privileges::default() };
        facts.nft = Nft::Failed("Operation not permitted (you must be root)".to_owned());
    };
    let raw = |facts: &mut Facts| facts.privileges = Privileges { net_raw: true, ..Privileges::default() };
    let mut manage_by_root = healthy();
    raw(&mut manage_by_root);
    assert_snapshot!(
        [told_with(none), told_with(raw), told("rules.manage = false", &manage_by_root)].join("\n")
    );
    assert!(
        told("listen.port = 80", &manage_by_root).contains("listen.port = 80 needs CAP_NET_BIND_SERVICE")
    );
}

#[test]
fn without_nft_or_tproxy_it_ends_with_69_unless_the_rules_are_somebody_elses() {
    let missing = told_with(|facts| facts.nft = Nft::Missing);
    let failed = told_with(|facts| facts.nft = Nft::Failed("Operation not supported".to_owned()));
    let no_tproxy = told_with(|facts| {
        if let Nft::Works { refused, .. } = &mut facts.nft {
            *refused = Some("Error: Could not process rule: No such file or directory".to_owned());
        }
    });
    let unmanaged = told("rules.manage = false", &Facts { nft: Nft::Missing, ..healthy() });
    let not_installed = told("rules.manage = false", &healthy());
    let differ = Rules::Differ(vec!["the nft table inet tcp_intercept is missing".to_owned()]);
    let differ = told("", &Facts { rules: differ, ..healthy() });
    assert_snapshot!([missing, failed, no_tproxy, unmanaged, not_installed, differ].join("\n"));
}

#[test]
fn a_leg_that_asks_for_what_the_kernel_has_not_is_an_error_with_what_it_has() {
    let refuse = |name: &str, errno| {
        let mut facts = healthy();
        facts.server = Congestion { name: name.to_owned(), refused: Some(errno) };
        facts
    };
    let unset = told("", &refuse("bbr", ENOENT));
    let unknown = told("server.congestion-control = 'brr'", &refuse("brr", ENOENT));
    let not_allowed = told("server.congestion-control = 'cubic'", &refuse("cubic", Errno::EPERM));
    let mut facts = Facts { mptcp: Some(Errno(93)), ..healthy() };
    let no_mptcp = told("client.mptcp = true", &facts);
    let unused = told("", &facts);
    facts.sysctls.insert("net.mptcp.enabled", "0".to_owned());
    let disabled = told("client.mptcp = true", &facts);
    assert_snapshot!([unset, unknown, not_allowed, no_mptcp, unused, disabled].join("\n"));
}

#[test]
fn an_option_that_a_kind_of_socket_refuses_is_degraded_and_told() {
    let mut facts = healthy();
    let key = "client.user-timeout".to_owned();
    facts.degraded.push(Degraded { key, kind: "MPTCP".to_owned(), errno: Errno(92) });
    assert_snapshot!(told("[client]\nmptcp = true\nuser-timeout = '60s'", &facts));
}

#[test]
fn limits_that_do_not_carry_the_configured_connections_are_told() {
    let facts = Facts { descriptors: 1024, ..healthy() };
    assert_snapshot!(told("limits.connections = 300000", &facts));
    assert!(crate::state::limits::carried_by(666_670) >= 300_000, "the offered limit is enough");
    assert!(told("limits.connections = 9000", &healthy()).contains("warnings: 0"));
}

#[test]
fn the_rest_that_is_worth_knowing_is_told() {
    let mut facts = Facts { bridges: vec!["br0".to_owned()], ..healthy() };
    facts.privileges.pipes_unlimited = false;
    facts.sysctls.insert("fs.pipe-max-size", "65536".to_owned());
    let drop = "-P INPUT DROP\n-A INPUT -i lo -j ACCEPT\n".to_owned();
    facts.legacy_input = vec![
        LegacyInput { program: "iptables-legacy", rules: Some(drop.clone()) },
        LegacyInput { program: "ip6tables-legacy", rules: None },
    ];
    assert_snapshot!(told("rules.interfaces = ['lan0', 'lan7']", &facts));
    let accepted = Some(drop + "-A INPUT -m mark --mark 0x1/0x1 -j ACCEPT\n");
    facts.legacy_input = vec![LegacyInput { program: "iptables-legacy", rules: accepted }];
    assert!(!told("", &facts).contains("iptables-legacy"));
}

fn chain(name: &str, hook: Option<&str>, policy: &str) -> Value {
    let mut chain = json!({ "family": "inet", "table": "f", "name": name });
    if let Some(hook) = hook {
        chain["hook"] = json!(hook);
        chain["policy"] = json!(policy);
    }
    json!({ "chain": chain })
}

fn rule(chain: &str, expr: Value) -> Value {
    json!({ "rule": { "family": "inet", "table": "f", "chain": chain, "handle": 7, "expr": expr } })
}

fn input_with(policy: &str, rules: &[Value]) -> Nft {
    let mut objects = vec![chain("input", Some("input"), policy), chain("other", None, "")];
    objects.extend(rules.iter().map(|expr| rule("input", expr.clone())));
    objects.push(rule("other", json!([is("mark", json!(1)), { "accept": null }])));
    ruleset(Value::Array(objects))
}

fn is(key: &str, right: Value) -> Value {
    json!({ "match": { "op": "==", "left": { "meta": { "key": key } }, "right": right } })
}

#[test]
fn an_input_chain_that_drops_is_named_with_the_rule_that_lets_intercepted_packets_in() {
    let ssh = json!([
        { "match": { "op": "==", "left": { "payload": { "protocol": "tcp", "field": "dport" } }, "right": 22 } },
        { "accept": null }
    ]);
    let lan = json!([is("iifname", json!({ "set": ["lan0", "lan1"] })), { "accept": null }]);
    let dropped = Facts { nft: input_with("drop", std::slice::from_ref(&ssh)), ..healthy() };
    let depends = Facts { nft: input_with("drop", std::slice::from_ref(&lan)), ..healthy() };
    let refused = Facts { nft: input_with("accept", &[json!([{ "reject": null }])]), ..healthy() };
    let all = [told("", &dropped), told("", &depends), told("", &refused)].join("\n");
    assert_snapshot!(all);
    assert!(!told("rules.interfaces = ['lan0']", &depends).contains("input chain"));
}

#[test]
fn an_input_chain_that_accepts_the_mark_in_any_way_is_left_alone() {
    let verdict = json!({ "accept": null });
    let masked = |op: &str, right: Value| json!({ "match": { "op": op, "left": { "&": [{ "meta": { "key": "mark" } }, 255] }, "right": right } });
    let state = |right: Value| json!({ "match": { "op": "in", "left": { "ct": { "key": "state" } }, "right": right } });
    let map = json!({ "vmap": { "key": { "ct": { "key": "state" } }, "data": { "set": [
        ["established", { "drop": null }], ["untracked", { "jump": { "target": "other" } }]
    ] } } });
    let accepting = [
        json!([is("mark", json!(1)), verdict]),
        json!([is("l4proto", json!("tcp")), { "counter": { "packets": 0, "bytes": 0 } }, masked("==", json!({ "set": [1, 3] })), verdict]),
        json!([masked("!=", json!(0)), { "log": null }, verdict]),
        json!([masked("==", json!({ "range": [1, 3] })), verdict]),
        json!([state(json!(["established", "untracked"])), verdict]),
        json!([{ "match": { "op": "==", "left": { "socket": { "key": "transparent" } }, "right": 1 } }, verdict]),
        json!([{ "jump": { "target": "other" } }]),
        json!([{ "xt": { "type": "match", "name": "comment" } }, is("mark", json!(1)), verdict]),
        json!([map]),
    ];
    for expr in accepting {
        let facts = Facts { nft: input_with("drop", std::slice::from_ref(&expr)), ..healthy() };
        assert!(!told("", &facts).contains("input chain"), "{expr}");
    }
    let other_marks = [
        json!([is("mark", json!(2)), verdict]),
        json!([masked("==", json!(0)), verdict]),
        json!([is("mark", json!(1)), { "limit": { "rate": 5 } }, verdict]),
        json!([state(json!("established")), verdict]),
        json!([is("iif", json!("lo")), verdict]),
    ];
    for expr in other_marks {
        let facts = Facts { nft: input_with("drop", std::slice::from_ref(&expr)), ..healthy() };
        assert!(told("", &facts).contains("nft insert rule inet f input"), "{expr}");
    }
}

#[test]
fn chains_that_call_each_other_in_a_cycle_end_the_walk() {
    let circle = json!([
        chain("input", Some("input"), "drop"),
        chain("other", None, ""),
        rule("input", json!([{ "jump": { "target": "other" } }])),
        rule("other", json!([{ "jump": { "target": "other" } }]))
    ]);
    assert!(told("", &Facts { nft: ruleset(circle), ..healthy() }).contains("drops intercepted packets"));
}

#[test]
fn forward_chains_that_filter_and_flowtables_are_told_and_our_own_table_is_not() {
    let objects = json!([
        { "table": { "family": "inet", "name": "f", "handle": 1 } },
        { "flowtable": { "family": "inet", "name": "ft", "table": "f", "handle": 5, "hook": "ingress", "prio": 0, "dev": "lan0" } },
        chain("forward", Some("forward"), "accept"), chain("other", None, ""),
        rule("forward", json!([{ "flow": { "op": "add", "flowtable": "@ft" } }])),
        rule("forward", json!([{ "jump": { "target": "other" } }])), rule("other", json!([{ "drop": null }])),
        { "chain": { "family": "inet", "table": "tcp_intercept", "name": "x", "hook": "forward", "policy": "drop" } },
        { "chain": { "family": "bridge", "table": "b", "name": "x", "hook": "input", "policy": "drop" } },
    ]);
    assert_snapshot!(told("", &Facts { nft: ruleset(objects), ..healthy() }));
    let open = json!([chain("forward", Some("forward"), "accept")]);
    assert!(!told("", &Facts { nft: ruleset(open), ..healthy() }).contains("forward chain"));
}
