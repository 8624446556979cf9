//! Two boxes with the WAN between them: routes, addresses and congestion control, as `ip`, `ss` and ping see them.
use lab::stream::{self, Pace};
use lab::wan::Profile;
use lab::{BOTH, Pair, peers};

#[test]
fn a_pair_joins_client_and_server_over_both_protocols() {
    lab::netns(|| carries(&Pair::plain(2)));
}

#[test]
fn an_ordinary_user_gets_a_pair_with_paths_that_differ() {
    lab::netns_as_user(|| carries(&Pair::new(&Profile::bonded())));
}

#[test]
fn a_box_sends_from_each_address_by_its_own_path() {
    lab::netns(|| {
        let pair = Pair::plain(3);
        for ip in BOTH {
            for n in 0..3 {
                let (near, far) = (pair.near_at(n, ip, 0).ip(), pair.far_at(n, ip, 0).ip());
                let (client, server) = (pair.client_at(ip, 0).ip(), pair.server_at(ip, 0).ip());
                let by = format!("dev wan{n} ");
                let route = pair.near.ip(&format!("route get {server} from {near}"));
                assert!(route.contains(&by), "{route}");
                let route = pair.far.ip(&format!("route get {client} from {far}"));
                assert!(route.contains(&by), "{route}");
                let route = pair.near.ip(&format!("route get {client} from {near}"));
                assert!(route.contains("dev lan0 "), "{route}");
                pair.near.run(&format!("ping -q -c 1 -W 10 -I {near} {server}"));
            }
        }
    });
}

#[test]
fn several_labs_stand_side_by_side_and_leave_nothing() {
    lab::netns(|| {
        let (first, second) = (Pair::new(&Profile::clean()), Pair::plain(2));
        for pair in [&first, &second] {
            let address = pair.server_at(BOTH[0], 7);
            drop(peers::pair(&pair.client, &pair.server, address));
        }
        assert_eq!(first.near.name(), "near");
        assert_ne!(first.near.name(), second.near.name());
        drop(first);
        drop(second);
        assert_eq!(std::fs::read_dir("/run/netns").unwrap().count(), 0);
    });
}

fn carries(pair: &Pair) {
    for host in [&pair.client, &pair.server] {
        host.sysctl("net.ipv4.tcp_congestion_control", "reno");
    }
    for ip in BOTH {
        let (client, server, peer) = peers::pair(&pair.client, &pair.server, pair.server_at(ip, 7));
        assert_eq!(peer.ip(), pair.client_at(ip, 0).ip());
        for host in [&pair.client, &pair.server] {
            let sockets = host.ss("-tino state established");
            assert!(sockets.contains(" cubic "), "{host}: {sockets}");
        }
        stream::exchange(&client, &server, 1 << 20, Pace::UNEVEN);
    }
}

#[test]
fn boxes_know_each_other_and_may_also_ask_through_the_wan() {
    lab::netns(|| {
        let pair = Pair::new(&Profile::clean());
        for host in [&pair.near, &pair.far] {
            let known = host.ip("neighbour show dev wan0 nud permanent");
            assert_eq!(known.lines().count(), 2, "{host}: {known}");
            host.ip("neighbour flush dev wan0 nud permanent");
        }
        for ip in BOTH {
            pair.near.run(&format!("ping -q -c 1 -W 10 {}", pair.far_at(0, ip, 0).ip()));
        }
        let known = pair.near.ip("neighbour show dev wan0");
        assert!(known.contains("lladdr") && !known.contains("PERMANENT"), "{known}");
    });
}
