//! While the daemon runs, the mirror follows changes by the operator, DHCP, a routing daemon or a cable.
use lab::{Host, becomes, netns};
use serde_json::Value;

use crate::support::{SOON, daemon, everything, mirror, way, window};

const WINDOW: Option<u64> = Some(100);

fn router() -> Host {
    let host = Host::new("box");
    for (n, device) in [(1, "lan0"), (2, "wan0")] {
        plug(&host, n, device);
    }
    for (ip, default) in [("-4", "10.2.0.2"), ("-6", "fd02::2")] {
        host.ip(&format!("{ip} route add default via {default} metric 100"));
    }
    host
}

fn plug(host: &Host, n: u8, device: &str) {
    host.ip(&format!("link add {device} type veth peer name end{n}"));
    host.ip(&format!("link set end{n} up"));
    up(host, n, device);
}

fn up(host: &Host, n: u8, device: &str) {
    host.ip(&format!("link set {device} up"));
    host.ip(&format!("address replace 10.{n}.0.1/24 dev {device}"));
    host.ip(&format!("address replace fd0{n}::1/64 dev {device} nodad"));
}

/// Waits until the daemon's sockets reach `to` by the same route as all others. The route must contain `part` and have
/// that initial window.
fn comes_true(host: &Host, to: &str, part: &str, expected: Option<u64>) {
    let others = || way(host, to, "").0;
    let ours = || way(host, to, "mark 2");
    let done = becomes(SOON, || ours() == (others(), expected) && others().contains(part));
    assert!(done, "{to}: {:?}, others {:?}\n{:#?}", ours(), others(), mirror(host));
    assert_eq!(window(host, to), expected);
}

#[test]
fn routes_that_come_change_and_go_are_followed() {
    netns(|| {
        let host = router();
        let before = everything(&host);
        let daemon = daemon(&host);
        for (ip, net, to, lan, wan) in [
            ("-4", "203.0.113.0/24", "203.0.113.1", "10.1.0.9", "10.2.0.9"),
            ("-6", "2001:db8::/32", "2001:db8::1", "fd01::9", "fd02::9"),
        ] {
            comes_true(&host, to, "wan0", WINDOW);
            host.ip(&format!("{ip} route add {net} via {lan}"));
            comes_true(&host, to, lan, None);
            host.ip(&format!("{ip} route replace {net} via {wan}"));
            comes_true(&host, to, wan, WINDOW);
            host.ip(&format!("{ip} route replace {net} nexthop via {lan} nexthop via {wan}"));
            comes_true(&host, to, "", None);
            host.ip(&format!("{ip} route replace unreachable {net}"));
            comes_true(&host, to, "", None);
            host.ip(&format!("{ip} route flush {net}"));
            comes_true(&host, to, "wan0", WINDOW);
            // Another uplink is preferred for a while.
            host.ip(&format!("{ip} route add default via {lan} metric 50"));
            comes_true(&host, to, lan, None);
            host.ip(&format!("{ip} route del default via {lan} metric 50"));
            comes_true(&host, to, "wan0", WINDOW);
            // Route attributes other than the next hop are copied too.
            host.ip(&format!("{ip} route add {net} via {wan} mtu 1300"));
            comes_true(&host, to, wan, WINDOW);
            host.ip(&format!("{ip} route replace {net} via {wan} mtu 1280"));
            let mtu = || host.ip(&format!("-j route get {to} mark 4")).contains("\"mtu\":1280");
            assert!(becomes(SOON, mtu), "{:#?}", mirror(&host));
            host.ip(&format!("{ip} route del {net}"));
            comes_true(&host, to, "wan0", WINDOW);
        }
        let (status, log) = daemon.stop();
        assert!(status.success() && !log.contains("ERROR"), "{log}");
        assert_eq!(everything(&host), before);
    });
}

#[test]
fn a_device_that_goes_down_comes_up_vanishes_or_comes_later_is_followed() {
    netns(|| {
        let host = router();
        for (ip, other) in [("-4", "10.1.0.9"), ("-6", "fd01::9")] {
            host.ip(&format!("{ip} route add default via {other} metric 200"));
        }
        let daemon = daemon(&host);
        assert!(daemon.log().contains("wan1 does not exist yet"), "{}", daemon.log());
        let both = |part: [&str; 2], expected| {
            for (to, part) in ["192.0.2.1", "2001:db8::1"].into_iter().zip(part) {
                comes_true(&host, to, part, expected);
            }
        };
        both(["wan0", "wan0"], WINDOW);
        host.ip("link set wan0 down");
        both(["lan0", "lan0"], None);
        assert!(becomes(SOON, || mirror(&host).is_empty()), "{:#?}", mirror(&host));
        up(&host, 2, "wan0");
        host.ip("-4 route add default via 10.2.0.2 metric 100");
        host.ip("-6 route add default via fd02::2 metric 100");
        both(["wan0", "wan0"], WINDOW);
        host.ip("link del wan0");
        both(["lan0", "lan0"], None);
        plug(&host, 3, "wan1");
        host.ip("-4 route add default via 10.3.0.2 metric 50");
        host.ip("-6 route add default via fd03::2 metric 50");
        both(["wan1", "wan1"], WINDOW);
        let told = |text: &str| daemon.log().matches(text).count();
        assert_eq!(told("wan1 does not exist yet"), 1, "{}", daemon.log());
        assert!(
            told("wan1: IPv4 and IPv6 connections begin with a window of 100 segments") > 0,
            "{}",
            daemon.log()
        );
        daemon.stop();
    });
}

