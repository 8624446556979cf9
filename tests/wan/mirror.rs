//! The daemon's sockets use the same routes as all others, whatever the main table contains, and the operator's
//! settings stay unchanged.
use std::process::Command;

use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Host, Lab, Shape, becomes, netns, netns_as_user, peers};
use serde_json::Value;
use tcp_intercept::config::Config;
use tcp_intercept::host::wan;

use crate::support::{BIN, SOON, daemon, everything, mirror, operators, way, window};

const WINDOW: Option<u64> = Some(100);

/// Routes of the main table, destinations that use them, and the initial window, if all of the route leads over wan
/// devices.
const ROUTES: &[(&str, &[&str], Option<u64>)] = &[
    // The default route over the wan device, with the link's attributes, and another with a higher metric.
    (
        "default via 10.2.0.2 metric 50 mtu lock 1400 rto_min 300ms advmss 1300 src 10.2.0.1",
        &["192.0.2.1"],
        WINDOW,
    ),
    ("default via 10.4.0.2 metric 100", &["192.0.2.2"], WINDOW),
    // More specific routes over other devices: the trap.
    ("", &["10.1.0.5", "10.4.0.5", "fd01::5"], None),
    ("10.20.0.0/16 via 10.1.0.9", &["10.20.0.1"], None),
    ("10.20.1.0/24 via 10.2.0.3 quickack 1 features ecn initcwnd 20", &["10.20.1.1"], WINDOW),
    ("10.21.0.0/16 via 10.4.0.2 metric 10", &["10.21.0.1"], None),
    ("10.21.0.0/16 via 10.2.0.2 metric 20", &["10.21.0.2"], None),
    ("", &["10.2.0.9", "fd02::9"], WINDOW),
    // Multipath routes.
    (
        "10.22.0.0/16 nexthop via 10.2.0.4 weight 3 nexthop via 10.3.0.4",
        &["10.22.0.1", "10.22.0.2", "10.22.0.3", "10.22.0.4"],
        WINDOW,
    ),
    ("10.23.0.0/16 nexthop via 10.2.0.4 nexthop via 10.4.0.4", &["10.23.0.1", "10.23.0.2"], None),
    ("10.24.0.0/16 nhid 7", &["10.24.0.1"], WINDOW),
    ("10.25.0.0/16 nhid 9", &["10.25.0.1", "10.25.0.2"], None),
    // Routes without a next hop, and a more specific route inside one of them.
    ("blackhole 10.26.0.0/16", &["10.26.0.1"], None),
    ("10.26.1.0/24 via 10.2.0.2", &["10.26.1.1"], WINDOW),
    ("unreachable 10.27.0.0/16 metric 4000", &["10.27.0.1"], None),
    ("throw 10.28.0.0/16", &["10.28.0.1"], None),
    // Routes by type of service, by an IPv6 next hop, on-link, through a tunnel, and to the box itself.
    ("10.29.0.0/16 tos 0x10 via 10.2.0.2", &["10.29.0.1 tos 0x10"], WINDOW),
    ("10.29.0.0/16 via 10.1.0.9", &["10.29.0.1"], None),
    ("10.30.0.0/16 via inet6 fd02::2 dev wan0", &["10.30.0.1"], WINDOW),
    ("10.31.0.0/16 via 198.51.100.1 dev wan0 onlink", &["10.31.0.1"], WINDOW),
    ("10.32.0.0/16 encap ip id 7 dst 10.9.9.9 via 10.2.0.7 dev wan0", &["10.32.0.1"], None),
    ("10.33.0.0/16 via 10.2.0.1 dev wan0", &["10.33.0.1"], None),
    ("10.34.0.0/16 dev wan0 scope link", &["10.34.0.1"], WINDOW),
    ("10.35.0.0/16 via 10.2.0.2 realm 7", &["10.35.0.1"], None),
    // One of two routes with the same key, of which the kernel uses the first.
    ("10.36.0.0/16 via 10.2.0.7 metric 5", &["10.36.0.1"], None),
    // IPv6.
    ("default via fd02::2 mtu 1400", &["2001:db8::1"], WINDOW),
    ("fd20::/16 via fd01::9", &["fd20::1"], None),
    ("fd20:1::/32 via fd02::3", &["fd20:1::1"], WINDOW),
    ("fd22::/16 nexthop via fd02::4 weight 3 nexthop via fd03::4", &["fd22::1", "fd22::2"], WINDOW),
    ("fd23::/16 nexthop via fd02::4 nexthop via fd01::4", &["fd23::1", "fd23::2"], None),
    ("fd24::/16 nhid 17", &["fd24::1"], WINDOW),
    ("unreachable fd26::/16", &["fd26::1"], None),
    ("fd27::/16 from fd01::/64 via fd02::3", &["fd27::1", "fd27::1 from fd01::1"], WINDOW),
    ("fd28::/16 via fe80::1 dev wan0 src fd02::1", &["fd28::1"], WINDOW),
];

