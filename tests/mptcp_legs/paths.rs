//! Peers with Multipath TCP: the traffic of each path, and the counts in the close record.
use std::io::{Read, Write};
use std::net::TcpStream;

use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Ip, Pair, netns, wait_until, words};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{BIN, BYTES, FAR, Line, NEAR, PORT, SOON, clear, join_paths, subflows};

/// Returns whether a count is roughly `bytes`. The kernel's counts of paths are not exact: received FINs count, and
/// data that is resent by another path counts twice. On a link without delay, subflows may be gone when the last byte
/// has been sent.
fn nearly(bytes: u64) -> bool {
    (BYTES / 2..2 * BYTES).contains(&bytes)
}

fn number(record: &Value, key: &str) -> u64 {
    record[key].as_u64().unwrap_or_else(|| panic!("{key}: {record}"))
}

/// Returns the bytes sent and received by each path, from a record's `key`.
fn carried(record: &Value, key: &str) -> Vec<(u64, u64)> {
    let paths = record[key].as_str().unwrap_or_else(|| panic!("{key}: {record}"));
    let counts = paths.split(", ").map(|path| path.split_once(' ').unwrap().1.split_once('/').unwrap());
    counts.map(|(sent, received)| (sent.parse().unwrap(), received.parse().unwrap())).collect()
}

#[test]
fn the_records_of_both_boxes_say_what_went_by_which_path() {
    netns(|| {
        let pair = Pair::plain(2);
        join_paths(&pair, 2);
        let near = Daemon::start(&pair.near, BIN, &[NEAR]);
        let far = Daemon::start(&pair.far, BIN, &[FAR]);
        let line = Line::new(&pair, Ip::V4);
        wait_until("a second path", SOON, || subflows(&pair.near).len() == 2);
        let (from, to) = line.exchange();
        for (daemon, leg) in [(&near, "server"), (&far, "client")] {
            let record = daemon.record_of(from, to);
            assert_eq!(words(&record, &format!("cause {leg}_mptcp {leg}_subflows")), "eof yes 2");
            let carried = carried(&record, &format!("{leg}_paths"));
            let total = carried.iter().fold((0, 0), |sum, path| (sum.0 + path.0, sum.1 + path.1));
            assert!(nearly(total.0) && nearly(total.1), "{record}");
        }
        let record = near.record_of(from, to);
        let second = format!("{}>{} ", pair.near_at(1, Ip::V4, 0).ip(), pair.far_at(1, Ip::V4, 0).ip());
        let paths = words(&record, "server_paths");
        assert!(paths.contains(&format!("{}>{} ", from.ip(), to.ip())) && paths.contains(&second), "{paths}");
        assert_eq!((number(&record, "to_server"), number(&record, "to_client")), (BYTES, BYTES));
    });
}

#[test]
fn an_mptcp_client_stays_one_on_its_leg() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &["client.mptcp=true"]);
        for ip in BOTH {
            let to = pair.server_at(ip, PORT);
            let listener = pair.server.listen(to);
            let client: TcpStream = pair.client.enter(|| {
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::from(262)));
                let socket = socket.unwrap();
                socket.connect(&to.into()).unwrap();
                socket.into()
            });
            let (server, from) = listener.accept().unwrap();
            let leg = pair.near.run("ss -HMn state established");
            assert!(leg.contains(&from.to_string()), "{leg}");
            stream::exchange(&client, &server, BYTES, Pace::FULL);
            drop((client, server));
            let record = near.record_of(from, to);
            assert_eq!(words(&record, "cause client_mptcp client_subflows server_mptcp"), "eof yes 1 off");
            let [(sent, received)] = carried(&record, "client_paths")[..] else { panic!("{record}") };
            assert!(nearly(sent) && nearly(received), "{record}");
        }
    });
}