#[test]
fn another_address_as_dhcp_gives_one_is_followed() {
    netns(|| {
        let host = router();
        host.ip("route replace default via 10.2.0.2 src 10.2.0.1 metric 100");
        let daemon = daemon(&host);
        comes_true(&host, "192.0.2.1", "10.2.0.1", WINDOW);
        host.ip("address del 10.2.0.1/24 dev wan0");
        host.ip("address add 10.9.0.1/24 dev wan0");
        host.ip("route add default via 10.9.0.2 src 10.9.0.1 metric 100");
        comes_true(&host, "192.0.2.1", "10.9.0.1", WINDOW);
        assert!(becomes(SOON, || !host.ip("route show table 6").contains("10.2.0.")), "{:#?}", mirror(&host));
        daemon.stop();
    });
}

#[test]
fn a_rule_that_an_operator_puts_beside_ours_goes_before_ours() {
    netns(|| {
        let host = router();
        host.ip("route add default via 10.1.0.9 table 77");
        let daemon = daemon(&host);
        comes_true(&host, "192.0.2.1", "wan0", WINDOW);
        host.ip("rule add to 192.0.2.0/24 lookup 77 priority 32765");
        comes_true(&host, "192.0.2.1", "lan0", None);
        let (_, log) = daemon.stop();
        assert!(!host.ip("rule").contains("156"), "{log}");
    });
}

#[test]
fn a_route_that_expires_is_no_longer_taken_before_the_kernel_has_removed_it() {
    netns(|| {
        let host = router();
        host.ip("-6 route add default via fd01::9 metric 200");
        host.ip("-6 route replace default via fd02::2 metric 100 expires 3");
        let daemon = daemon(&host);
        comes_true(&host, "2001:db8::1", "wan0", WINDOW);
        comes_true(&host, "2001:db8::1", "lan0", None);
        daemon.stop();
    });
}

#[test]
fn what_somebody_deletes_of_ours_comes_back() {
    netns(|| {
        let host = router();
        let daemon = daemon(&host);
        let whole: Vec<Value> = mirror(&host);
        for harm in ["rule del iif lo fwmark 0x2/0x6", "route flush table 6", "-6 route flush table 6"] {
            host.ip(harm);
            assert!(becomes(SOON, || mirror(&host) == whole), "{harm}: {:#?}", mirror(&host));
        }
        daemon.stop();
    });
}

#[test]
fn more_changes_than_the_kernel_can_tell_of_are_followed() {
    netns(|| {
        let host = router();
        let daemon = daemon(&host);
        let via = ["10.2.0.2", "10.1.0.9", "10.2.0.9"];
        let route =
            |n: usize| format!("route replace 20.0.{}.0/24 via {}\n", n % 250, via[(n / 250 + n) % 3]);
        std::fs::write("/run/changes", (0..20_000).map(route).collect::<String>()).unwrap();
        host.ip("-batch /run/changes");
        let same = || {
            (0..250).all(|n| {
                let to = format!("20.0.{n}.1");
                way(&host, &to, "mark 2").0 == way(&host, &to, "").0
            })
        };
        assert!(becomes(SOON, same), "{:#?}", mirror(&host));
        let throws = || host.ip("route show table 6").matches("throw 20.").count();
        let elsewhere = host.ip("route").matches("via 10.1.0.9").count();
        assert!(becomes(SOON, || throws() == elsewhere) && elsewhere > 80, "{} of {elsewhere}", throws());
        assert!(lost(&host) > 0, "the kernel lost no message");
        let (status, log) = daemon.stop();
        assert!(status.success() && !log.contains("ERROR"), "{log}");
    });
}

/// Returns how many kernel messages the daemon's sockets for routes and links have dropped, over both address families.
fn lost(host: &Host) -> u64 {
    let sockets = host.run("cat /proc/net/netlink");
    let columns = sockets.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    columns.filter(|columns| columns[3] == "800405d1").map(|columns| columns[8].parse::<u64>().unwrap()).sum()
}
