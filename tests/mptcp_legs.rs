//! Multipath TCP on a leg: where it is not to be had the session is TCP, knows why and remembers it; where it is, each option reaches
//! each path, and the record says what went by which.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::peers::expect_reset;
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Host, Ip, Pair, netns, wait_until, words};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 8000;
const NEAR: &str = "server.mptcp=true";
const FAR: &str = "client.mptcp=true";
const BYTES: u64 = 16 << 20;

/// A connection through the boxes, with its ends.
struct Line {
    client: TcpStream,
    server: TcpStream,
    from: SocketAddr,
    to: SocketAddr,
}

impl Line {
    fn new(pair: &Pair, ip: Ip) -> Self {
        let to = pair.server_at(ip, PORT);
        let (client, server, from) = lab::peers::pair(&pair.client, &pair.server, to);
        Self { client, server, from, to }
    }

    /// Sends both ways at once, to the end of each.
    fn exchange(self) -> (SocketAddr, SocketAddr) {
        stream::exchange(&self.client, &self.server, BYTES, Pace::FULL);
        (self.from, self.to)
    }

    /// The record that `daemon` writes when the connection has carried data and ended.
    fn record(self, daemon: &Daemon) -> Value {
        let (from, to) = self.exchange();
        daemon.record_of(from, to)
    }
}

/// Lets the two boxes use all their paths, as design decision 6 says: the far one announces its address on each further path with a
/// port, the near one accepts that.
fn join_paths(pair: &Pair, paths: u8) {
    pair.near.run("ip mptcp limits set subflows 4 add_addr_accepted 4");
    pair.far.run("ip mptcp limits set subflows 4");
    for n in 1..paths {
        let at = pair.far_at(n, Ip::V4, 5001);
        let (ip, port) = (at.ip(), at.port());
        pair.far.run(&format!("ip mptcp endpoint add {ip} dev wan{n} id {n} signal port {port}"));
        let ip = pair.near_at(n, Ip::V4, 0).ip();
        pair.near.run(&format!("ip mptcp endpoint add {ip} dev wan{n} id {n} subflow"));
    }
}

/// The subflows that `host` has to the far box and the server: a line for each.
fn subflows(host: &Host) -> Vec<String> {
    let shown = host.run("ss -HtnioeO state established");
    shown.lines().filter(|line| line.contains("tcp-ulp-mptcp")).map(str::to_owned).collect()
}

/// What the kernel says of paths is not to the byte. Received FINs count; what is sent by one path and again by another counts for
/// both; and on a link without delay they may be gone when the last of it has been sent.
fn nearly(bytes: u64) -> bool {
    (BYTES / 2..2 * BYTES).contains(&bytes)
}

fn number(record: &Value, key: &str) -> u64 {
    record[key].as_u64().unwrap_or_else(|| panic!("{key}: {record}"))
}

/// The bytes sent and received by each path, as a record says under `key`.
fn carried(record: &Value, key: &str) -> Vec<(u64, u64)> {
    let paths = record[key].as_str().unwrap_or_else(|| panic!("{key}: {record}"));
    let counts = paths.split(", ").map(|path| path.split_once(' ').unwrap().1.split_once('/').unwrap());
    counts.map(|(sent, received)| (sent.parse().unwrap(), received.parse().unwrap())).collect()
}

/// Does this to what the near box sends to the far one.
fn obstruct(pair: &Pair, rule: &str) {
    pair.far.nft(&format!(
        "table inet obstruction {{
            chain arriving {{
                type filter hook prerouting priority -440; iifname wan0 {rule}
            }}
        }}"
    ));
}

fn clear(pair: &Pair) {
    pair.far.run("nft delete table inet obstruction");
}

#[test]
fn a_far_box_without_it_is_dialled_with_plain_tcp_the_second_time_and_the_record_says_why() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[NEAR]);
        for (n, ip) in (1..).zip(BOTH) {
            let first = Line::new(&pair, ip).record(&near);
            assert_eq!(words(&first, "cause server_mptcp server_paths"), "eof fallback null");
            for _ in 0..2 {
                let line = Line::new(&pair, ip);
                assert_eq!(pair.near.run("ss -HMn state established"), "", "no socket of MPTCP");
                assert_eq!(words(&line.record(&near), "cause server_mptcp"), "eof avoided");
            }
            assert_eq!(pair.near.counter("MPTcpExtMPCapableSYNTX"), n, "asked for once in each family");
        }
        let log = near.stop().1;
        assert!(log.contains(" mptcp=0 mptcp-failed=2 mptcp-avoided=4 "), "{log}");
    });
}

