//! The source of server legs: the client's own address and port even if another socket uses them, and the fallbacks
//! where that is impossible.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use lab::peers::{self, Server, expect_reset};
use lab::{BOTH, Daemon, Host, Ip, Lab, Shape, netns, wait_until, words};
use socket2::{Domain, Socket, Type};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);

/// A connection that stays open, and the peer address that the server sees.
struct Held {
    _stream: TcpStream,
    seen: SocketAddr,
}

/// Connects from a chosen address, and asks a `whoami` server for the address that it sees.
fn ask(client: &Host, from: SocketAddr, to: SocketAddr) -> Held {
    let mut stream = client.connect_from(from, to).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    Held { _stream: stream, seen: text.parse().unwrap() }
}

/// Starts a server that reports its peer's address and keeps the connection as long as the client does.
fn whoami(lab: &Lab, to: SocketAddr) -> Server {
    Server::start(&lab.server, to, peers::whoami)
}

#[test]
fn two_clients_may_use_the_same_port() {
    netns(|| {
        let lab = Lab::with(Shape { clients: 2, ..Shape::default() });
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let server = whoami(&lab, lab.server_at(ip, 8000));
            let from = [lab.client_at(0, ip, 40000), lab.client_at(1, ip, 40000)];
            let held = [0, 1].map(|n| ask(&lab.clients[n], from[n], server.address));
            assert_eq!(held.map(|held| held.seen), from);
        }
    });
}

#[test]
fn trap_1_one_client_port_reaches_several_servers_at_once() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let servers = [8000, 8001, 8002].map(|port| whoami(&lab, lab.server_at(ip, port)));
            let from = lab.client_at(0, ip, 40000);
            let held = servers.each_ref().map(|server| ask(lab.client(), from, server.address));
            assert!(held.iter().all(|held| held.seen == from));
        }
        let records = daemon.wait_for_records(6);
        assert!(records.iter().all(|record| words(record, "dialled") == "first"), "{records:?}");
    });
}

#[test]
fn trap_2_a_client_may_use_the_port_that_the_listener_has() {
    netns(|| {
        let lab = Lab::new();
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            // Both ends use it, so only the addresses distinguish this flow from one to the listener.
            let server = whoami(&lab, lab.server_at(ip, 5000));
            let from = lab.client_at(0, ip, 5000);
            assert_eq!(ask(lab.client(), from, server.address).seen, from);
        }
    });
}

/// Uses one client port twice, with the first server leg in TIME_WAIT. Returns how the second connection was dialled.
fn again_behind_time_wait(lab: &Lab, daemon: &Daemon, ip: Ip) -> String {
    let (from, to) = (lab.client_at(0, ip, 40000), lab.server_at(ip, 8000));
    let listener = lab.server.listen(to);
    let before = daemon.close_records().len();
    for nth in 1..=2 {
        let client = lab.client().connect_from(from, to).unwrap();
        let (server, seen) = listener.accept().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&server).read(&mut [0]).unwrap(), 0);
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&client).read(&mut [0]).unwrap(), 0);
        let record = &daemon.wait_for_records(before + nth)[before + nth - 1];
        assert_eq!(words(record, "source"), seen.to_string());
        if nth == 2 {
            let port = if seen == from { "same" } else { "other" };
            return format!("{}: the {port} port", words(record, "dialled"));
        }
        drop((client, server));
        // The active closer enters TIME_WAIT. The box has its own; remove the client's, because it would block the
        // client's port.
        lab.client().ss("-K state time-wait");
        let time_wait = || !lab.gateway.ss(&format!("-tan state time-wait dst '{to}'")).is_empty();
        wait_until("the server leg is in TIME_WAIT", SOON, time_wait);
    }
    unreachable!("the second time it returns")
}

#[test]
fn trap_4_a_client_may_use_its_port_again_at_once_whatever_tcp_tw_reuse_says() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for (reuse, ip) in ["0", "1", "2"].iter().flat_map(|reuse| BOTH.map(|ip| (reuse, ip))) {
            lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", reuse);
            // A bound port is free again immediately if both ends use timestamps: tcp_twsk_unique() in
            // net/ipv4/tcp_ipv4.c.
            assert_eq!(again_behind_time_wait(&lab, &daemon, ip), "first: the same port", "{reuse}");
            lab.gateway.ss("-K state time-wait");
        }
    });
}

#[test]
fn trap_4_without_timestamps_time_wait_costs_the_port_and_not_the_connection() {
    netns(|| {
        let lab = Lab::new();
        lab.server.sysctl("net.ipv4.tcp_timestamps", "0");
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            assert_eq!(again_behind_time_wait(&lab, &daemon, ip), "other-port: the other port");
        }
        let log = daemon.stop().1;
        assert!(log.contains("dialled-again=0 dialled-other-port=2"), "{log}");
    });
}

/// A socket of another program on the box that has this address. `to` is the peer that it connects to.
fn squatter(lab: &Lab, at: SocketAddr, to: Option<SocketAddr>) -> Socket {
    lab.gateway.enter(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        let foreign = if at.is_ipv4() {
            socket.set_ip_transparent_v4(true)
        } else {
            socket.set_ip_transparent_v6(true)
        };
        foreign.unwrap();
        // A connected socket blocks the address for that server only; an unconnected one blocks it for every server.
        socket.set_reuse_address(to.is_some()).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        // Its SYN is never answered: it has no mark, and the answer is not addressed to the box.
        to.map(|to| socket.connect(&to.into()).unwrap_err());
        socket
    })
}

