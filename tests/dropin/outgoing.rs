//! `-B`: the source address that the server sees.
use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};

use lab::peers::{self, Server, echo, expect_reset, whoami};
use lab::{BOTH, Ip, Lab, netns, wait_until};

use crate::support::{Daemon, SOON, closed, install_rules, seen_by};

/// Opens a connection to the server, and returns the client's end and the peer address that the server reports.
fn connect(lab: &Lab, ip: Ip) -> (TcpStream, SocketAddr) {
    let server = Server::start(&lab.server, lab.server_at(ip, 80), whoami);
    let stream = lab.client().connect(server.address).unwrap();
    let seen = seen_by(&stream);
    (stream, seen)
}

/// Returns the addresses that the server sees with this `-B`, over IPv4 and IPv6, without the port.
fn seen_with(lab: &Lab, outgoing: &str) -> [String; 2] {
    let daemon = Daemon::start(lab, &format!("-b [::]:[5000] {outgoing}"));
    let seen = BOTH.map(|ip| connect(lab, ip).1.ip().to_string());
    assert_eq!(daemon.stop(), Some(0));
    seen
}

#[test]
fn by_default_it_is_the_boxs_own_address_of_the_destinations_protocol() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let own = ["10.2.0.1", "fd02::1"];
        for outgoing in ["", "-B [0.0.0.0]:[0]", "-B [::]:[0]", "-B 0.0.0.0:0"] {
            assert_eq!(seen_with(&lab, outgoing), own, "{outgoing:?}");
        }
    });
}

#[test]
fn client_is_the_clients_own_address_and_port() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let _daemon = Daemon::start(&lab, "-b [::]:[5000] -B client");
        for ip in BOTH {
            let (stream, seen) = connect(&lab, ip);
            let client = stream.local_addr().unwrap();
            assert_eq!(seen, client);
            drop(stream);
            assert_eq!(closed(client, "source dialled cause"), format!("{client} first eof"));
        }
    });
}

#[test]
fn a_fixed_address_is_for_its_protocol_and_the_other_has_the_boxs_own() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        assert_eq!(seen_with(&lab, "-B [10.1.0.1]:[0]"), ["10.1.0.1", "fd02::1"]);
        assert_eq!(seen_with(&lab, "-B [fd01::1]:[0]"), ["10.2.0.1", "fd01::1"]);
    });
}

#[test]
fn a_fixed_port_is_good_for_one_connection_to_each_server_at_a_time() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let _daemon = Daemon::start(&lab, "-B [10.1.0.1]:[6000]");
        let fixed = "10.1.0.1:6000".parse().unwrap();
        let connect = |port| peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, port));
        let (first, second) = (connect(80), connect(81));
        assert_eq!((first.2, second.2), (fixed, fixed));
        let _listener = lab.server.listen(lab.server_at(Ip::V4, 80));
        let third = lab.client().connect(lab.server_at(Ip::V4, 80)).unwrap();
        expect_reset(&third);
        assert_eq!(closed(third.local_addr().unwrap(), "by phase"), "server connect");
    });
}

#[test]
fn trap_1_a_client_may_use_one_port_to_two_servers_at_once() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let _daemon = Daemon::start(&lab, "-b [::]:[5000] -B client");
        for ip in BOTH {
            let from = lab.client_at(0, ip, 4001);
            let listeners = [80, 81].map(|port| lab.server.listen(lab.server_at(ip, port)));
            let open = listeners.map(|listener| {
                let near = lab.client().connect_from(from, listener.local_addr().unwrap()).unwrap();
                let (far, seen) = listener.accept().unwrap();
                assert_eq!(seen, from);
                (near, far)
            });
            for (near, far) in &open {
                lab::stream::exchange(near, far, 1000, lab::stream::Pace::FULL);
            }
        }
    });
}

/// Opens a connection from the client's port 4001, which the client ends first. Returns the peer address that the
/// server sees.
fn once(lab: &Lab, ip: Ip) -> SocketAddr {
    let from = lab.client_at(0, ip, 4001);
    let listener = lab.server.listen(lab.server_at(ip, 80));
    let mut near = lab.client().connect_from(from, lab.server_at(ip, 80)).unwrap();
    let (mut far, seen) = listener.accept().unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    assert_eq!(far.read(&mut [0]).unwrap(), 0);
    drop(far);
    assert_eq!(near.read(&mut [0]).unwrap(), 0);
    wait_until("TIME_WAIT on the server leg", SOON, || {
        !lab.gateway.ss("-tn state time-wait dport = :80").is_empty()
    });
    // The client's own TIME_WAIT would block the port, with or without a box.
    lab.client().run("ss -KHtan state time-wait >&2");
    seen
}

#[test]
fn trap_4_a_port_that_is_used_again_at_once_may_become_another_and_is_never_dropped() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let _daemon = Daemon::start(&lab, "-b [::]:[5000] -B client");
        // Without timestamps, a port in TIME_WAIT is not free.
        for (timestamps, ip) in ["1", "0"].into_iter().flat_map(|on| BOTH.map(|ip| (on, ip))) {
            lab.server.sysctl("net.ipv4.tcp_timestamps", timestamps);
            let from = lab.client_at(0, ip, 4001);
            assert_eq!(once(&lab, ip), from);
            let again = once(&lab, ip);
            assert_eq!((again.ip(), again == from), (from.ip(), timestamps == "1"), "{again}");
            lab.gateway.run("ss -KHtan state time-wait >&2");
        }
    });
}

/// Returns whether a connection that the client ends first ends in order.
fn ends_in_order(lab: &Lab, server: SocketAddr) -> bool {
    let Ok(mut stream) = lab.client().connect(server) else { return false };
    stream.shutdown(Shutdown::Write).is_ok() && stream.read(&mut [0]).is_ok_and(|read| read == 0)
}

#[test]
fn the_boxs_own_ports_to_a_server_are_free_again_after_a_minute_and_sooner_with_tcp_tw_reuse() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        lab.gateway.sysctl("net.ipv4.ip_local_port_range", "50000 50009");
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "2");
        let _daemon = Daemon::start(&lab, "");
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        assert!((0..10).all(|_| ends_in_order(&lab, server.address)));
        assert!(
            !ends_in_order(&lab, server.address),
            "this limit no longer exists: check need not report it"
        );
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
        wait_until("a port", SOON, || ends_in_order(&lab, server.address));
    });
}