#[test]
fn where_syns_with_it_are_lost_the_kernels_own_fallback_comes_first_and_is_remembered() {
    netns(|| {
        let pair = Pair::plain(1);
        pair.near.sysctl("net.mptcp.blackhole_timeout", "0");
        let near = Daemon::start(&pair.near, BIN, &[NEAR]);
        obstruct(&pair, "tcp flags & syn == syn tcp option mptcp exists drop");
        let ended = Line::new(&pair, Ip::V4).record(&near);
        assert_eq!(words(&ended, "cause server_mptcp"), "eof lost");
        let ended = Line::new(&pair, Ip::V4).record(&near);
        assert_eq!(words(&ended, "cause server_mptcp"), "eof avoided");
        assert_eq!(pair.near.counter("MPTcpExtMPCapableSYNTXDrop"), 1);
    });
}

#[test]
fn a_connect_timeout_that_leaves_the_kernel_no_time_to_fall_back_costs_one_connection() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[NEAR, "server.connect-timeout=2s"]);
        obstruct(&pair, "tcp flags & syn == syn tcp option mptcp exists drop");
        let to = pair.server_at(Ip::V4, PORT);
        let client = pair.client.connect(to).unwrap();
        expect_reset(&client);
        let record = near.record_of(client.local_addr().unwrap(), to);
        assert_eq!(words(&record, "phase cause"), "connect connect-timeout");
        let ended = Line::new(&pair, Ip::V4).record(&near);
        assert_eq!(words(&ended, "cause server_mptcp"), "eof avoided");
    });
}

#[test]
fn what_passes_the_handshake_and_not_the_data_is_broken_and_remembered() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[NEAR]);
        let _far = Daemon::start(&pair.far, BIN, &[FAR]);
        obstruct(&pair, "tcp flags & syn == 0 reset tcp option mptcp");
        let ended = Line::new(&pair, Ip::V4).record(&near);
        assert_eq!(words(&ended, "cause server_mptcp server_subflows"), "eof broken null");
        clear(&pair);
        let ended = Line::new(&pair, Ip::V4).record(&near);
        assert_eq!(words(&ended, "cause server_mptcp"), "eof avoided");
        let ended = Line::new(&pair, Ip::V6).record(&near);
        assert_eq!(words(&ended, "cause server_mptcp"), "eof yes", "another address is another server");
    });
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

/// Sends a byte and then another through the near box, whose confirmations are lost. Tail loss probes, which send what Nagle's
/// algorithm keeps back, are off.
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

/// Drops all that comes to the far box from the near one.
const CUT: &str = "drop";

#[test]
fn the_user_timeout_holds_on_an_mptcp_leg_and_strikes_only_when_something_waits() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[NEAR, "server.user-timeout=2s"]);
        let _far = Daemon::start(&pair.far, BIN, &[FAR]);
        for ip in BOTH {
            let mut line = Line::new(&pair, ip);
            obstruct(&pair, CUT);
            // Nothing waits: this is no reason to end a connection.
            std::thread::sleep(Duration::from_secs(4));
            assert!(near.close_records().is_empty() || ip == Ip::V6);
            assert!(line.client.take_error().unwrap().is_none());
            line.client.write_all(b"is anybody there?").unwrap();
            // Mended in time, it goes on.
            std::thread::sleep(Duration::from_secs(1));
            clear(&pair);
            let mut got = [0; 17];
            line.server.read_exact(&mut got).unwrap();
            obstruct(&pair, CUT);
            line.client.write_all(b"and now?").unwrap();
            expect_reset(&line.client);
            let record = near.record_of(line.from, line.to);
            assert_eq!(words(&record, "by phase cause server_mptcp"), "server relay timed-out yes");
            clear(&pair);
        }
        let log = near.stop().1;
        assert!(!log.contains("left out"), "{log}");
    });
}

#[test]
fn without_a_user_timeout_nothing_of_ours_ends_a_session_whose_peer_is_silent() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[NEAR]);
        let _far = Daemon::start(&pair.far, BIN, &[FAR]);
        let mut line = Line::new(&pair, Ip::V4);
        obstruct(&pair, CUT);
        line.client.write_all(b"is anybody there?").unwrap();
        std::thread::sleep(Duration::from_secs(4));
        assert!(near.close_records().is_empty(), "{}", near.log());
        clear(&pair);
        line.server.read_exact(&mut [0; 17]).unwrap();
    });
}

#[test]
fn keepalive_ends_a_session_whose_peer_is_gone_from_all_its_paths() {
    netns(|| {
        let pair = Pair::plain(1);
        pair.near.sysctl("net.mptcp.close_timeout", "1");
        let keepalive = "server.keepalive={ idle = \"1s\", interval = \"1s\", probes = 2 }";
        let near = Daemon::start(&pair.near, BIN, &[NEAR, keepalive]);
        let _far = Daemon::start(&pair.far, BIN, &[FAR]);
        let line = Line::new(&pair, Ip::V4);
        obstruct(&pair, CUT);
        expect_reset(&line.client);
        let record = near.record_of(line.from, line.to);
        assert_eq!(words(&record, "by phase cause"), "server relay timed-out");
    });
}
