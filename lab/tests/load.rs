//! The load counts the results of its connections: a failed connection never counts as a success.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::load::{Connects, Echo, Idle, MESSAGE, RoundTrips};
use lab::peers::{Server, deaf, reset};
use lab::{Ip, Lab, netns, wait_until};

const SOON: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 4;

fn server(lab: &Lab) -> SocketAddr {
    lab.server_at(Ip::V4, 7)
}

/// Connects from two addresses with ten ports each.
fn connects(lab: &Lab) -> Connects {
    lab.client().ip("address add 10.1.0.16/24 dev eth0");
    let addresses: Vec<IpAddr> = vec![lab.client_at(0, Ip::V4, 0).ip(), [10, 1, 0, 16].into()];
    lab.client().sysctl("net.ipv4.tcp_tw_reuse", "1");
    Connects::start(lab.client(), (addresses, 10), server(lab), AT_ONCE)
}

#[test]
fn answered_connections_come_from_every_address_and_port_and_again() {
    netns(|| {
        let lab = Lab::new();
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let saw = Arc::clone(&seen);
        let _server = Server::start(&lab.server, server(&lab), move |mut stream| {
            saw.lock().unwrap().insert(stream.peer_addr()?);
            let mut message = [0; MESSAGE];
            stream.read_exact(&mut message)?;
            stream.write_all(&message)
        });
        let connects = connects(&lab);
        wait_until("every port has been used once", SOON, || connects.turns() > 0);
        wait_until("some have been used twice", SOON, || connects.done() > 25);
        let outcome = connects.finish();
        assert!(outcome.done > 25, "{outcome:?}");
        assert_eq!((outcome.failed, outcome.why.len()), (0, 0), "{outcome:?}");
        assert_eq!(seen.lock().unwrap().len(), 20);
    });
}

#[test]
fn refused_connections_have_failed() {
    netns(|| {
        let lab = Lab::new();
        let connects = connects(&lab);
        wait_until("every port has been used once", SOON, || connects.turns() > 0);
        let outcome = connects.finish();
        assert!(outcome.done == 0 && outcome.failed >= 20, "{outcome:?}");
        assert!(outcome.why[0].contains("refused"), "{outcome:?}");
    });
}

#[test]
fn connections_that_end_before_the_answer_have_failed() {
    netns(|| {
        let lab = Lab::new();
        let _server = Server::start(&lab.server, server(&lab), |stream| {
            reset(stream);
            Ok(())
        });
        let connects = connects(&lab);
        wait_until("every port has been used once", SOON, || connects.turns() > 0);
        let outcome = connects.finish();
        assert!(outcome.done == 0 && outcome.failed >= 20, "{outcome:?}");
    });
}

#[test]
fn connections_that_are_never_answered_have_failed() {
    netns(|| {
        let lab = Lab::new();
        let _server = Server::start(&lab.server, server(&lab), deaf);
        let outcome = connects(&lab).finish();
        assert_eq!((outcome.done, outcome.failed), (0, AT_ONCE as u64), "{outcome:?}");
        assert!(outcome.why[0].contains("timed out"), "{outcome:?}");
    });
}

#[test]
fn connections_that_break_between_round_trips_are_reported() {
    netns(|| {
        let lab = Lab::new();
        let from = [lab.client_at(0, Ip::V4, 0).ip()];
        // Answers once, when the connection opens, and resets it at the next message.
        let _server = Server::start(&lab.server, server(&lab), |mut stream| {
            let mut message = [0; MESSAGE];
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            reset(stream);
            Ok(())
        });
        let mut connections = Idle::default();
        connections.grow(lab.client(), &from, server(&lab), AT_ONCE);
        let asking = RoundTrips::start(lab.client(), connections);
        wait_until("all have broken", SOON, || asking.lost().len() == AT_ONCE);
        assert_eq!(asking.done(), 0);
    });
}

#[test]
fn idle_connections_stay_until_they_are_dropped() {
    netns(|| {
        let lab = Lab::new();
        let _server = Echo::start(&lab.server, server(&lab));
        let open = || lab.server.ss("-tn state established").lines().count();
        let mut idle = Idle::default();
        for count in [3, 10] {
            idle.grow(lab.client(), &[lab.client_at(0, Ip::V4, 0).ip()], server(&lab), count);
            assert_eq!(open(), count);
        }
        drop(idle);
        wait_until("all are closed", SOON, || open() == 0);
    });
}
