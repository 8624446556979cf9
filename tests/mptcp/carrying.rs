//! The traffic that each path carries, and the fate of connections when paths are cut.
use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use lab::{BOTH, Daemon, Host, Ip, Pair, netns, peers, wait_until};

use crate::support::{BIN, Boxes, FAR, NEAR, SOON, become_endpoints, says, sent, transfer, two_paths};

const MB: u64 = 1_000_000;

#[test]
fn one_connection_uses_both_paths_in_both_directions() {
    netns(|| {
        let pair = two_paths(100);
        let _boxes = Boxes::start(&pair);
        watch(&pair.server);
        for ip in BOTH {
            for (bytes, from) in [([10 * MB, 0], &pair.near), ([0, 10 * MB], &pair.far)] {
                let before = sent(from);
                transfer(&pair, ip, bytes, || ());
                let after = sent(from);
                let carried = [after[0] - before[0], after[1] - before[1]];
                let least = carried.iter().min().unwrap();
                assert!(*least > 3 * MB, "{ip:?} {bytes:?}: {carried:?}");
            }
        }
        // No packet of the subflows between the boxes has reached the server.
        assert_eq!(strangers(&pair.server), 0);
    });
}

#[test]
fn each_connection_is_joined_once_from_the_path_of_the_near_box() {
    netns(|| {
        let pair = Pair::plain(2);
        let settings = [NEAR[0], NEAR[1], "server.congestion-control=reno"];
        let near = Daemon::start(&pair.near, BIN, &settings);
        let _far = Daemon::start(&pair.far, BIN, &FAR);
        for (n, ip) in (1..).zip(BOTH) {
            let (client, server, _) = peers::pair(&pair.client, &pair.server, pair.server_at(ip, 8000));
            (&client).write_all(b"first bytes").unwrap();
            let joined = || pair.near.ss("-tn state established").contains("10.3.1.2:5001");
            wait_until("a second subflow", SOON, joined);
            assert_eq!(pair.near.counter("MPTcpExtMPJoinSynTx"), n, "{ip:?}");
            // The subflow has the mark and the congestion control of its connection.
            let subflow = pair.near.ss("-tineO state established dst 10.3.1.2");
            for part in ["fwmark:0x2", "%wan1", " reno "] {
                assert!(subflow.contains(part), "{part} is not in: {subflow}");
            }
            drop((client, server));
            near.wait_for_records(n as usize);
            wait_until("the end of the subflow", SOON, || !joined());
        }
        assert_eq!(pair.far.counter("MPTcpExtMPJoinAckRx"), 2);
    });
}

#[test]
fn a_path_with_ipv6_alone_serves_when_a_box_has_timestamps_off() {
    netns(|| {
        let pair = two_paths(100);
        pair.far.sysctl("net.ipv4.tcp_timestamps", "0");
        for host in [&pair.near, &pair.far] {
            host.ip("-4 address flush dev wan1");
        }
        let _boxes = Boxes::start(&pair);
        let before = sent(&pair.far)[1];
        transfer(&pair, Ip::V6, [0, 10 * MB], || ());
        assert!(sent(&pair.far)[1] - before > 3 * MB);
        assert_eq!(pair.far.counter("MPTcpExtAddAddrTxDrop"), 0);
    });
}

#[test]
fn each_box_may_be_the_near_one_of_connections_from_its_side() {
    netns(|| {
        let pair = Pair::plain(2);
        let boxes = [(&pair.near, "10.3.1.1"), (&pair.far, "10.3.1.2")].map(|(host, address)| {
            let paths = format!("mptcp.path=[{{device='wan1'}}, {{address='{address}', announce=true}}]");
            Daemon::start(host, BIN, &["server.mptcp=true", "client.mptcp=true", &paths])
        });
        // Each box announces its address, and either may be the first to join.
        let joins =
            || [&pair.near, &pair.far].map(|host| host.counter("MPTcpExtMPJoinAckRx")).iter().sum::<u64>();
        for ((from, host), address) in [
            ((&pair.client, &pair.server), pair.server_at(Ip::V4, 8000)),
            ((&pair.server, &pair.client), pair.client_at(Ip::V4, 8000)),
        ] {
            let before = joins();
            let (client, server, peer) = peers::pair(from, host, address);
            assert_eq!(peer, client.local_addr().unwrap());
            (&client).write_all(b"first bytes").unwrap();
            wait_until("a second subflow", SOON, || joins() > before);
            drop((client, server));
        }
        for daemon in boxes {
            assert!(daemon.stop().0.success());
        }
    });
}

#[test]
fn two_pairs_on_one_machine_know_nothing_of_each_other() {
    netns(|| {
        let pairs = [Pair::plain(2), Pair::plain(2)];
        let [first, second] = pairs.each_ref().map(Boxes::start);
        assert!(first.near.stop().0.success());
        let pair = &pairs[1];
        let (client, _server, _) = peers::pair(&pair.client, &pair.server, pair.server_at(Ip::V4, 8000));
        (&client).write_all(b"first bytes").unwrap();
        wait_until("a second subflow", SOON, || pair.far.counter("MPTcpExtMPJoinAckRx") == 1);
        drop((first.far, second));
    });
}

