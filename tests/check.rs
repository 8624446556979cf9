//! `check` on real hosts: each test causes a problem, `check` reports it, and exactly the suggested command fixes it.
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use lab::{Host, Lab};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tcp_intercept::cmd;
use tcp_intercept::config::Config;
use tcp_intercept::exit::Exit;

/// Returns the findings of `check` on `host`, and its exit status.
fn check(host: &Host, config: &str) -> (Vec<Value>, Exit) {
    let (text, exit) = host.enter(|| cmd::check::report(Config::parse(config, &[]), true));
    let all: Value = serde_json::from_str(&text).expect("check --json prints JSON");
    assert_eq!(all["exit"], exit as u8);
    (all["findings"].as_array().expect("a list").clone(), exit)
}

/// Returns the only finding that is not `ok` and whose `what` begins with this text.
fn find(findings: &[Value], what: &str) -> Option<Value> {
    let found = findings.iter().filter(|finding| finding["level"] != "ok");
    let found: Vec<_> =
        found.filter(|finding| finding["what"].as_str().is_some_and(|text| text.starts_with(what))).collect();
    assert!(found.len() < 2, "more than once: {found:#?}");
    found.first().map(|found| (*found).clone())
}

fn mend(host: &Host, finding: &Value) {
    let commands = finding["fix"].as_array().expect("a list");
    assert!(!commands.is_empty(), "no command is offered: {finding}");
    for command in commands {
        host.run(command.as_str().expect("a text"));
    }
}

/// Causes a problem of this `level` by `make`, and checks that the commands that `check` suggests fix it.
fn found_and_mended(host: &Host, config: &str, level: &str, what: &str, make: impl FnOnce()) {
    make();
    let (findings, exit) = check(host, config);
    let found = find(&findings, what).unwrap_or_else(|| panic!("not found: {what}\n{findings:#?}"));
    assert_eq!(found["level"], level, "{found}");
    assert!(!found["why"].as_str().unwrap_or_default().is_empty(), "{found}");
    assert_eq!(exit == Exit::Unavailable, level == "error", "{findings:#?}");
    mend(host, &found);
    let (findings, _) = check(host, config);
    assert_eq!(find(&findings, what), None, "still there after {}", found["fix"]);
}

/// Makes a host on which `check` has nothing to report.
fn mended_host() -> Host {
    let host = Host::new("box");
    for (key, value) in
        [("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1"), ("net.core.somaxconn", "4096")]
    {
        host.sysctl(key, value);
    }
    host.ip("link add lan0 type veth peer name wan0");
    host
}

fn nothing_to_mend(host: &Host, config: &str) {
    let (findings, exit) = check(host, config);
    let bad = |finding: &&Value| matches!(finding["level"].as_str(), Some("warning" | "error"));
    let bad: Vec<_> = findings.iter().filter(bad).collect();
    assert!(bad.is_empty() && exit == Exit::Ok, "{bad:#?}");
}

#[test]
fn a_new_host_is_mended_by_running_all_that_is_offered() {
    lab::netns(|| {
        let host = Host::new("box");
        let config = "[client]\nmptcp = true\n[server]\nmptcp = true\ncongestion-control = 'cubic'";
        let (findings, _) = check(&host, config);
        for key in ["net.ipv4.ip_forward = 0", "net.mptcp.blackhole_timeout = 3600"] {
            assert!(find(&findings, key).is_some(), "{key}: {findings:#?}");
        }
        for finding in findings.iter().filter(|finding| finding["name"] == "sysctl") {
            mend(&host, finding);
        }
        nothing_to_mend(&host, config);
    });
}

#[test]
fn each_sysctl_in_the_way_is_found_and_mended() {
    lab::netns(|| {
        let host = mended_host();
        nothing_to_mend(&host, "");
        for (key, value) in [
            ("net.ipv4.ip_forward", "0"),
            ("net.ipv4.tcp_timestamps", "0"),
            ("net.ipv4.tcp_rfc1337", "1"),
            ("net.core.somaxconn", "128"),
        ] {
            let what = format!("{key} = {value}");
            found_and_mended(&host, "", "warning", &what, || host.sysctl(key, value));
        }
        for (key, value) in [("net.ipv6.conf.all.forwarding", "0"), ("net.ipv4.tcp_fwmark_accept", "1")] {
            found_and_mended(&host, "", "note", &format!("{key} = {value}"), || host.sysctl(key, value));
        }
        for value in ["0", "2"] {
            let (what, config) = (format!("net.ipv4.tcp_tw_reuse = {value}"), "server.source = 'gateway'");
            found_and_mended(&host, config, "note", &what, || host.sysctl("net.ipv4.tcp_tw_reuse", value));
        }
        nothing_to_mend(&host, "");
    });
}

