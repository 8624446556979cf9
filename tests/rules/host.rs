//! Installation and removal of the rules on one host.
use std::num::NonZeroU32;

use tcp_intercept::cmd::rules::{self as cmd, Action};
use tcp_intercept::config::{Config, FastOpen};
use tcp_intercept::exit::Exit;
use tcp_intercept::host::rules::{self, Caller, Format, Gate, RulesOwner, Verdict};

use crate::support::{early_demux, interfaces, ours, sh, view};

fn remove() -> rules::Removed {
    rules::remove(Config::default().rules.own_mark, Caller::Operator).unwrap()
}

#[test]
fn installing_adds_what_other_programs_see_and_removing_leaves_the_host_as_it_was() {
    lab::netns(|| {
        let before = view();
        let installed = rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        assert_eq!(installed.found, Verdict::Absent);
        assert!(installed.changes.iter().any(|text| text == "set net.ipv4.tcp_early_demux to 0 (it was 1)"));
        for ip in ["ip", "ip -6"] {
            let rules = sh(&format!("{ip} rule show priority 100"));
            assert_eq!(rules.trim(), "100:\tfrom all fwmark 0x1/0x1 lookup 5 proto 155");
            let route = sh(&format!("{ip} route show table 5"));
            assert!(route.starts_with("local default dev lo proto 155"), "{route}");
        }
        let table = sh("nft list table inet tcp_intercept");
        for part in [
            "tproxy ip to 127.0.0.1:5000",
            "tproxy ip6 to [::1]:5000",
            "hook prerouting priority dstnat + 10",
        ] {
            assert!(table.contains(part), "{part}: {table}");
        }
        assert_eq!(early_demux(), "0");
        assert_eq!(rules::status(&Config::default()).unwrap().verdict, Verdict::Installed);
        let removed = remove();
        assert_eq!(removed.remarks, [""; 0]);
        assert_eq!(view(), before);
        assert_eq!(remove().changes, [""; 0], "nothing is left to remove");
    });
}

#[test]
fn an_ordinary_user_in_a_namespace_of_his_own_can_do_the_same() {
    lab::netns_as_user(|| {
        let before = view();
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        assert_eq!(rules::status(&Config::default()).unwrap().verdict, Verdict::Installed);
        remove();
        assert_eq!(view(), before);
    });
}

#[test]
fn installing_twice_changes_nothing() {
    lab::netns(|| {
        for config in [Config::default(), interfaces(&["lan0", "lan1"])] {
            rules::install(&config, RulesOwner::Operator).unwrap();
            let before = view();
            let again = rules::install(&config, RulesOwner::Operator).unwrap();
            assert_eq!((again.found, again.changes), (Verdict::Installed, Vec::new()));
            assert_eq!(view(), before);
        }
    });
}

#[test]
fn another_configuration_replaces_the_old_one_and_leaves_none_of_it() {
    lab::netns(|| {
        let before = view();
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        let mut other = interfaces(&["lan0"]);
        other.rules.mark = "0x100/0xf00".parse().unwrap();
        other.rules.table = NonZeroU32::new(1000).unwrap();
        assert_eq!(rules::status(&other).unwrap().verdict, Verdict::Differ);
        assert_eq!(rules::install(&other, RulesOwner::Operator).unwrap().found, Verdict::Differ);
        assert_eq!(rules::status(&other).unwrap().verdict, Verdict::Installed);
        assert!(!ours().contains("lookup 5 ") && !ours().contains("table 5 "), "{}", ours());
        remove();
        assert_eq!(
            view(),
            before,
            "early demux has its first value, not the 0 that the second installation found"
        );
    });
}

