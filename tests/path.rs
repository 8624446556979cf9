//! The connections that the box in the path intercepts, and those that it leaves alone.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]
mod intercepting;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use intercepting::{BIN, WHERE, intercepting, legs_of_a_new_connection};
use lab::peers;
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Ip, Lab, Shape, netns, netns_as_user, wait_until};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn an_ordinary_user_in_a_namespace_of_his_own_intercepts() {
    netns_as_user(|| {
        let lab = Lab::new();
        intercepting(&lab, &[], |ip, _| assert_eq!(legs_of_a_new_connection(&lab, ip), 2));
    });
}

#[test]
fn an_input_chain_that_drops_all_but_what_is_marked_lets_both_legs_in() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.nft(
            "table inet operator { chain input { type filter hook input priority filter; policy drop;
                meta mark & 0x1 == 0x1 counter accept;
                icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                counter comment \"dropped\"
            }; }",
        );
        intercepting(&lab, &[], |ip, _| assert_eq!(legs_of_a_new_connection(&lab, ip), 2));
        let chain = lab.gateway.run("nft list chain inet operator input");
        assert!(chain.contains("counter packets 0 bytes 0 comment \"dropped\""), "{chain}");
    });
}

#[test]
fn programs_on_the_box_connect_as_before() {
    netns(|| {
        let lab = Lab::new();
        intercepting(&lab, &[], |ip, daemon| {
            let outward = lab.server_at(ip, 7);
            let to_itself = [lab.gateway_at(ip, 8), loopback(ip, 9)];
            for (host, address) in
                [(&lab.server, outward), (&lab.gateway, to_itself[0]), (&lab.gateway, to_itself[1])]
            {
                let (near, far, peer) = peers::pair(&lab.gateway, host, address);
                assert_eq!(peer, near.local_addr().unwrap());
                stream::exchange(&near, &far, 1 << 20, Pace::FULL);
            }
            assert_eq!(daemon.close_records().len(), 0);
        });
    });
}

fn loopback(ip: Ip, port: u16) -> SocketAddr {
    SocketAddr::new(
        if ip == Ip::V4 { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() },
        port,
    )
}

#[test]
fn what_arrives_elsewhere_than_on_the_interfaces_named_is_routed_and_the_rest_is_not() {
    netns(|| {
        let lab = Lab::with(Shape { clients: 2, ..Shape::default() });
        let _daemon = Daemon::start(&lab.gateway, BIN, WHERE[1]);
        for (ip, (n, legs)) in BOTH.into_iter().flat_map(|ip| [(0, 2), (1, 0)].map(|one| (ip, one))) {
            let (near, far, peer) = peers::pair(&lab.clients[n], &lab.server, lab.server_at(ip, 7));
            assert_eq!((peer, lab.legs(&near)), (near.local_addr().unwrap(), legs));
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        }
        for ip in BOTH {
            let (near, _far, _) = peers::pair(&lab.server, lab.client(), lab.client_at(0, ip, 7));
            assert_eq!(lab.legs(&near), 0, "from the server's side");
        }
    });
}

#[test]
fn udp_and_icmp_pass_as_they_are() {
    netns(|| {
        let lab = Lab::new();
        intercepting(&lab, &[], |ip, _| {
            let at = |host: &lab::Host, address| host.enter(|| UdpSocket::bind(address)).unwrap();
            let near = at(lab.client(), lab.client_at(0, ip, 4001));
            let far = at(&lab.server, lab.server_at(ip, 7));
            near.set_read_timeout(Some(SOON)).unwrap();
            near.connect(lab.server_at(ip, 7)).unwrap();
            near.send(b"question").unwrap();
            let (_, peer) = far.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(peer, lab.client_at(0, ip, 4001));
            far.send_to(b"answer", peer).unwrap();
            assert_eq!(near.recv(&mut [0; 8]).unwrap(), 6);
            drop(far);
            near.send(b"nobody").unwrap();
            let err = near.recv(&mut [0; 8]).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::ConnectionRefused, "the ICMP error came");
            lab.client().run(&format!("ping -n -c 2 -i 0.1 -W 10 {}", lab.server_at(ip, 7).ip()));
        });
    });
}

