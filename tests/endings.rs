//! Every failure of a connection, as the other end sees it: a failure never looks like an orderly end, and is never
//! silent.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use lab::peers::{self, expect_reset};
use lab::{BOTH, Daemon, Ip, Lab, netns, wait_until, words};
use rustix::process::Signal;

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);
const ENDED: &str = "by phase cause";

/// Opens a connection through the box and returns both ends, the client's first.
fn pair(lab: &Lab, to: SocketAddr) -> (TcpStream, TcpStream) {
    let (client, server, _) = peers::pair(lab.client(), &lab.server, to);
    (client, server)
}

fn record(daemon: &Daemon, from: SocketAddr, to: SocketAddr) -> String {
    words(&daemon.record_of(from, to), ENDED)
}

fn read_to_eof(mut stream: &TcpStream) {
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

/// Returns the box's remaining sockets of connections to or from `port`, in every state that `ss` lists.
fn leftovers(lab: &Lab, port: u16) -> String {
    lab.gateway.ss(&format!("-tan '( sport = :{port} or dport = :{port} )'"))
}

fn nothing_is_left(lab: &Lab, port: u16) {
    let mut left = String::new();
    wait_until("no socket is left on the box", SOON, || {
        left = leftovers(lab, port);
        left.is_empty()
    });
}

/// The preparation before one end, `from`, resets a connection to the other.
type Before = fn(from: &TcpStream, to: &TcpStream);

const PHASES: [(&str, Before); 5] = [
    ("before any data", |_, _| {}),
    ("while it sends and all buffers are full", |from, _| assert!(peers::fill(from) > 0)),
    ("while it does not read and all buffers are full", |_, to| assert!(peers::fill(to) > 0)),
    ("behind its own end", |from, to| {
        from.shutdown(Shutdown::Write).unwrap();
        read_to_eof(to);
    }),
    ("behind the other's end", |from, to| {
        to.shutdown(Shutdown::Write).unwrap();
        read_to_eof(from);
    }),
];

fn resets_pass(by: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.gateway, BIN, &[]);
    for ip in BOTH {
        for (port, (phase, before)) in (7001..).zip(PHASES) {
            let to = lab.server_at(ip, port);
            let (client, server) = pair(&lab, to);
            let flow = client.local_addr().unwrap();
            let (from, other) = if by == "client" { (client, server) } else { (server, client) };
            before(&from, &other);
            peers::reset(from);
            eprintln!("{ip:?}: {phase}");
            expect_reset(&other);
            // A reset directly after the handshake may find the daemon still dialling, so the phase is not checked.
            let ended = words(&daemon.record_of(flow, to), "by cause");
            assert_eq!(ended, format!("{by} reset"), "{ip:?}: {phase}");
            nothing_is_left(&lab, port);
        }
    }
}

#[test]
fn a_clients_reset_reaches_the_server_in_every_phase() {
    netns(|| resets_pass("client"));
}

#[test]
fn a_servers_reset_reaches_the_client_in_every_phase() {
    netns(|| resets_pass("server"));
}

#[test]
fn what_was_sent_before_a_reset_arrives_before_it() {
    netns(|| {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let (client, server) = pair(&lab, lab.server_at(ip, 7001));
            for (mut from, mut to) in [(&client, &server), (&server, &client)] {
                from.write_all(b"last words").unwrap();
                let mut words = [0; 10];
                to.read_exact(&mut words).unwrap();
            }
            (&client).write_all(b"last words").unwrap();
            let arrived = || lab.server.ss("-tn sport = :7001").contains(" 10 ");
            wait_until("they wait at the server", SOON, arrived);
            peers::reset(client);
            let mut words = [0; 10];
            (&server).read_exact(&mut words).unwrap();
            expect_reset(&server);
        }
    });
}

/// Connects the client to a port that `obstacle`, an nftables rule on the server, blocks.
fn meets(lab: &Lab, ip: Ip, obstacle: &str) -> (io::Result<TcpStream>, SocketAddr, SocketAddr) {
    lab.server.nft(&format!(
        "table inet way {{}}; delete table inet way
         table inet way {{
             chain input {{ type filter hook input priority 0; tcp dport 7001 {obstacle}; }}
         }}"
    ));
    let (from, to) = (lab.client_at(0, ip, 40001), lab.server_at(ip, 7001));
    (lab.client().connect_from(from, to), from, to)
}

/// The reset may arrive before connect() returns.
fn expect_reset_soon(client: io::Result<TcpStream>) {
    match client {
        Ok(client) => expect_reset(&client),
        Err(err) => assert_eq!(err.kind(), io::ErrorKind::ConnectionReset),
    }
}