/// Builds a router with two wan devices, a LAN, another uplink, and all of [`ROUTES`].
fn router() -> Host {
    let host = Host::new("box");
    for (n, device) in ["lan0", "wan0", "wan1", "lte0"].into_iter().enumerate() {
        let n = n + 1;
        host.ip(&format!("link add {device} type veth peer name end{n}"));
        host.ip(&format!("link set end{n} up"));
        host.ip(&format!("link set {device} up"));
        host.ip(&format!("address add 10.{n}.0.1/24 dev {device}"));
        host.ip(&format!("address add fd0{n}::1/64 dev {device} nodad"));
    }
    for nexthop in [
        "id 7 via 10.2.0.3 dev wan0",
        "id 8 via 10.3.0.3 dev wan1",
        "id 9 group 7/8",
        "id 17 via fd02::7 dev wan0",
    ] {
        host.ip(&format!("nexthop add {nexthop}"));
    }
    for (route, ..) in ROUTES.iter().filter(|(route, ..)| !route.is_empty()) {
        // Selects "fd20::/16" and "default via fd02::2", but not an IPv4 route "via inet6".
        let six =
            route.split(' ').find(|word| word.contains([':', '.'])).is_some_and(|word| word.contains(':'));
        host.ip(&format!("{} route add {route}", if six { "-6" } else { "-4" }));
    }
    host.ip("route append 10.36.0.0/16 via 10.2.0.8 metric 5");
    // The operator's rules, one of them at the priority that the daemon would use.
    host.ip("rule add from 10.1.0.77 lookup 77 priority 32765");
    host.ip("rule add to 10.99.0.0/16 lookup 77");
    host.ip("route add default via 10.4.0.2 table 77");
    host
}

fn assert_the_same_ways(host: &Host) {
    for (route, destinations, expected) in ROUTES {
        for to in *destinations {
            assert_eq!(window(host, to), *expected, "{to}, by {route:?}");
        }
    }
    assert_eq!(window(host, "10.99.0.1"), None, "the operator's rule comes first");
}

