//! Sockets that outlive their daemon, and the gate: which of them receives the packets of a reused port.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use lab::stream::{self, Pace};
use lab::{BOTH, Ip, Lab, peers};
use socket2::Protocol;
use tcp_intercept::config::Config;
use tcp_intercept::host::rules::{self, Caller, Gate};

use crate::line::{asked, both_are_answered, early_demux, install, quick, remove, servers};
use crate::support::Proxy;

#[test]
fn trap_13_and_22_when_nobody_listens_connections_are_routed_at_once_also_from_ports_just_used() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        let mut proxy = Proxy::start(&lab.gateway, &Config::default());
        both_are_answered(&lab, 4001);
        let open: Vec<TcpStream> = BOTH
            .into_iter()
            .map(|ip| lab.client().connect_from(lab.client_at(0, ip, 4002), lab.server_at(ip, 80)).unwrap())
            .collect();
        proxy.stop();
        proxy.drop_sessions();
        for mut stream in open {
            peers::reset(stream.try_clone().unwrap());
            let _ = stream.write_all(b"the end");
        }
        let taken = proxy.taken();
        for ip in BOTH {
            for port in [4001, 4002, 4003] {
                assert!(quick(&lab, ip, port) < Duration::from_millis(900), "{ip:?} {port}");
            }
        }
        assert_eq!(proxy.taken(), taken);
    });
}

/// The end that closes first, which decides the legs of the box that are in TIME_WAIT afterwards.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    /// The box closes first: both legs are in TIME_WAIT.
    Box,
    /// The client closes first: the server leg is in TIME_WAIT.
    Client,
}

/// Opens and ends a connection from `port` in each family, so that the box has its sockets in TIME_WAIT.
fn leave_time_wait(lab: &Lab, port: u16, ends: Ends) {
    lab.gateway.sysctl("net.ipv4.tcp_rfc1337", "1"); // nothing but time ends TIME_WAIT
    let proxy = Proxy::start(&lab.gateway, &Config::default());
    for ip in BOTH {
        let listener = lab.server.listen(lab.server_at(ip, 81));
        let mut near = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 81)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0]).unwrap();
        match ends {
            Ends::Box => proxy.close_all(),
            Ends::Client => near.shutdown(Shutdown::Write).unwrap(),
        }
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        drop(far);
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
    }
    let left = if ends == Ends::Box { 4 } else { 2 };
    lab::wait_until("TIME_WAIT", Duration::from_secs(5), || {
        lab.gateway.ss("-tan state time-wait").lines().count() == left
    });
}

fn reuse(lab: &Lab, port: u16) {
    for ip in BOTH {
        let listener = lab.server.listen(lab.server_at(ip, 81));
        let start = Instant::now();
        let near = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 81)).unwrap();
        let (far, _) = listener.accept().unwrap();
        stream::exchange(&near, &far, 100_000, Pace::FULL);
        assert!(start.elapsed() < Duration::from_millis(900), "{ip:?}: {:?}", start.elapsed());
    }
}

#[test]
fn trap_22_a_closed_gate_routes_at_once_from_ports_that_are_in_time_wait_here() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        leave_time_wait(&lab, 4001, Ends::Box);
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        lab.gateway.enter(|| rules::gate(Gate::Closed)).unwrap();
        // The state after 15 s; until then the gate treats a SYN from the same port as a retransmission.
        lab.gateway.run("for ip in 4 6; do nft flush set inet tcp_intercept taken$ip; done");
        reuse(&lab, 4001);
        assert_eq!(proxy.taken(), 0);
        lab.gateway.enter(|| rules::gate(Gate::Open)).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
        reuse(&lab, 4001);
        assert_eq!(proxy.taken(), 2, "what was routed once is intercepted again");
    });
}

#[test]
fn trap_22_without_a_daemon_a_port_whose_server_leg_is_in_time_wait_is_routed_at_once() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        leave_time_wait(&lab, 4001, Ends::Client);
        reuse(&lab, 4001);
    });
}

#[test]
fn trap_22_a_daemon_that_leaves_its_rules_destroys_its_leftovers() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        leave_time_wait(&lab, 4001, Ends::Box);
        let destroyed = lab.gateway.enter(|| rules::destroy_leftovers(Config::default().rules.own_mark));
        assert_eq!(destroyed.unwrap(), 4);
        reuse(&lab, 4001);
    });
}

fn leftovers_are_destroyed(protocol: Protocol) {
    let lab = Lab::new();
    let _servers = servers(&lab);
    install(&lab, &Config::default());
    let mut proxy = Proxy::with_protocol(&lab.gateway, &Config::default(), protocol);
    for (ip, port) in BOTH.into_iter().zip([4001, 4011]) {
        quick(&lab, ip, port);
    }
    let open = lab.client().connect(lab.server_at(Ip::V4, 80)).unwrap();
    asked(open.try_clone().unwrap());
    proxy.stop();
    let removed = remove(&lab, Caller::Operator);
    assert!(removed.remarks[0].contains("a process still holds sockets"), "{removed:?}");
    assert_eq!(early_demux(&lab), "0", "the sockets of a process that runs are left alone");

    lab.gateway.run("echo 1 > /proc/sys/net/ipv4/tcp_early_demux");
    install(&lab, &Config::default());
    proxy.drop_sessions();
    drop(open);
    assert_ne!(lab.gateway.ss("-tan state all"), "", "there are leftovers");
    let removed = remove(&lab, Caller::Operator);
    assert_eq!(removed.remarks, [""; 0]);
    assert!(removed.changes.iter().any(|change| change.starts_with("destroy")), "{removed:?}");
    assert_eq!(lab.gateway.ss("-tan state all"), "");
    assert_eq!(early_demux(&lab), "1");
    for (ip, port) in BOTH.into_iter().zip([4001, 4011]) {
        assert!(quick(&lab, ip, port) < Duration::from_millis(900), "{ip:?} {port}");
    }
}

#[test]
fn trap_22_leftover_sockets_are_destroyed_before_early_demux_is_restored() {
    lab::netns(|| leftovers_are_destroyed(Protocol::TCP));
}

#[test]
fn trap_22_leftover_sockets_of_multipath_tcp_too() {
    lab::netns(|| leftovers_are_destroyed(Protocol::MPTCP));
}

#[test]
fn the_daemon_may_destroy_its_own_sockets_while_it_holds_them() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        let mut proxy = Proxy::start(&lab.gateway, &Config::default());
        let stream = lab.client().connect(lab.server_at(Ip::V4, 80)).unwrap();
        asked(stream.try_clone().unwrap());
        proxy.stop();
        let removed = remove(&lab, Caller::Daemon);
        assert_eq!((removed.remarks.len(), early_demux(&lab).as_str()), (0, "1"));
        drop(stream);
    });
}

#[test]
fn a_closed_gate_routes_new_connections_and_keeps_the_old_ones() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        let gate = |gate| lab.gateway.enter(|| rules::gate(gate)).unwrap();
        for ip in BOTH {
            let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            let taken = proxy.taken();
            gate(Gate::Closed);
            let (routed, routed_far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
            assert_eq!(proxy.taken(), taken);
            gate(Gate::Open);
            let (again, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            stream::exchange(&again, &far, 1000, Pace::FULL);
            stream::exchange(&routed, &routed_far, 1000, Pace::FULL);
            assert_eq!(proxy.taken(), taken + 1);
        }
    });
}