#[test]
fn an_address_that_changes_in_mid_transfer_loses_nothing_and_serves_what_comes_later() {
    netns(|| {
        let pair = two_paths(40);
        let _boxes = Boxes::start(&pair);
        transfer(&pair, Ip::V4, [0, 6 * MB], || {
            under_way(&pair);
            pair.near.ip("-4 address flush dev wan1");
            pair.near.ip("address add 10.3.1.9/24 dev wan1");
            become_endpoints(&pair.near, &["10.3.1.9 fullmesh dev wan1", "fd03:0:0:1::1 fullmesh dev wan1"]);
        });
        let before = sent(&pair.far)[1];
        transfer(&pair, Ip::V4, [0, 6 * MB], || ());
        assert!(sent(&pair.far)[1] - before > 2 * MB);
    });
}

#[test]
fn a_connection_uses_a_path_again_whose_address_was_gone_for_a_moment() {
    netns(|| {
        let pair = two_paths(40);
        let boxes = Boxes::start(&pair);
        transfer(&pair, Ip::V4, [0, 12 * MB], || {
            under_way(&pair);
            pair.near.ip("-4 address flush dev wan1");
            says(&boxes.near, "the address 10.3.1.1 has gone");
            pair.near.ip("address add 10.3.1.1/24 dev wan1");
            under_way(&pair);
        });
        assert_eq!(pair.near.counter("MPTcpExtMPJoinSynTx"), 1, "the path is reused");
    });
}

#[test]
fn a_path_that_is_cut_in_mid_transfer_loses_nothing() {
    for cut in 0..2 {
        netns(|| {
            let pair = two_paths(40);
            let _boxes = Boxes::start(&pair);
            for (ip, bytes) in BOTH.into_iter().zip([[6 * MB, 0], [0, 6 * MB]]) {
                transfer(&pair, ip, bytes, || {
                    under_way(&pair);
                    pair.paths[cut].cut();
                });
                pair.paths[cut].mend();
            }
        });
    }
}

#[test]
fn a_transfer_goes_on_after_both_paths_were_cut_for_ten_seconds() {
    netns(|| {
        let pair = two_paths(40);
        // `check` recommends these settings. Without them the retransmission timers grow so long meanwhile that the
        // test would have to wait for them.
        for host in [&pair.near, &pair.far] {
            host.sysctl("net.ipv4.tcp_retries2", "255");
            host.sysctl("net.ipv4.tcp_rto_max_ms", "2000");
            host.sysctl("net.ipv4.tcp_rmem", "4096 1048576 33554432");
        }
        let _boxes = Boxes::start(&pair);
        transfer(&pair, Ip::V4, [3 * MB, 3 * MB], || {
            under_way(&pair);
            pair.paths.iter().for_each(lab::wan::Path::cut);
            sleep(Duration::from_secs(10));
            pair.paths.iter().for_each(lab::wan::Path::mend);
        });
    });
}

#[test]
fn a_backup_path_carries_only_while_no_other_does() {
    netns(|| {
        let pair = two_paths(40);
        let _near = Daemon::start(&pair.near, BIN, &[NEAR[0], "mptcp.path=[{device='wan1', backup=true}]"]);
        let _far = Daemon::start(&pair.far, BIN, &FAR);
        let joined = || pair.near.ss("-tn state established").contains("10.3.1.2:5001");
        for (bytes, from) in [([0, 6 * MB], &pair.far), ([6 * MB, 0], &pair.near)] {
            let carried = |during: &dyn Fn()| {
                let before = sent(from);
                transfer(&pair, Ip::V4, bytes, during);
                let after = sent(from);
                [after[0] - before[0], after[1] - before[1]]
            };
            let idle = carried(&|| wait_until("a second subflow", SOON, joined));
            assert!(idle[0] > 6 * MB && idle[1] < MB / 10, "{bytes:?}: {idle:?}");
            let needed = carried(&|| {
                wait_until("a second subflow", SOON, joined);
                pair.paths[0].cut();
            });
            assert!(needed[1] > 3 * MB, "{bytes:?}: {needed:?}");
            pair.paths[0].mend();
        }
    });
}

/// Waits until a transfer has used both paths for a while.
fn under_way(pair: &Pair) {
    let frames = |n: usize| pair.paths[n].to_server().delivered + pair.paths[n].to_client().delivered;
    let before = [frames(0), frames(1)];
    wait_until("a transfer on both paths", SOON, || (0..2).all(|n| frames(n) > before[n] + 300));
}

/// Counts packets from the boxes' own path addresses, which only the boxes know.
fn watch(server: &Host) {
    server.nft(
        "table inet watch {
            counter strangers { }
            chain arriving {
                type filter hook input priority -400
                ip saddr 10.3.0.0/16 counter name strangers
                ip6 saddr fd03::/32 meta l4proto tcp counter name strangers
            }
        }",
    );
}

fn strangers(server: &Host) -> u64 {
    let text = server.run("nft -j list counters table inet watch");
    let listing: serde_json::Value = serde_json::from_str(&text).unwrap();
    let counters = listing["nftables"].as_array().unwrap();
    counters.iter().find_map(|item| item["counter"]["packets"].as_u64()).unwrap()
}