#[test]
fn congestion_control_keepalive_and_the_mark_reach_every_path() {
    netns(|| {
        let pair = Pair::plain(3);
        join_paths(&pair, 3);
        let leg = |leg: &str| [format!("{leg}.congestion-control=reno"), format!("{leg}.mptcp=true")];
        let (near, far) = (leg("server"), leg("client"));
        let _near = Daemon::start(&pair.near, BIN, &near.each_ref().map(String::as_str));
        let _far = Daemon::start(&pair.far, BIN, &far.each_ref().map(String::as_str));
        let line = Line::new(&pair, Ip::V4);
        // Own marks: 0x2 on server legs, 0x4 on client legs.
        for (host, mark) in [(&pair.near, " fwmark:0x2 "), (&pair.far, " fwmark:0x4 ")] {
            wait_until("three paths", SOON, || subflows(host).len() == 3);
            for subflow in subflows(host) {
                let has = |what| assert!(subflow.contains(what), "{host}: {what}: {subflow}");
                [" reno ", mark, "timer:(keepalive,"].into_iter().for_each(has);
            }
        }
        drop(line);
    });
}

/// Sends a byte and then another through the near box, whose acknowledgements are lost. Tail loss probes are off,
/// because they would send what Nagle's algorithm holds back.
fn two_bytes(pair: &Pair, line: &mut Line) {
    pair.near.sysctl("net.ipv4.tcp_early_retrans", "0");
    line.client.set_nodelay(true).unwrap();
    pair.far.nft(
        "table inet obstruction {
            chain output {
                type filter hook output priority 0; oifname wan0 tcp flags & (syn | fin | rst) == 0 drop
            }
        }",
    );
    line.client.write_all(b"1").unwrap();
    line.server.read_exact(&mut [0]).unwrap();
    line.client.write_all(b"2").unwrap();
}

#[test]
fn with_no_delay_a_byte_does_not_wait_for_the_confirmation_of_the_one_before_and_without_it_does() {
    netns(|| {
        let pair = Pair::plain(1);
        let _far = Daemon::start(&pair.far, BIN, &[FAR]);
        for no_delay in [true, false] {
            let _near = Daemon::start(&pair.near, BIN, &[NEAR, &format!("server.no-delay={no_delay}")]);
            let mut line = Line::new(&pair, Ip::V4);
            two_bytes(&pair, &mut line);
            if no_delay {
                line.server.read_exact(&mut [0]).unwrap();
            } else {
                let waits = || subflows(&pair.near).iter().any(|subflow| subflow.contains("notsent:1"));
                wait_until("the byte waits", SOON, waits);
            }
            clear(&pair);
        }
    });
}

#[test]
fn the_initial_window_of_a_further_path_is_that_of_the_route_by_which_it_leaves() {
    netns(|| {
        let pair = Pair::plain(2);
        join_paths(&pair, 2);
        let (near, far) = (pair.near_at(1, Ip::V4, 0).ip(), pair.far_at(1, Ip::V4, 0).ip());
        for (host, other) in [(&pair.near, far), (&pair.far, near)] {
            host.ip(&format!("route change default via {other} dev wan1 table 102 initcwnd 55 initrwnd 55"));
        }
        pair.near.nft(
            "table inet watch {
                chain leaving {
                    type filter hook output priority 0
                    tcp flags & (syn | ack) == syn oifname wan1 meta mark & 0x6 == 0x2 counter
                }
            }",
        );
        let wan = ["wan.devices=[\"wan0\", \"wan1\"]", "wan.initial-window=77"];
        let reno = |leg: &str| format!("{leg}.congestion-control=reno");
        let _near = Daemon::start(&pair.near, BIN, &[&wan[..], &[NEAR, &reno("server")]].concat());
        let _far = Daemon::start(&pair.far, BIN, &[&wan[..], &[FAR, &reno("client")]].concat());
        let line = Line::new(&pair, Ip::V4);
        for host in [&pair.near, &pair.far] {
            wait_until("two paths", SOON, || subflows(host).len() == 2);
            for subflow in subflows(host) {
                let window = if subflow.contains(" 10.3.1.") { " cwnd:55 " } else { " cwnd:77 " };
                assert!(subflow.contains(window), "{host}: {subflow}");
            }
        }
        let counted = pair.near.run("nft list table inet watch");
        assert!(!counted.contains("counter packets 0 "), "the SYN itself has the mark: {counted}");
        drop(line);
    });
}
