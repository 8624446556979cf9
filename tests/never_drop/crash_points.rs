//! The worker crashes once at each named point of a session's life, and the next worker continues from there.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Ip, Lab, Pair, netns, peers, wait_until};
use socket2::SockRef;
use tcp_intercept::state::crash::Point;

use crate::support::{BIN, CRASH_AT, MANY, SOON, counter, said, takeovers};

/// Runs a session that uses every feature, then one that is reset.
fn life(lab: &Lab, ip: Ip) {
    let (near, far, peer) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 81));
    assert_eq!(peer, near.local_addr().unwrap(), "the server sees the client's address");
    for (from, to) in [(&near, &far), (&far, &near)] {
        speaks_urgently(from, to);
    }
    stream::exchange(&near, &far, 2 << 20, Pace::UNEVEN);
    let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 82));
    peers::reset(near);
    peers::expect_reset(&far);
}

fn speaks_urgently(mut from: &TcpStream, mut to: &TcpStream) {
    SockRef::from(to).set_out_of_band_inline(true).unwrap();
    from.write_all(b"before").unwrap();
    SockRef::from(from).send_out_of_band(b"!").unwrap();
    from.write_all(b"behind").unwrap();
    let mut came = [0; 13];
    to.set_read_timeout(Some(SOON)).unwrap();
    to.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"before!behind");
    to.set_read_timeout(None).unwrap();
}

#[test]
fn a_worker_that_dies_at_any_point_of_a_sessions_life_is_survived() {
    netns(|| {
        let lab = Lab::new();
        let elsewhere = [Point::SynData, Point::TakenOver, Point::Driven, Point::Start, Point::Control];
        for &(name, point) in Point::ALL {
            if elsewhere.contains(&point) || Point::START.contains(&point) {
                continue;
            }
            for ip in BOTH {
                let daemon = crashing(&lab, &format!("kill:{name}"));
                life(&lab, ip);
                struck_once(daemon, name);
            }
        }
    });
}

fn crashing(lab: &Lab, at: &str) -> Daemon {
    Daemon::start_with(&lab.gateway, BIN, &[MANY], &[(CRASH_AT, at)])
}

fn struck_once(daemon: Daemon, name: &str) {
    wait_until(name, SOON, || takeovers(&daemon) == 1);
    let log = daemon.stop().1;
    assert_eq!((counter(&log, "crashes"), counter(&log, "not-taken-up")), (1, 0), "{name}: {log}");
}

#[test]
fn a_worker_that_dies_while_it_takes_over_is_survived() {
    netns(|| {
        let lab = Lab::new();
        let daemon = crashing(&lab, "kill:filled,kill:taken-over");
        life(&lab, Ip::V4);
        let log = daemon.stop().1;
        assert_eq!((counter(&log, "not-taken-up"), log.matches("died of signal 9").count()), (0, 1), "{log}");
    });
}

#[test]
fn a_worker_that_dies_with_bytes_in_a_syn_is_survived() {
    netns(|| {
        let pair = Pair::plain(1);
        for box_ in [&pair.near, &pair.far] {
            box_.sysctl("net.ipv4.tcp_fastopen", "3");
        }
        let near = "server.fast-open=\"no-cookie\"";
        let _far = Daemon::start(&pair.far, BIN, &["client.fast-open=\"no-cookie\""]);
        let daemon = Daemon::start_with(&pair.near, BIN, &[MANY, near], &[(CRASH_AT, "kill:syn-data")]);
        let listener = pair.server.listen(pair.server_at(Ip::V4, 81));
        // The client sends before the worker accepts its connection, so that the SYN can carry data.
        daemon.pause_worker();
        let mut near = pair.client.connect(pair.server_at(Ip::V4, 81)).unwrap();
        near.write_all(b"first words").unwrap();
        daemon.signal_worker(rustix::process::Signal::CONT);
        let (mut far, _) = listener.accept().unwrap();
        let mut came = [0; 11];
        far.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"first words", "{}", said(&daemon));
        stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        struck_once(daemon, "syn-data");
    });
}

#[test]
fn a_session_that_two_workers_die_of_is_given_up_and_the_others_go_on() {
    netns(|| {
        let lab = Lab::new();
        let daemon = crashing(&lab, "abort:driven:6666");
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 81));
        let listener = lab.server.listen(lab.server_at(Ip::V4, 6666));
        let mut poison = lab.client().connect(lab.server_at(Ip::V4, 6666)).unwrap();
        peers::expect_reset(&poison);
        drop(listener);
        let _ = poison.read(&mut [0]);
        stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        let log = daemon.stop().1;
        assert_eq!((counter(&log, "crashes"), counter(&log, "given-up")), (2, 1), "{log}");
        assert!(log.contains("died of signal 6"), "{log}");
    });
}

#[test]
fn a_half_closed_session_stays_half_closed() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let at = lab.server_at(Ip::V6, 81);
        let (near, mut far, _) = peers::pair(lab.client(), &lab.server, at);
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        crate::support::kill_worker(&daemon);
        let sum = thread::scope(|scope| {
            let received = scope.spawn(|| stream::receive(&near, Pace::FULL).unwrap());
            let sent = stream::send(&far, 3, 1 << 20, Pace::FULL).unwrap();
            far.shutdown(Shutdown::Write).unwrap();
            assert_eq!(received.join().unwrap(), sent);
            sent
        });
        assert_eq!(sum.bytes, 1 << 20);
        let record = daemon.record_of(near.local_addr().unwrap(), at);
        assert_eq!(lab::words(&record, "cause to_client to_server"), "eof 1048576 0");
    });
}
