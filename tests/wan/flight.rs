//! The amount sent before the first acknowledgement: the sender gets no acknowledgement, and `ss` counts its segments.
use std::io::Write;
use std::net::TcpStream;

use lab::peers::{self, reset};
use lab::{BOTH, Daemon, Host, Ip, Lab, becomes, netns};
use serde_json::Value;
use tcp_intercept::cmd;
use tcp_intercept::config::Config;

use crate::support::{BIN, SOON};

const PORT: u16 = 8000;

/// The sender under test.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sender {
    ClientLeg,
    ServerLeg,
    Server,
}

/// Builds a box between ends with large windows, so that only the box limits the flight.
fn lab() -> Lab {
    let lab = Lab::new();
    for (host, router) in [(lab.client(), 1), (&lab.server, 2)] {
        host.sysctl("net.ipv4.tcp_rmem", "4096 1048576 6291456");
        host.ip(&format!("route change default via 10.{router}.0.1 initcwnd 400"));
        host.ip(&format!("-6 route change default via fd0{router}::1 initcwnd 400"));
    }
    for (host, device) in [(&lab.gateway, "lan0"), (&lab.gateway, "wan0"), (&lab.server, "eth0")] {
        // A tail loss probe would be an additional segment.
        host.sysctl("net.ipv4.tcp_early_retrans", "0");
        // Without this, the last segments of a window would wait for an acknowledgement, to be sent together with
        // further ones.
        host.ip(&format!("link set {device} gso_max_segs 1"));
    }
    lab
}

/// Returns how many segments `sender` of a new connection through the box sends before the first acknowledgement.
fn first_flight(lab: &Lab, settings: &[&str], ip: Ip, sender: Sender) -> u64 {
    let daemon = Daemon::start(&lab.gateway, BIN, settings);
    let (client, server, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, PORT));
    let (deaf, device, host, filter) = match sender {
        Sender::ClientLeg => (lab.client(), "eth0", &lab.gateway, format!("src :{PORT}")),
        Sender::ServerLeg => (&lab.server, "eth0", &lab.gateway, format!("dst :{PORT}")),
        Sender::Server => (&lab.gateway, "wan0", &lab.server, format!("src :{PORT}")),
    };
    deafen(deaf, device);
    give(if sender == Sender::ServerLeg { &client } else { &server });
    let segments = sent_in_vain(host, &filter);
    deaf.nft("delete table inet deaf");
    reset(client);
    reset(server);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    segments
}

/// Makes `host` drop packets with data.
fn deafen(host: &Host, device: &str) {
    host.nft(&format!(
        "table inet deaf {{
            chain deaf {{
                type filter hook prerouting priority -500
                iifname {device} meta l4proto tcp meta length > 200 drop
            }}
        }}"
    ));
}

/// Writes more than any window holds.
fn give(mut stream: &TcpStream) {
    stream.set_nonblocking(true).unwrap();
    assert!(stream.write(&vec![0; 4 << 20]).unwrap() > 0);
}

/// Returns how many distinct segments were sent on the connection that `filter` selects. It waits for a retransmission,
/// which shows that no further new segment may be sent.
fn sent_in_vain(host: &Host, filter: &str) -> u64 {
    let mut shown = String::new();
    let number = |shown: &str, key: &str| -> u64 {
        let word = shown.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
        word.map_or(0, |word| word.parse().unwrap())
    };
    let again = becomes(SOON, || {
        shown = host.ss(&format!("-tni {filter}"));
        number(&shown, "bytes_retrans") > 0
    });
    assert!(again, "nothing was sent a second time: {shown}");
    let bytes = number(&shown, "bytes_sent") - number(&shown, "bytes_retrans");
    bytes.div_ceil(number(&shown, "mss"))
}

#[test]
fn an_accepted_connection_over_a_wan_device_begins_with_the_initial_window() {
    netns(|| {
        let lab = lab();
        for ip in BOTH {
            let flight = |settings: &[&str]| first_flight(&lab, settings, ip, Sender::ClientLeg);
            assert_eq!(flight(&["wan.devices=[\"wan0\"]"]), 10, "{ip:?}: the kernel's");
            assert_eq!(flight(&["wan.devices=[\"lan0\"]"]), 100, "{ip:?}");
        }
    });
}

#[test]
fn a_dialled_connection_over_a_wan_device_begins_with_the_initial_window() {
    netns(|| {
        let lab = lab();
        for ip in BOTH {
            let flight = |settings: &[&str]| first_flight(&lab, settings, ip, Sender::ServerLeg);
            assert_eq!(flight(&["wan.devices=[\"lan0\"]"]), 10, "{ip:?}: the kernel's");
            assert_eq!(flight(&["wan.devices=[\"wan0\"]", "wan.initial-window=40"]), 40, "{ip:?}");
            // The window in a SYN-ACK is not scaled, so the first flight cannot be larger.
            let most = flight(&["wan.devices=[\"wan0\"]"]);
            assert!((44..=46).contains(&most), "{ip:?}: {most}");
        }
    });
}

#[test]
fn servers_may_begin_with_three_times_as_many_segments_as_we_do() {
    netns(|| {
        let lab = lab();
        for ip in BOTH {
            let without = first_flight(&lab, &[], ip, Sender::Server);
            assert!((44..=46).contains(&without), "{ip:?}: {without}");
            let with = first_flight(&lab, &["wan.devices=[\"wan0\"]"], ip, Sender::Server);
            assert!((300..=306).contains(&with), "{ip:?}: {with}");
        }
    });
}

#[test]
fn where_a_sysctl_bounds_what_servers_send_at_first_check_names_it_with_the_value_that_is_needed() {
    netns(|| {
        let lab = lab();
        let config = "wan.devices = ['wan0']";
        let settings = ["wan.devices=[\"wan0\"]"];
        for ip in BOTH {
            lab.gateway.sysctl("net.ipv4.tcp_rmem", "4096 131072 146000");
            let before = first_flight(&lab, &settings, ip, Sender::Server);
            assert!((44..=52).contains(&before), "{ip:?}: {before}");
            let (text, _) = lab.gateway.enter(|| cmd::check::report(Config::parse(config, &[]), true));
            let all: Value = serde_json::from_str(&text).unwrap();
            let wan =
                all["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == "wan").unwrap();
            assert!(wan["what"].as_str().unwrap().contains("50 segments at first, not 100"), "{wan}");
            lab.gateway.run(wan["fix"][0].as_str().unwrap());
            let after = first_flight(&lab, &settings, ip, Sender::Server);
            assert!((100..=102).contains(&after), "{ip:?}: {after}");
        }
    });
}
