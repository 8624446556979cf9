//! The addresses on which `-b` listens, and which connections they intercept.
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use lab::peers::{self, Server, whoami};
use lab::stream::{self, Pace};
use lab::{BOTH, Ip, Lab, netns, wait_until};

use crate::support::{BIN, Daemon, SOON, closed, foreground, install_rules, log, seen_by};

/// Returns how many legs the box has of a new connection to `port`: two if it is intercepted, none if it is routed.
fn legs(lab: &Lab, ip: Ip, port: u16) -> usize {
    let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, port));
    let legs = lab.gateway.ss(&format!("-tn state established '( sport = :{port} or dport = :{port} )'"));
    stream::exchange(&near, &far, 100_000, Pace::FULL);
    legs.lines().count()
}

#[test]
fn by_default_it_listens_on_all_ipv4_addresses_on_every_core_with_room_for_4096() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.core.somaxconn", "4096");
        let _daemon = foreground(&lab, &[]);
        let listeners = lab.gateway.ss("-tln");
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        assert_eq!(listeners.lines().count(), cores, "{listeners}");
        for listener in listeners.lines() {
            assert!(listener.contains(" 4096 ") && listener.contains(" 0.0.0.0:5000 "), "{listener}");
        }
    });
}

#[test]
fn each_way_to_write_an_address_intercepts_its_own_protocol_and_the_other_is_routed() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        for (port, (listen, bound, intercepted)) in (7000..).zip([
            ("[0.0.0.0]:[5000]", "0.0.0.0:5000", [2, 0]),
            ("0.0.0.0:5000", "0.0.0.0:5000", [2, 0]),
            ("[127.0.0.1]:[5000]", "127.0.0.1:5000", [2, 0]),
            ("[::]:[5000]", "*:5000", [2, 2]),
            (":::5000", "*:5000", [2, 2]),
            ("[::1]:[5000]", "[::1]:5000", [0, 2]),
        ]) {
            let daemon = Daemon::start(&lab, &format!("-B client -b '{listen}'"));
            let listeners = lab.gateway.ss("-tln");
            assert!(listeners.contains(&format!(" {bound} ")), "{listen}: {listeners}");
            assert_eq!(BOTH.map(|ip| legs(&lab, ip, port)), intercepted, "{listen}");
            assert_eq!(daemon.stop(), Some(0));
        }
    });
}

#[test]
fn another_port_needs_rules_that_lead_there() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.run(&format!("{BIN} rules install --set listen.port=5001"));
        let _daemon = Daemon::start(&lab, "-b [::]:[5001]");
        assert_eq!(BOTH.map(|ip| legs(&lab, ip, 7)), [2, 2]);
    });
}

#[test]
fn a_connection_to_the_listener_itself_is_dropped_with_a_warning() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let daemon = Daemon::start(&lab, "-b [::]:[5000]");
        for address in ["10.1.0.1:5000", "[fd01::1]:5000", "10.2.0.1:5000", "[fd02::1]:5000"] {
            // The reset may arrive before connect() returns.
            if let Ok(mut stream) = lab.client().connect(address.parse().unwrap()) {
                assert!(
                    stream.write_all(b"hello").is_err() || stream.read(&mut [0; 1]).is_err(),
                    "{address}"
                );
            }
        }
        wait_until("the warning", SOON, || log().contains("to the listener itself"));
        assert_eq!(daemon.stop(), Some(0));
        assert!(log().contains("to-listener=4"), "{}", log());
        assert!(!log().contains(" closed client="), "{}", log());
    });
}

#[test]
fn trap_2_a_client_whose_own_port_is_the_wildcard_listeners_gets_another_and_is_not_dropped() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        for (listen, kept) in [("[::]:[5000]", false), ("[127.0.0.1]:[5000]", true)] {
            let daemon = Daemon::start(&lab, &format!("-B client -b {listen}"));
            let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), whoami);
            let from = lab.client_at(0, Ip::V4, 5000);
            let stream = lab.client().connect_from(from, server.address).unwrap();
            let seen = seen_by(&stream);
            assert_eq!((seen.ip(), seen == from), (from.ip(), kept), "{listen}: {seen}");
            peers::reset(stream);
            let dialled = if kept { "first" } else { "other-port" };
            assert_eq!(closed(from, "source dialled"), format!("{seen} {dialled}"));
            assert_eq!(daemon.stop(), Some(0));
            std::fs::remove_file(crate::support::LOG).unwrap();
        }
    });
}

#[test]
fn the_set_up_of_the_host_is_neither_made_nor_removed() {
    netns(|| {
        let lab = Lab::new();
        let view = || {
            lab.gateway.run(
                "nft -st list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
                 cat /proc/sys/net/ipv4/tcp_early_demux",
            )
        };
        for install in [false, true] {
            if install {
                install_rules(&lab);
            }
            let before = view();
            let daemon = Daemon::start(&lab, "-B client");
            assert_eq!(view(), before);
            assert_eq!(legs(&lab, Ip::V4, 7), if install { 2 } else { 0 });
            assert_eq!(daemon.stop(), Some(0));
            assert_eq!(view(), before);
        }
    });
}
