//! Endpoints and limits: the daemon's own exist while it runs, the operator's stay unchanged.
use lab::{BOTH, Daemon, Host, Pair, netns};

use crate::support::{BIN, Boxes, FAR, NEAR, become_endpoints, endpoints, limits, says};

const RAISED: &str = "add_addr_accepted 8 subflows 8";
const KERNELS: &str = "add_addr_accepted 0 subflows 2";
const NEARS: [&str; 2] = ["10.3.1.1 fullmesh dev wan1", "fd03:0:0:1::1 fullmesh dev wan1"];
const FARS: [&str; 1] = ["10.3.1.2 port 5001 signal dev wan1"];

fn tables(host: &Host) -> String {
    host.run("nft list tables")
}

#[test]
fn endpoints_and_limits_come_with_the_daemon_and_go_with_it() {
    netns(|| {
        let pair = Pair::plain(2);
        let Boxes { near, far } = Boxes::start(&pair);
        assert_eq!(endpoints(&pair.near), NEARS);
        assert_eq!(limits(&pair.near), RAISED);
        assert_eq!(endpoints(&pair.far), FARS);
        assert_eq!(limits(&pair.far), "add_addr_accepted 0 subflows 8");
        for (host, daemon) in [(&pair.near, near), (&pair.far, far)] {
            let (status, log) = daemon.stop();
            assert!(status.success(), "{log}");
            assert_eq!(
                (endpoints(host), limits(host), tables(host)),
                (vec![], KERNELS.into(), String::new())
            );
            assert!(!log.contains("\"ERROR\""), "{log}");
        }
    });
}

#[test]
fn what_a_sigkill_left_goes_with_the_next_start_and_with_rules_remove() {
    netns(|| {
        let host = &Pair::plain(2).near;
        Daemon::start(host, BIN, &NEAR).kill9();
        assert_eq!(endpoints(host), NEARS);
        Daemon::start(host, BIN, &["server.mptcp=true"]).kill9();
        assert_eq!((endpoints(host), limits(host)), (vec![], KERNELS.into()));
        Daemon::start(host, BIN, &NEAR).kill9();
        // With the same paths again, the endpoints still belong to the daemon.
        assert!(Daemon::start(host, BIN, &NEAR).stop().0.success());
        assert_eq!((endpoints(host), limits(host)), (vec![], KERNELS.into()));
        let running = Daemon::start(host, BIN, &NEAR);
        let remove = format!("{} rules remove 2>&1 || true", lab::reachable(BIN.as_ref()).display());
        assert!(host.run(&remove).contains("belong to the running daemon"));
        assert_eq!(endpoints(host), NEARS);
        running.kill9();
        let removed = host.run(&remove);
        assert!(removed.contains("delete the MPTCP endpoint 10.3.1.1"), "{removed}");
        assert!(removed.contains("set the MPTCP limit subflows back to 2"), "{removed}");
        assert_eq!((endpoints(host), limits(host), tables(host)), (vec![], KERNELS.into(), String::new()));
    });
}

#[test]
fn the_operators_endpoints_and_limits_are_untouched() {
    netns(|| {
        let host = &Pair::plain(3).near;
        host.ip("mptcp limits set subflows 8 add_addr_accepted 3");
        host.ip("mptcp endpoint add 10.3.1.1 dev wan1 subflow");
        host.ip("mptcp endpoint add 10.3.2.1 dev wan2 signal");
        let theirs = endpoints(host);
        let daemon = Daemon::start(host, BIN, &NEAR);
        says(&daemon, "10.3.1.1 is an endpoint of the operator's: it is used as it is");
        let all = [theirs[0].as_str(), theirs[1].as_str(), NEARS[1]];
        assert_eq!((endpoints(host), limits(host)), (all.map(String::from).into(), RAISED.into()));
        // The operator changes the limits while the daemon runs.
        host.ip("mptcp limits set subflows 5");
        host.ip("mptcp endpoint add 10.3.0.1 dev wan0 subflow");
        assert!(daemon.stop().0.success());
        let mut left = endpoints(host);
        assert_eq!(left.remove(0), "10.3.0.1 subflow dev wan0");
        assert_eq!((left, limits(host)), (theirs, "add_addr_accepted 3 subflows 5".into()));
    });
}

#[test]
fn a_port_that_is_in_use_is_said_and_tried_again() {
    netns(|| {
        let pair = Pair::plain(2);
        let taken = pair.far.listen(pair.far_at(1, BOTH[0], 5001));
        let daemon = Daemon::start(&pair.far, BIN, &FAR);
        says(&daemon, "10.3.1.2 port 5001 cannot be an endpoint: another program listens on that port");
        assert_eq!(endpoints(&pair.far), [""; 0]);
        drop(taken);
        become_endpoints(&pair.far, &FARS);
        says(&daemon, "10.3.1.2 port 5001 is announced");
        assert!(daemon.stop().0.success());
    });
}

#[test]
fn every_key_of_a_path_reaches_the_kernel() {
    netns(|| {
        let pair = Pair::plain(2);
        let paths = "mptcp.path=[{address='10.3.1.2', announce=true, port=7000, backup=true, id=9}, {address='10.3.0.2'}]";
        let daemon = Daemon::start(&pair.far, BIN, &["client.mptcp=true", paths]);
        let shown = pair.far.ip("mptcp endpoint show");
        for line in ["10.3.1.2 port 7000 id 9 signal backup dev wan1", "10.3.0.2 id 10 fullmesh dev wan0"] {
            assert!(shown.contains(line), "{line} is not in:\n{shown}");
        }
        assert!(daemon.stop().0.success());
    });
}

#[test]
fn an_ipv6_address_that_cannot_be_announced_is_told_with_what_helps() {
    netns(|| {
        let far = &Pair::plain(2).far;
        far.ip("-4 address flush dev wan1");
        let daemon = Daemon::start(far, BIN, &FAR);
        says(&daemon, "fd03:0:0:1::2 cannot be announced while net.ipv4.tcp_timestamps is on");
        assert!(daemon.stop().0.success());
    });
}

#[test]
fn mptcp_that_is_switched_off_is_said_and_connections_go_on() {
    netns(|| {
        let pair = Pair::plain(2);
        pair.near.sysctl("net.mptcp.enabled", "0");
        let boxes = Boxes::start(&pair);
        says(&boxes.near, "net.mptcp.enabled = 0");
        for ip in BOTH {
            crate::support::transfer(&pair, ip, [1000, 1000], || ());
        }
    });
}