#[test]
fn icmp_errors_for_routed_connections_reach_their_ends() {
    netns(|| {
        for shape in [Shape { near_mtu: Some(1280), ..Shape::default() }] {
            let lab = Lab::with(shape);
            let older = BOTH.map(|ip| peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7)));
            let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
            for (near, far, _) in &older {
                assert_eq!(lab.legs(near), 0);
                stream::exchange(near, far, 1 << 20, Pace::FULL);
            }
            let learnt = lab.server.ip("route show cache") + &lab.server.ip("-6 route show cache");
            assert_eq!(learnt.matches("mtu 1280").count(), 2, "{learnt}");
        }
    });
}

#[test]
fn a_box_without_ipv6_intercepts_ipv4() {
    netns(|| {
        let lab = Lab::new();
        for which in ["all", "default"] {
            lab.gateway.sysctl(&format!("net.ipv6.conf.{which}.disable_ipv6"), "1");
        }
        for place in WHERE {
            let daemon = Daemon::start(&lab.gateway, BIN, place);
            assert_eq!(legs_of_a_new_connection(&lab, Ip::V4), 2);
            let (status, log) = daemon.stop();
            assert!(status.success(), "{log}");
        }
    });
}

#[test]
fn connections_to_the_listener_itself_are_refused_with_a_warning_now_and_then() {
    netns(|| {
        let lab = Lab::new();
        intercepting(&lab, &[], |ip, daemon| {
            let warnings = || daemon.log().matches("refused a connection from").count();
            let before = warnings();
            for _ in 0..50 {
                let refused =
                    lab.gateway.connect(loopback(ip, 5000)).and_then(|mut stream| stream.read(&mut [0]));
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
            assert!(warnings() - before < 5, "{}", daemon.log());
            assert!(warnings() > 0);
            assert_eq!(daemon.close_records().len(), 0);
        });
    });
}

#[test]
fn the_listener_cannot_be_reached_from_outside() {
    netns(|| {
        let lab = Lab::new();
        // A client that treats 127.0.0.1 like any other address.
        lab.client().sysctl("net.ipv4.conf.eth0.route_localnet", "1");
        lab.client().ip("route del local 127.0.0.0/8 dev lo table local");
        lab.client().ip("route del local 127.0.0.1 dev lo table local");
        lab.client().ip("route add 127.0.0.1 via 10.1.0.1 src 10.1.0.2");
        intercepting(&lab, &[], |ip, daemon| {
            if ip == Ip::V4 {
                let to = loopback(ip, 5000);
                let connected =
                    lab.client().enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)));
                assert_eq!(connected.unwrap_err().kind(), ErrorKind::TimedOut);
            }
            let err = lab.client().connect(lab.gateway_at(ip, 5000)).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::ConnectionRefused);
            assert!(!daemon.log().contains("refused a connection from"), "{}", daemon.log());
        });
    });
}

/// The box's route to the server leads through another router, which sends the packets back to the box. They return
/// without the box's own mark. The loop ends because the second handshake is never completed.
#[test]
fn a_server_leg_that_comes_back_to_the_box_is_not_intercepted_again_and_again() {
    netns(|| {
        let lab = Lab::with(Shape { clients: 2, ..Shape::default() });
        let router = &lab.clients[1];
        router.sysctl("net.ipv4.ip_forward", "1");
        router.sysctl("net.ipv6.conf.all.forwarding", "1");
        for settings in [&[][..], &["server.source=client-address", "rules.interfaces=[\"lan0\",\"lan1\"]"]] {
            let daemon = Daemon::start(&lab.gateway, BIN, settings);
            for (ip, forwarded) in BOTH.into_iter().zip(["IpForwDatagrams", "Ip6OutForwDatagrams"]) {
                let (server, via) = (lab.server_at(ip, 7), lab.client_at(1, ip, 0).ip());
                lab.gateway.ip(&format!("route add {} via {via}", server.ip()));
                let before = router.counter(forwarded);
                let client = lab.client().connect(server).unwrap();
                wait_until("the server leg's SYN has come back three times", SOON, || {
                    router.counter(forwarded) >= before + 3
                });
                let sockets = lab.gateway.ss("-tan state established state syn-sent");
                assert_eq!(sockets.lines().count(), 2, "{sockets}");
                peers::reset(client);
                lab.gateway.ip(&format!("route del {}", server.ip()));
            }
            daemon.wait_for_records(2);
        }
    });
}