#[test]
fn where_the_clients_port_is_taken_another_is_used_and_counted() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let (from, server) = (lab.client_at(0, ip, 40000), whoami(&lab, lab.server_at(ip, 8000)));
            for connected_to in [None, Some(server.address)] {
                let _squatter = squatter(&lab, from, connected_to);
                let seen = ask(lab.client(), from, server.address).seen;
                assert!(seen.ip() == from.ip() && seen.port() != from.port(), "{seen}");
                lab.client().ss("-K state time-wait");
            }
        }
        let records = daemon.wait_for_records(4);
        assert!(records.iter().all(|record| words(record, "dialled") == "other-port"), "{records:?}");
        let log = daemon.stop().1;
        assert!(log.contains("dialled-other-port=4"), "{log}");
    });
}

#[test]
fn a_port_that_is_taken_for_a_moment_only_is_dialled_from_again() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let server = whoami(&lab, lab.server_at(Ip::V4, 8000));
        let how = (40000..40500).find_map(|port| {
            let from = lab.client_at(0, Ip::V4, port);
            let squatter = squatter(&lab, from, None);
            let client = lab.client().connect_from(from, server.address).unwrap();
            drop(squatter);
            drop(client);
            // It is random which attempt finds the port free. The test waits until a later attempt does.
            let how = words(&daemon.record_of(from, server.address), "dialled");
            (how == "again").then_some(how)
        });
        assert_eq!(how.as_deref(), Some("again"));
        let log = daemon.stop().1;
        assert!(log.contains("dialled-again=1"), "{log}");
    });
}

#[test]
fn when_no_port_is_left_the_client_is_reset_and_that_is_counted() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.ipv4.ip_local_port_range", "50000 50001");
        let daemon = Daemon::start(&lab.gateway, BIN, &["server.source=client-address"]);
        for ip in BOTH {
            let server = whoami(&lab, lab.server_at(ip, 8000));
            let _held =
                [40000, 40001].map(|port| ask(lab.client(), lab.client_at(0, ip, port), server.address));
            let from = lab.client_at(0, ip, 40002);
            match lab.client().connect_from(from, server.address) {
                Ok(client) => expect_reset(&client),
                Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::ConnectionReset),
            }
            let ended = words(&daemon.record_of(from, server.address), "phase cause source dialled");
            assert_eq!(ended, "connect address-in-use null null");
        }
        let log = daemon.stop().1;
        assert!(log.contains("dial-failed=2"), "{log}");
    });
}

#[test]
fn trap_6_ten_ports_carry_forty_connections_to_four_servers() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.ipv4.ip_local_port_range", "50000 50009");
        let _daemon = Daemon::start(&lab.gateway, BIN, &["server.source=client-address"]);
        for ip in BOTH {
            let servers = [8000, 8001, 8002, 8003].map(|port| whoami(&lab, lab.server_at(ip, port)));
            let held: Vec<_> = (0..40)
                .map(|n| {
                    ask(lab.client(), lab.client_at(0, ip, 40000 + n), servers[usize::from(n) % 4].address)
                })
                .collect();
            let address = lab.client_at(0, ip, 0).ip();
            assert!(held.iter().all(|h| h.seen.ip() == address && (50000..50010).contains(&h.seen.port())));
        }
    });
}

#[test]
fn the_source_may_be_the_box_itself() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &["server.source=gateway"]);
        for ip in BOTH {
            let (from, server) = (lab.client_at(0, ip, 40000), whoami(&lab, lab.server_at(ip, 8000)));
            let seen = ask(lab.client(), from, server.address).seen;
            let own = if ip == Ip::V4 { "10.2.0.1" } else { "fd02::1" };
            assert_eq!(seen.ip().to_string(), own);
            assert_eq!(words(&daemon.record_of(from, server.address), "source"), seen.to_string());
        }
    });
}

#[test]
fn the_source_may_be_one_address_and_port_which_then_carries_one_connection_to_each_server() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &["server.source=192.0.2.1:7777"]);
        let servers = [8000, 8001].map(|port| whoami(&lab, lab.server_at(Ip::V4, port)));
        let from = [40000, 40001, 40002].map(|port| lab.client_at(0, Ip::V4, port));
        let held = [0, 1].map(|n| ask(lab.client(), from[n], servers[n].address));
        assert!(held.iter().all(|held| held.seen.to_string() == "192.0.2.1:7777"));
        if let Ok(third) = lab.client().connect_from(from[2], servers[0].address) {
            expect_reset(&third);
        }
        let ended = words(&daemon.record_of(from[2], servers[0].address), "phase cause");
        assert_eq!(ended, "connect address-in-use");
        // This address belongs to the other family, so this server leg uses the box's address, as with "gateway".
        let server = whoami(&lab, lab.server_at(Ip::V6, 8000));
        let seen = ask(lab.client(), lab.client_at(0, Ip::V6, 40000), server.address).seen;
        assert_eq!(seen.ip().to_string(), "fd02::1");
    });
}