fn the_client_is_reset(obstacle: &str, settings: &[&str], ended: &str) {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.gateway, BIN, settings);
    for ip in BOTH {
        let (client, from, to) = meets(&lab, ip, obstacle);
        expect_reset_soon(client);
        assert_eq!(record(&daemon, from, to), ended, "{ip:?}");
        nothing_is_left(&lab, 7001);
    }
}

#[test]
fn a_closed_port_resets_the_client() {
    netns(|| the_client_is_reset("accept", &[], "server connect refused"));
}

#[test]
fn trap_8_an_unreachable_server_resets_the_client_at_once() {
    netns(|| {
        the_client_is_reset("reject with icmpx host-unreachable", &[], "server connect host-unreachable")
    });
}

#[test]
fn trap_8_an_unreachable_port_resets_the_client_at_once() {
    netns(|| the_client_is_reset("reject with icmpx port-unreachable", &[], "server connect refused"));
}

#[test]
fn a_server_without_a_route_resets_the_client() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let to = lab.server_at(ip, 7001);
            // Only the box itself lacks a route. Forwarded packets still have one; otherwise tproxy would never see the
            // SYN.
            let family = if ip == Ip::V4 { "-4" } else { "-6" };
            lab.gateway.ip(&format!("{family} rule add priority 10 iif lo to {} unreachable", to.ip()));
            let from = lab.client_at(0, ip, 40001);
            expect_reset_soon(lab.client().connect_from(from, to));
            let ended = record(&daemon, from, to);
            assert!(ended.starts_with("server connect") && ended.contains("unreachable"), "{ended}");
        }
    });
}

#[test]
fn the_connect_timeout_resets_the_client_of_a_server_that_never_answers() {
    netns(|| the_client_is_reset("drop", &["server.connect-timeout=300ms"], "us connect connect-timeout"));
}

#[test]
fn a_client_that_resets_while_the_server_is_dialled_leaves_no_server_leg_behind() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let (client, from, to) = meets(&lab, ip, "drop");
            wait_until("the dial", SOON, || leftovers(&lab, 7001).contains("SYN-SENT"));
            peers::reset(client.unwrap());
            assert_eq!(record(&daemon, from, to), "client connect reset");
            nothing_is_left(&lab, 7001);
        }
    });
}

#[test]
fn what_a_client_says_and_ends_while_the_server_is_dialled_arrives() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let (client, from, to) = meets(&lab, ip, "drop");
            let mut client = client.unwrap();
            wait_until("the dial", SOON, || leftovers(&lab, 7001).contains("SYN-SENT"));
            client.write_all(b"question").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let listener = lab.server.listen(to);
            lab.server.nft("delete table inet way");
            let (mut server, _) = listener.accept().unwrap();
            let mut question = String::new();
            server.read_to_string(&mut question).unwrap();
            server.write_all(b"answer").unwrap();
            drop(server);
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
            assert_eq!(record(&daemon, from, to), "client relay eof");
        }
    });
}

/// Starts a download and an upload without end, in both families. Some bytes of each have passed.
fn endless(lab: &Lab) -> Vec<TcpStream> {
    let streams = BOTH.iter().flat_map(|&ip| {
        let (down, giver) = pair(lab, lab.server_at(ip, 7001));
        let (giving, taker) = pair(lab, lab.server_at(ip, 7002));
        for (from, mut to) in [(&giver, &down), (&giving, &taker)] {
            peers::fill(from);
            to.read_exact(&mut [0; 100]).unwrap();
        }
        [down, giver, giving, taker]
    });
    streams.collect()
}

fn both_ends_are_reset(lab: &Lab, streams: &[TcpStream]) {
    streams.iter().for_each(expect_reset);
    for port in [7001, 7002] {
        nothing_is_left(lab, port);
    }
}

#[test]
fn a_transfer_that_a_kill_cuts_off_is_reset_at_both_ends_and_never_looks_complete() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let streams = endless(&lab);
        daemon.kill9();
        both_ends_are_reset(&lab, &streams);
    });
}

#[test]
fn a_transfer_that_a_stop_cuts_off_is_reset_at_both_ends_and_recorded() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let streams = endless(&lab);
        daemon.signal(Signal::TERM);
        both_ends_are_reset(&lab, &streams);
        let records = daemon.wait_for_records(4);
        assert!(records.iter().all(|record| words(record, ENDED) == "admin relay stopped"), "{records:?}");
        let (status, log) = daemon.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(lab.gateway.run("nft list ruleset"), "");
    });
}

#[test]
fn a_stop_while_a_server_is_dialled_resets_the_client_and_is_recorded() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let (client, from, to) = meets(&lab, Ip::V4, "drop");
        daemon.signal(Signal::TERM);
        expect_reset_soon(client);
        assert_eq!(record(&daemon, from, to), "admin connect stopped");
        nothing_is_left(&lab, 7001);
    });
}