#[test]
fn whatever_half_of_it_is_there_status_names_it_install_mends_it_and_remove_takes_it_away() {
    lab::netns(|| {
        let before = view();
        let halves = [
            "nft delete table inet tcp_intercept",
            "ip rule del priority 100",
            "ip -6 route flush table 5",
            "ip rule del priority 100; ip -6 rule del priority 100; ip route flush table 5; ip -6 route flush table 5",
            "nft flush chain inet tcp_intercept syn",
            "nft delete chain inet tcp_intercept client_leg_out",
            "nft flush chain inet tcp_intercept state",
            "nft add rule inet tcp_intercept syn tcp dport 22 return",
            "nft delete table inet tcp_intercept; ip rule del priority 100; ip route flush table 5",
        ];
        for half in halves {
            rules::install(&Config::default(), RulesOwner::Operator).unwrap();
            sh(half);
            let status = rules::status(&Config::default()).unwrap();
            assert_eq!(status.verdict, Verdict::Partly, "{half}");
            assert!(!status.differences.is_empty(), "{half}");
            rules::install(&Config::default(), RulesOwner::Operator).unwrap();
            assert_eq!(rules::status(&Config::default()).unwrap().verdict, Verdict::Installed, "{half}");
            sh(half);
            let removed = remove();
            assert_eq!(ours(), "", "{half}");
            let record_is_gone = half.contains("table inet") || half.contains("state");
            assert_eq!(removed.remarks.len(), usize::from(record_is_gone), "{half}: {removed:?}");
            // If the record was destroyed, the original value of early demux is unknown.
            sh("echo 1 > /proc/sys/net/ipv4/tcp_early_demux");
            assert_eq!(view(), before, "{half}");
        }
    });
}