#[test]
fn a_strict_reverse_path_filter_is_found_on_its_interface_and_mended() {
    lab::netns(|| {
        let host = mended_host();
        let strict = || host.sysctl("net.ipv4.conf.wan0.rp_filter", "1");
        found_and_mended(&host, "", "warning", "rp_filter = 1 (strict) on wan0", strict);
        host.sysctl("net.ipv4.conf.all.rp_filter", "0");
        host.sysctl("net.ipv4.conf.wan0.rp_filter", "0");
        let strict = || host.sysctl("net.ipv4.conf.all.rp_filter", "1");
        found_and_mended(&host, "", "warning", "rp_filter = 1 (strict) on lan0, wan0", strict);
    });
}

#[test]
fn an_input_chain_that_drops_is_found_named_and_mended() {
    lab::netns(|| {
        let host = mended_host();
        let chain = |rule: &str, policy: &str| {
            host.nft(&format!(
                "table inet operator {{
                    chain trusted {{ tcp dport 22 accept; }}
                    chain incoming {{ type filter hook input priority filter; policy {policy};
                        iif lo accept
                        ct state established,related accept
                        jump trusted
                        {rule}
                    }}
                }}"
            ));
        };
        let what = "the input chain inet operator incoming drops intercepted packets";
        for (rule, policy, level) in [
            ("counter", "drop", "error"),
            ("reject", "accept", "error"),
            ("iifname \"lan0\" accept", "drop", "warning"),
            ("ip saddr 10.0.0.0/8 accept", "drop", "warning"),
        ] {
            found_and_mended(&host, "", level, what, || chain(rule, policy));
            host.nft("delete table inet operator");
        }
        for rule in [
            "meta mark 0x1 accept",
            "meta mark & 0x1 == 0x1 accept",
            "iifname \"lan0\" accept",
            "ct state untracked accept",
        ] {
            chain(rule, "drop");
            nothing_to_mend(&host, "rules.interfaces = ['lan0']");
            host.nft("delete table inet operator");
        }
    });
}

#[test]
fn an_input_chain_of_iptables_is_found_and_mended_in_both_of_its_kinds() {
    lab::netns(|| {
        let host = mended_host();
        let what = "the input chain ip filter INPUT drops intercepted packets";
        found_and_mended(&host, "", "error", what, || drop(host.run("iptables-nft -P INPUT DROP")));
        host.run(
            "iptables-nft -F; iptables-nft -P INPUT DROP; iptables-nft -A INPUT -m mark --mark 1/1 -j ACCEPT",
        );
        nothing_to_mend(&host, "");
        let what = "the INPUT chain of iptables-legacy drops intercepted packets";
        found_and_mended(&host, "", "warning", what, || drop(host.run("iptables-legacy -P INPUT DROP")));
        let what = "the INPUT chain of ip6tables-legacy drops intercepted packets";
        found_and_mended(&host, "", "warning", what, || drop(host.run("ip6tables-legacy -P INPUT DROP")));
    });
}

#[test]
fn a_forward_chain_that_filters_is_found_and_named() {
    lab::netns(|| {
        let host = mended_host();
        host.nft(
            "table ip operator { chain routed { type filter hook forward priority filter; counter; }; }",
        );
        nothing_to_mend(&host, "");
        host.nft("add rule ip operator routed tcp dport 23 reject");
        let (findings, exit) = check(&host, "");
        assert_eq!(exit, Exit::Ok);
        assert!(find(&findings, "the forward chain ip operator routed filters").is_some(), "{findings:#?}");
    });
}

#[test]
fn mptcp_that_is_switched_off_is_an_error_where_it_is_asked_for() {
    lab::netns(|| {
        let host = mended_host();
        host.sysctl("net.mptcp.blackhole_timeout", "0");
        let off = || host.sysctl("net.mptcp.enabled", "0");
        found_and_mended(&host, "server.mptcp = true", "error", "net.mptcp.enabled = 0", off);
        host.sysctl("net.mptcp.enabled", "0");
        nothing_to_mend(&host, "");
    });
}

#[test]
fn of_the_options_of_an_mptcp_leg_none_is_left_out() {
    lab::netns(|| {
        let host = mended_host();
        let options = "keepalive = { idle = '60s', interval = '10s', probes = 6 }\nuser-timeout = '60s'\n";
        nothing_to_mend(&host, &format!("[client]\n{options}"));
        let (findings, exit) = check(&host, &format!("[client]\nmptcp = true\n{options}"));
        assert_eq!(exit, Exit::Ok);
        // MPTCP sockets refuse TCP_USER_TIMEOUT; the relay enforces the timeout itself.
        assert!(find(&findings, "client.user-timeout").is_none(), "{findings:?}");
    });
}

