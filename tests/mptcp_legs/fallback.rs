//! Peers without Multipath TCP: the session uses TCP, its record says why, and the next one is dialled with TCP.
use lab::peers::expect_reset;
use lab::{BOTH, Daemon, Ip, Pair, netns, words};

use crate::support::{BIN, FAR, Line, NEAR, PORT, clear, obstruct};

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
