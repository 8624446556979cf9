//! The effect of `-k` and `-n` on both legs, and the settings that a leg takes from the host.
use std::io::{Read, Write};
use std::net::TcpStream;

use lab::peers::{self, expect_reset};
use lab::{BOTH, Host, Ip, Lab, netns, wait_until};

use crate::support::{Daemon, SOON, closed, install_rules};

/// Filters of `ss` for client legs and server legs, by their marks.
const CLIENT: &str = "fwmark = 0x4/0x6";
const SERVER: &str = "fwmark = 0x2/0x6";

/// Opens a connection through the box and waits until both legs are established. They have its server's port.
fn session(lab: &Lab, ip: Ip, port: u16) -> (TcpStream, TcpStream) {
    let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, port));
    wait_until("both legs", SOON, || legs(lab, "", port).lines().count() == 2);
    (near, far)
}

/// Returns the legs of connections to `port`, one line each with timers and figures: all legs, or those with a mark.
fn legs(lab: &Lab, mark: &str, port: u16) -> String {
    let mark = if mark.is_empty() { String::new() } else { format!("and {mark}") };
    lab.gateway.ss(&format!("-tnoiO state established '( sport = :{port} or dport = :{port} ) {mark}'"))
}

/// Sets the keepalive timers of the box's host.
fn with_timers(lab: &Lab, idle: &str, interval: &str, probes: &str) {
    for (key, value) in [("time", idle), ("intvl", interval), ("probes", probes)] {
        lab.gateway.sysctl(&format!("net.ipv4.tcp_keepalive_{key}"), value);
    }
}

#[test]
fn with_k_both_legs_have_the_hosts_keepalive_timer_and_without_k_none() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        with_timers(&lab, "900", "75", "9");
        for (options, timers) in [("-k", 2), ("--keepalive", 2), ("", 0)] {
            let daemon = Daemon::start(&lab, &format!("{options} -b [::]:[5000]"));
            for (ip, port) in BOTH.into_iter().zip([7, 8]) {
                let _ends = session(&lab, ip, port);
                let timer = || legs(&lab, "", port).matches("timer:(keepalive,14min").count();
                wait_until(&format!("{timers} timers with {options:?}, {ip:?}"), SOON, || timer() == timers);
                assert_eq!(legs(&lab, "", port).matches("keepalive").count(), timers);
            }
            assert_eq!(daemon.stop(), Some(0));
        }
    });
}

/// Makes `host` drop all traffic from here on.
fn vanish(host: &Host) {
    host.nft(
        "table inet gone { chain input { type filter hook input priority 0; policy drop; }
                           chain output { type filter hook output priority 0; policy drop; }; }",
    );
}

#[test]
fn with_k_a_connection_whose_peer_has_vanished_ends_by_the_hosts_timers() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        with_timers(&lab, "1", "1", "2");
        let _daemon = Daemon::start(&lab, "-k -b [::]:[5000]");
        for (ip, port) in BOTH.into_iter().zip([7, 8]) {
            for (gone, by) in [(&lab.server, "server"), (lab.client(), "client")] {
                let (near, far) = session(&lab, ip, port);
                vanish(gone);
                let record = closed(near.local_addr().unwrap(), "by phase cause");
                assert_eq!(record, format!("{by} relay timed-out"), "{ip:?}");
                expect_reset(if by == "server" { &near } else { &far });
                gone.nft("delete table inet gone");
            }
        }
    });
}

/// Stops `to`, on `host`, from acknowledging data. Returns whether the second of two small segments from `from` is sent
/// nevertheless.
fn sent_at_once(
    lab: &Lab,
    mut from: &TcpStream,
    mut to: &TcpStream,
    host: &Host,
    leg: &str,
    port: u16,
) -> bool {
    host.nft(
        "table inet mute { chain output { type filter hook output priority 0;
            tcp flags & (fin | syn | rst | psh | ack) == ack drop; }; }",
    );
    let mut byte = [0];
    from.write_all(b"1").unwrap();
    to.read_exact(&mut byte).unwrap();
    from.write_all(b"2").unwrap();
    let mut state = String::new();
    wait_until("the second segment is sent or held back", SOON, || {
        state = legs(lab, leg, port);
        // Send-Q, the second field, counts both.
        state.split_ascii_whitespace().nth(1) == Some("2")
    });
    let held_back = state.contains(" notsent:1 ");
    host.nft("delete table inet mute");
    to.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"2");
    !held_back
}

#[test]
fn with_n_small_segments_are_sent_at_once_on_both_legs_and_without_n_they_wait() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        // A tail loss probe would send the segment that waits.
        lab.gateway.sysctl("net.ipv4.tcp_early_retrans", "0");
        for (options, at_once) in
            [("-n", true), ("--tcp_nodelay", true), ("--tcp-nodelay", true), ("", false)]
        {
            let daemon = Daemon::start(&lab, &format!("{options} -b [::]:[5000]"));
            for (ip, port) in BOTH.into_iter().zip([7, 8]) {
                let (near, far) = session(&lab, ip, port);
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let to_server = sent_at_once(&lab, &near, &far, &lab.server, SERVER, port);
                let to_client = sent_at_once(&lab, &far, &near, lab.client(), CLIENT, port);
                assert_eq!((to_server, to_client), (at_once, at_once), "{options:?} {ip:?}");
            }
            assert_eq!(daemon.stop(), Some(0));
        }
    });
}

#[test]
fn congestion_control_is_the_hosts_and_multipath_tcp_is_off() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        lab.gateway.sysctl("net.ipv4.tcp_congestion_control", "reno");
        let _daemon = Daemon::start(&lab, "-b [::]:[5000]");
        for (ip, port) in BOTH.into_iter().zip([7, 8]) {
            let (near, far) = session(&lab, ip, port);
            assert_eq!(legs(&lab, "", port).matches(" reno ").count(), 2);
            let client = near.local_addr().unwrap();
            drop((near, far));
            let record = closed(client, "client_cc server_cc client_mptcp server_mptcp");
            assert_eq!(record, "reno reno off off");
        }
    });
}