#[test]
fn what_an_operator_has_is_never_touched() {
    lab::netns(|| {
        sh("nft -f - <<'END'
            table inet operator {
              chain post { type nat hook postrouting priority srcnat; oifname \"wan0\" masquerade; }
              chain input { type filter hook input priority filter; policy drop; iifname \"lo\" accept; }
            }
            table ip tcp_intercept { chain not_ours { type filter hook prerouting priority raw; }; }
END
            ip rule add fwmark 0x1/0x1 lookup 5 priority 100 protocol static
            ip -6 rule add fwmark 0x1/0x1 lookup 5 priority 101
            ip rule add fwmark 0x1/0x1 lookup 7 priority 102 protocol 154
            ip route add 203.0.113.0/24 dev lo table 5
            ip -6 route add 2001:db8::/32 dev lo table 5 protocol static
            ip route add default dev lo table 7");
        let before = view();
        let installed = rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        assert!(
            installed.remarks.iter().any(|text| text.contains("203.0.113.0/24")),
            "{:?}",
            installed.remarks
        );
        remove();
        assert_eq!(view(), before);
        remove();
        assert_eq!(view(), before);
    });
}

#[test]
fn the_routes_that_1_1_0s_init_script_left_are_used_and_left() {
    lab::netns(|| {
        sh(
            "for ip in ip 'ip -6'; do $ip route add local default dev lo table 5; done; ip rule add fwmark 1/1 lookup 5",
        );
        let before = view();
        let installed = rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        assert!(!installed.changes.iter().any(|change| change.contains("route")), "{:?}", installed.changes);
        assert_eq!(rules::status(&Config::default()).unwrap().verdict, Verdict::Installed);
        remove();
        assert_eq!(view(), before);
    });
}

#[test]
fn without_ipv6_only_ipv4_is_intercepted_and_that_is_said() {
    lab::netns(|| {
        sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        let before = view();
        let installed = rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        assert!(installed.remarks.iter().any(|text| text.contains("IPv6")), "{:?}", installed.remarks);
        assert!(!sh("nft list table inet tcp_intercept; ip -6 rule").contains("ip6"));
        assert_eq!(rules::status(&Config::default()).unwrap().verdict, Verdict::Installed);
        remove();
        assert_eq!(view(), before);
    });
}

#[test]
fn fast_open_sets_its_bit_keeps_the_others_and_gives_it_back() {
    lab::netns(|| {
        let fast_open = || sh("cat /proc/sys/net/ipv4/tcp_fastopen").trim().to_owned();
        sh("echo 0x401 > /proc/sys/net/ipv4/tcp_fastopen || echo 1025 > /proc/sys/net/ipv4/tcp_fastopen");
        let mut config = Config::default();
        config.client.fast_open = FastOpen::Cookie;
        let installed = rules::install(&config, RulesOwner::Operator).unwrap();
        assert!(installed.changes.contains(&"set net.ipv4.tcp_fastopen to 1027 (it was 1025)".to_owned()));
        assert_eq!(fast_open(), "1027");
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        assert_eq!(fast_open(), "1025", "no longer asked for");
        rules::install(&config, RulesOwner::Operator).unwrap();
        remove();
        assert_eq!(fast_open(), "1025");
    });
}

#[test]
fn a_sysctl_that_somebody_changed_meanwhile_is_left_and_that_is_said() {
    lab::netns(|| {
        let mut config = Config::default();
        config.client.fast_open = FastOpen::NoCookie;
        rules::install(&config, RulesOwner::Operator).unwrap();
        sh("echo 7 > /proc/sys/net/ipv4/tcp_fastopen; echo 1 > /proc/sys/net/ipv4/tcp_early_demux");
        let removed = remove();
        assert_eq!(removed.remarks.len(), 2, "{:?}", removed.remarks);
        assert_eq!(sh("cat /proc/sys/net/ipv4/tcp_fastopen").trim(), "7");
        assert_eq!(early_demux(), "1");
    });
}

#[test]
fn the_gate_is_closed_and_opened_and_is_no_difference_to_what_is_installed() {
    lab::netns(|| {
        assert!(rules::gate(Gate::Closed).is_err(), "nothing is installed");
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        let open = view();
        rules::gate(Gate::Closed).unwrap();
        let status = rules::status(&Config::default()).unwrap();
        assert_eq!((status.verdict, status.gate), (Verdict::Installed, Some(Gate::Closed)));
        assert!(sh("nft list chain inet tcp_intercept gate").contains("goto full"));
        rules::gate(Gate::Open).unwrap();
        assert_eq!(view(), open);
    });
}

#[test]
fn what_print_shows_is_what_is_installed() {
    lab::netns(|| {
        let text = rules::print(&Config::default(), Format::Nft);
        rules::install(&Config::default(), RulesOwner::Operator).unwrap();
        let show = "nft -s list table inet tcp_intercept; ip rule; ip -6 rule; ip route show table 5; ip -6 route show table 5";
        let installed = sh(show);
        remove();
        std::fs::write("/run/rules.nft", &text).unwrap();
        // The commands in its comments are meant for people to type.
        sh(
            "nft -f /run/rules.nft; sed -n 's/^# \\(ip .*\\|echo .*\\)/\\1/p' /run/rules.nft > /run/commands; sh -e /run/commands",
        );
        assert_eq!(sh(show), installed, "{text}");
        assert_eq!(rules::status(&Config::default()).unwrap().verdict, Verdict::Installed, "{text}");
    });
}

#[test]
fn what_a_killed_daemon_left_goes_with_the_next_one_and_what_an_operator_installed_stays() {
    lab::netns(|| {
        let config = Config::default();
        let before = view();
        rules::install(&config, RulesOwner::Daemon).unwrap();
        let left = view();
        let found = rules::install(&config, RulesOwner::Daemon).unwrap();
        assert_eq!((found.found, found.owner), (Verdict::Installed, RulesOwner::Daemon));
        assert_eq!(view(), left, "the next one has nothing to do");
        rules::remove(config.rules.own_mark, Caller::Daemon).unwrap();
        assert_eq!(view(), before);
        rules::install(&config, RulesOwner::Operator).unwrap();
        let found = rules::install(&interfaces(&["lan0"]), RulesOwner::Daemon).unwrap();
        assert_eq!((found.found, found.owner), (Verdict::Differ, RulesOwner::Operator));
    });
}

#[test]
fn the_command_says_what_it_did_and_what_is_wrong() {
    lab::netns(|| {
        let config = Config::default();
        let run = |action| cmd::run(action, &config);
        let absent = run(Action::Status).unwrap_err();
        assert_eq!(absent.exit, Exit::Unavailable);
        assert!(absent.message.contains("not installed"), "{absent}");
        let installed = run(Action::Install).unwrap();
        assert!(installed.starts_with("rules: installed\n"), "{installed}");
        assert!(installed.contains("did: set net.ipv4.tcp_early_demux to 0 (it was 1)"), "{installed}");
        assert!(run(Action::Install).unwrap().contains("already installed: nothing was changed"));
        assert_eq!(run(Action::Status).unwrap(), "rules: installed\n");
        rules::gate(Gate::Closed).unwrap();
        assert!(run(Action::Status).unwrap().contains("the gate is closed"));
        sh("ip rule del priority 100");
        let partly = run(Action::Status).unwrap_err();
        assert!(partly.message.contains("found: the policy rule \"fwmark 0x1/0x1 lookup 5"), "{partly}");
        assert!(partly.message.contains("tcp-intercept rules install"), "{partly}");
        let removed = run(Action::Remove).unwrap();
        assert!(removed.contains("did: delete the nft table inet tcp_intercept"), "{removed}");
        assert_eq!(run(Action::Remove).unwrap(), "rules: nothing to remove\n");
    });
}