/// Returns the output of `tcp-intercept rules ACTION`, whether it succeeds or fails.
fn rules(host: &Host, action: &str) -> String {
    let mut command: Command = host.cmd(BIN);
    let output =
        command.args(["rules", action, "--set", "wan.devices=[\"wan0\", \"wan1\"]"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn our_sockets_go_the_way_of_all_others_and_nothing_of_the_operators_changes() {
    netns(|| {
        let host = router();
        let before = everything(&host);
        let daemon = daemon(&host);
        assert_the_same_ways(&host);
        assert_eq!(operators(&host), before);
        let status = rules(&host, "status");
        assert!(status.contains("note: initial window (table 6): as it should be"), "{status}");
        assert_eq!(
            status.matches("the kernel refuses a copy").count(),
            1,
            "10.33.0.0/16, through the box itself: {status}"
        );
        let (ended, log) = daemon.stop();
        assert!(ended.success(), "{log}");
        assert_eq!(everything(&host), before);
    });
}

#[test]
fn what_a_copy_does_not_change_is_as_the_operator_has_it() {
    netns(|| {
        let host = router();
        let _daemon = daemon(&host);
        let metrics = |line: &Value| {
            let mut metrics = line["metrics"][0].clone();
            metrics.as_object_mut().unwrap().remove("initcwnd");
            metrics
        };
        for to in ["192.0.2.1", "10.20.1.1", "2001:db8::1"] {
            let get = |options: &str| -> Value {
                let text = host.ip(&format!("-j route get {to} {options}"));
                serde_json::from_str::<Vec<Value>>(&text).unwrap().remove(0)
            };
            let (ours, theirs) = (get("mark 2"), get(""));
            assert_eq!(metrics(&ours), metrics(&theirs), "{ours} {theirs}");
            assert_ne!(metrics(&ours), serde_json::json!({}), "{ours}");
        }
    });
}

#[test]
fn a_connection_between_two_networks_of_the_box_does_not_leave_by_the_default_route() {
    netns(|| {
        let lab = Lab::with(Shape { clients: 2, ..Shape::default() });
        lab.gateway.ip("-4 route add default via 10.2.0.2");
        lab.gateway.ip("-6 route add default via fd02::2");
        let daemon = daemon(&lab.gateway);
        for ip in BOTH {
            let (near, far, _) = peers::pair(lab.client(), &lab.clients[1], lab.client_at(1, ip, 7));
            assert_eq!(lab.legs(&near), 2);
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        }
        let (status, log) = daemon.stop();
        assert!(status.success(), "{log}");
    });
}

#[test]
fn what_a_killed_daemon_left_is_removed_by_the_next_one_whatever_it_asks_for() {
    netns(|| {
        let host = router();
        let before = everything(&host);
        for settings in [&["wan.devices=[]"][..], &["rules.manage=false", "wan.devices=[\"wan0\"]"]] {
            daemon(&host).kill9();
            assert!(!mirror(&host).is_empty());
            assert_the_same_ways(&host);
            let next = Daemon::start(&host, BIN, settings);
            assert_eq!(mirror(&host), [Value::Null; 0], "{settings:?}");
            let warned = next.log().contains("rules.manage = false: the daemon adds no routes");
            assert_eq!(warned, settings.len() == 2, "{}", next.log());
            next.stop();
            rules(&host, "remove");
            assert_eq!(everything(&host), before, "{settings:?}");
        }
    });
}

#[test]
fn the_command_removes_what_a_killed_daemon_left_and_leaves_it_to_one_that_runs() {
    netns(|| {
        let host = router();
        let before = everything(&host);
        let running = daemon(&host);
        assert!(rules(&host, "remove").contains("belong to the running daemon"));
        assert_the_same_ways(&host);
        running.kill9();
        let removed = rules(&host, "remove");
        assert!(
            removed.contains("delete the policy rule \"iif lo fwmark 0x2/0x6 lookup 6 priority 32765"),
            "{removed}"
        );
        assert!(removed.contains("routes of ours from table 6"), "{removed}");
        assert_eq!(everything(&host), before);
    });
}

#[test]
fn the_command_says_what_run_will_add() {
    netns(|| {
        let host = router();
        let installed = rules(&host, "install");
        assert!(
            installed.contains("note: initial window (table 6): not there: `run` adds it"),
            "{installed}"
        );
        assert_eq!(mirror(&host), [Value::Null; 0]);
        let printed = rules(&host, "print");
        let daemon = daemon(&host);
        for rule in host.ip("rule show table 6").lines() {
            let (_, rule) = rule.split_once('\t').unwrap();
            assert!(printed.contains(&format!("#   {}", rule.trim())), "{rule}: {printed}");
        }
        let (_, log) = daemon.stop();
        assert!(log.contains("installed by `rules install`"), "{log}");
        assert_eq!(
            mirror(&host),
            [Value::Null; 0],
            "the mirror belongs to the daemon, not to the owner of the rules"
        );
    });
}

#[test]
fn an_ordinary_user_in_a_namespace_of_his_own_can_have_it() {
    netns_as_user(|| {
        let host = router();
        let before = everything(&host);
        let daemon = daemon(&host);
        assert_the_same_ways(&host);
        daemon.stop();
        assert_eq!(everything(&host), before);
    });
}

#[test]
fn a_table_that_is_somebody_elses_is_left_and_connections_have_the_kernels_window() {
    netns(|| {
        let lab = Lab::new();
        let host = &lab.gateway;
        host.ip("route add 203.0.113.0/24 dev lan0 table 6");
        let before = everything(host);
        let daemon = daemon(host);
        assert_eq!(mirror(host), [Value::Null; 0]);
        let told = "the routing table 6 has the IPv4 route \\\"203.0.113.0/24\\\", which is not ours";
        assert!(daemon.log().contains(told), "{}", daemon.log());
        let config = Config::parse("wan.devices = ['wan0']", &[]).unwrap();
        let obstacle = host.enter(|| wan::obstacle(&config));
        assert!(obstacle.as_ref().is_some_and(|why| why.contains("203.0.113.0/24")), "{obstacle:?}");
        for ip in BOTH {
            let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            assert_eq!(lab.legs(&near), 2);
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        }
        // The daemon uses the table as soon as it is free, and leaves it as soon as it is not.
        host.ip("route del 203.0.113.0/24 table 6");
        assert!(becomes(SOON, || way(host, "10.2.0.2", "mark 2").1 == WINDOW), "{}", daemon.log());
        host.ip("route add 203.0.113.0/24 dev lan0 table 6");
        assert!(becomes(SOON, || mirror(host).is_empty()), "{}", daemon.log());
        daemon.stop();
        assert_eq!(everything(host), before);
    });
}
