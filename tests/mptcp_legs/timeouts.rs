//! The timeouts of a session with a dead peer, and the cases in which they must not fire.
use std::io::{Read, Write};
use std::time::Duration;

use lab::peers::expect_reset;
use lab::{BOTH, Daemon, Ip, Pair, netns, wait_until, words};

use crate::support::{BIN, FAR, Line, NEAR, SOON, clear, join_paths, obstruct, subflows};

/// Drops all packets from the near box that arrive at the far box.
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
            // No data is outstanding, so the connection must not end.
            std::thread::sleep(Duration::from_secs(4));
            assert!(near.close_records().is_empty() || ip == Ip::V6);
            assert!(line.client.take_error().unwrap().is_none());
            line.client.write_all(b"is anybody there?").unwrap();
            // The path recovers in time, so the connection continues.
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
fn the_user_timeout_holds_on_an_mptcp_client_leg_too() {
    netns(|| {
        let pair = Pair::plain(1);
        let _near = Daemon::start(&pair.near, BIN, &[NEAR]);
        let far = Daemon::start(&pair.far, BIN, &[FAR, "client.user-timeout=1s"]);
        let mut line = Line::new(&pair, Ip::V4);
        obstruct(&pair, CUT);
        line.server.write_all(b"is anybody there?").unwrap();
        expect_reset(&line.server);
        let record = far.record_of(line.from, line.to);
        assert_eq!(words(&record, "by phase cause client_mptcp"), "client relay timed-out yes");
    });
}

#[test]
fn a_path_that_is_cut_is_no_reason_to_end_while_another_carries() {
    netns(|| {
        let pair = Pair::plain(2);
        join_paths(&pair, 2);
        let near = Daemon::start(&pair.near, BIN, &[NEAR, "server.user-timeout=4s"]);
        let _far = Daemon::start(&pair.far, BIN, &[FAR]);
        let mut line = Line::new(&pair, Ip::V4);
        wait_until("a second path", SOON, || subflows(&pair.near).len() == 2);
        obstruct(&pair, CUT);
        for _ in 0..8 {
            line.client.write_all(b"by the other path").unwrap();
            line.server.read_exact(&mut [0; 17]).unwrap();
            std::thread::sleep(Duration::from_secs(1));
        }
        assert!(near.close_records().is_empty(), "{}", near.log());
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