#[test]
fn a_congestion_control_that_the_kernel_has_not_is_an_error_with_those_it_has() {
    lab::netns(|| {
        let host = mended_host();
        for mptcp in ["", "server.mptcp = true\n"] {
            let (findings, exit) = check(&host, &format!("{mptcp}server.congestion-control = 'nosuch'"));
            assert_eq!(exit, Exit::Unavailable);
            let found =
                find(&findings, "server.congestion-control = nosuch").expect("found, also with MPTCP");
            assert!(found["why"].as_str().unwrap().contains("cubic"), "{found}");
        }
    });
}

#[test]
fn an_interface_that_does_not_exist_is_found_until_it_does() {
    lab::netns(|| {
        let host = mended_host();
        let config = "rules.interfaces = ['lan0', 'lan9']";
        let (findings, _) = check(&host, config);
        assert!(find(&findings, "there is no interface lan9").is_some());
        host.ip("link add lan9 type veth peer name peer9");
        nothing_to_mend(&host, config);
    });
}

#[test]
fn a_bridge_with_several_ports_is_told_of_and_one_with_a_single_port_is_not() {
    lab::netns(|| {
        let host = mended_host();
        host.enter(|| {
            // A sysfs mount shows the devices of the namespace in which it was mounted.
            let mounted = Command::new("mount").args(["-t", "sysfs", "none", "/sys"]).status();
            assert!(mounted.expect("mount starts").success());
        });
        host.ip("link add br0 type bridge");
        host.ip("link set lan0 master br0");
        assert!(find(&check(&host, "").0, "br0 is a bridge").is_none());
        host.ip("link set wan0 master br0");
        assert!(find(&check(&host, "").0, "br0 is a bridge").is_some());
    });
}

#[test]
fn without_capabilities_it_ends_with_77_and_without_rules_of_its_own_it_offers_them() {
    lab::netns(|| {
        let host = mended_host();
        let (findings, _) = check(&host, "rules.manage = false");
        let found = find(&findings, "rules: not installed").expect("not installed");
        assert_eq!(found["fix"][0], "tcp-intercept rules install");
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        let (text, exit) = host.enter(|| {
            set_capabilities(None, none).expect("capabilities can be dropped");
            cmd::check::report(Config::parse("", &[]), false)
        });
        assert_eq!(exit, Exit::NoPerm, "{text}");
        assert!(text.contains("CAP_NET_ADMIN"), "{text}");
    });
}

#[test]
fn src_valid_mark_is_found_and_without_its_mending_nothing_is_intercepted() {
    lab::netns(|| {
        let lab = Lab::new();
        for key in ["net.ipv4.tcp_tw_reuse", "net.ipv4.conf.all.src_valid_mark"] {
            lab.gateway.sysctl(key, "1");
        }
        let config = "rules.interfaces = ['lan0']";
        let _listener = transparent_listener(&lab.gateway);
        intercept(&lab.gateway, config);
        assert!(!connects(&lab), "src_valid_mark is harmless now: check need not report it");
        found_and_mended(&lab.gateway, config, "error", "src_valid_mark = 1 on all", || {});
        assert!(connects(&lab));
    });
}

#[test]
fn an_input_chain_loses_what_is_intercepted_until_the_offered_rule_is_in_it() {
    lab::netns(|| {
        let lab = Lab::new();
        let config = "rules.interfaces = ['lan0']";
        let _listener = transparent_listener(&lab.gateway);
        intercept(&lab.gateway, config);
        lab.gateway.nft(
            "table inet operator { chain incoming { type filter hook input priority filter; policy drop; tcp dport 22 accept; }; }",
        );
        assert!(!connects(&lab));
        let (findings, _) = check(&lab.gateway, config);
        mend(&lab.gateway, &find(&findings, "the input chain inet operator incoming").expect("found"));
        assert!(connects(&lab));
    });
}

/// Makes a listener like the daemon's. No process accepts from it; the kernel's handshake is enough.
fn transparent_listener(host: &Host) -> Socket {
    let listener = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_ip_transparent_v4(true)?;
        socket.set_mark(Config::default().rules.own_mark.client())?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 5000)).into())?;
        socket.listen(16)?;
        Ok(socket)
    };
    host.enter(listener).expect("a transparent listener")
}

fn intercept(host: &Host, config: &str) {
    let config = Config::parse(config, &[]).expect("no faults");
    host.enter(|| {
        tcp_intercept::host::rules::install(&config, tcp_intercept::host::rules::RulesOwner::Operator)
    })
    .expect("the rules are installed");
}

/// Returns whether a connection succeeds. The server does not listen, so only the box's listener can complete it.
fn connects(lab: &Lab) -> bool {
    let to = lab.server_at(lab::Ip::V4, 80);
    lab.client().enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2))).is_ok()
}
