//! The findings of `check` on the two boxes when connections do not use all paths.
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};

use lab::{BOTH, Daemon, Host, Pair, netns, peers, wait_until};
use serde_json::Value;
use tcp_intercept::cmd;
use tcp_intercept::config::Config;

use crate::support::{BIN, Boxes, FAR, NEAR, SOON};

/// Returns the warnings of `check` about the paths on `host`.
fn warnings(host: &Host, sets: &[&str]) -> Vec<String> {
    of_level(host, sets, "warning")
}

fn of_level(host: &Host, sets: &[&str], level: &str) -> Vec<String> {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let (text, _) = host.enter(|| cmd::check::report(Config::parse("", &sets), true));
    let all: Value = serde_json::from_str(&text).unwrap();
    let findings = all["findings"].as_array().unwrap().iter();
    let about = findings.filter(|finding| finding["name"] == "paths" && finding["level"] == level);
    about.map(|finding| finding["what"].as_str().unwrap().to_owned()).collect()
}

/// Builds two paths, and boxes whose initial receive buffers have room for both paths.
fn roomy() -> Pair {
    let pair = Pair::plain(2);
    [&pair.near, &pair.far].iter().for_each(|host| host.sysctl("net.ipv4.tcp_rmem", "4096 1048576 33554432"));
    pair
}

/// Opens three connections one after another, and waits until `done` is true for each.
fn connections(pair: &Pair, mut done: impl FnMut(u64) -> bool) {
    for n in 1..=3 {
        // A different server each time, because a server with which MPTCP has failed is dialled with TCP for a while.
        let server = IpAddr::from(Ipv4Addr::new(10, 2, 0, 10 + n as u8));
        pair.server.ip(&format!("address add {server}/24 dev eth0"));
        let (client, server, _) = peers::pair(&pair.client, &pair.server, (server, 8000).into());
        (&client).write_all(b"first bytes").unwrap();
        wait_until("the connection", SOON, || done(n));
        drop((client, server));
    }
}

#[test]
fn two_boxes_whose_connections_use_both_paths_have_nothing_to_mend() {
    netns(|| {
        let pair = roomy();
        let _boxes = Boxes::start(&pair);
        connections(&pair, |n| pair.far.counter("MPTcpExtMPJoinAckRx") == n);
        for (host, sets) in [(&pair.near, NEAR), (&pair.far, FAR)] {
            assert_eq!(warnings(host, &sets), [""; 0], "{host}");
            let ok = of_level(host, &sets, "ok");
            assert!(ok[0].contains("scheduler default") && ok[0].contains("path manager kernel"), "{ok:?}");
        }
    });
}

#[test]
fn what_the_other_box_lacks_is_seen_in_what_has_never_come_about() {
    let path = "10.3.1.1";
    let cases: [(&[&str], &str, &str, &str); 3] = [
        (
            &[],
            "",
            "MPTcpExtMPCapableSYNTX",
            "3 connections were dialled with MPTCP, none was answered with it",
        ),
        (
            &FAR[..1],
            "",
            "MPTcpExtMPCapableSYNACKRX",
            "3 connections were answered with MPTCP, and no address was announced",
        ),
        (&FAR, "drop", "MPTcpExtMPJoinSynTx", "3 subflows were dialled on other paths"),
    ];
    for (far, firewall, counter, told) in cases {
        netns(|| {
            let pair = roomy();
            if !firewall.is_empty() {
                pair.far.nft(&format!(
                    "table inet firewall {{ chain input {{
                         type filter hook input priority 0; ip saddr {path} tcp dport 5001 {firewall}
                     }}
                     }}"
                ));
            }
            let _near = Daemon::start(&pair.near, BIN, &NEAR);
            let _far = Daemon::start(&pair.far, BIN, far);
            connections(&pair, |n| pair.near.counter(counter) == n);
            let warnings = warnings(&pair.near, &NEAR);
            assert!(warnings.iter().any(|line| line.contains(told)), "{told}: {warnings:?}");
            if far == FAR {
                let warnings = self::warnings(&pair.far, &FAR);
                assert!(warnings[0].ends_with("no peer has opened a subflow to it"), "{warnings:?}");
            }
        });
    }
}

#[test]
fn a_path_without_a_route_from_its_address_is_told() {
    netns(|| {
        let pair = roomy();
        for ip in BOTH {
            for (host, address) in [(&pair.near, pair.near_at(1, ip, 0)), (&pair.far, pair.far_at(1, ip, 0))]
            {
                host.ip(&format!("{} rule delete from {}", ip.option(), address.ip()));
            }
        }
        let notes = of_level(&pair.near, &NEAR, "note");
        for address in ["10.3.1.1", "fd03:0:0:1::1"] {
            let told = format!("wan1: from {address} only hosts of its own network can be reached");
            assert!(notes.contains(&told), "{notes:?}");
        }
        assert_eq!(warnings(&pair.far, &FAR), ["wan1: what is sent from 10.3.1.2 leaves by another device"]);
    });
}
