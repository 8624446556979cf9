//! The effect of the rules on traffic.
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use lab::peers::{self, Server};
use lab::stream::{self, Pace};
use lab::{BOTH, Ip, Lab, Shape};
use socket2::{Domain, Protocol, Socket, Type};
use tcp_intercept::config::Config;
use tcp_intercept::host::rules::{self, Caller, Format};

use crate::line::{asked, both_are_answered, install, quick, remove, servers};
use crate::support::{Proxy, interfaces};

#[test]
fn what_is_forwarded_is_intercepted_and_the_server_sees_the_client() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        let configs = [Config::default(), interfaces(&["lan0"]), interfaces(&["lan0", "lan1"])];
        for (config, port) in configs.into_iter().zip(4001..) {
            install(&lab, &config);
            let proxy = Proxy::start(&lab.gateway, &config);
            both_are_answered(&lab, port);
            assert_eq!(proxy.taken(), 2, "{config:?}");
            let routed = lab.gateway.run("for ip in 4 6; do nft list set inet tcp_intercept routed$ip; done");
            assert!(!routed.contains("elements"), "only what meets a leftover socket is in it: {routed}");
        }
    });
}

#[test]
fn what_arrives_elsewhere_than_on_the_interfaces_of_the_configuration_is_routed() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        let config = interfaces(&["lan7"]);
        install(&lab, &config);
        let proxy = Proxy::start(&lab.gateway, &config);
        both_are_answered(&lab, 4001);
        assert_eq!(proxy.taken(), 0);
    });
}

#[test]
fn trap_5_a_client_may_use_a_port_again_while_its_last_connection_is_in_time_wait_here() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
        // A client that does not answer a stray ACK with a reset would wait forever. This client sends one; tcp_rfc1337
        // makes the box ignore it.
        lab.gateway.sysctl("net.ipv4.tcp_rfc1337", "1");
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        for ip in BOTH {
            for _ in 0..3 {
                assert!(quick(&lab, ip, 4001) < Duration::from_millis(900));
                std::thread::sleep(Duration::from_millis(1100));
            }
        }
        assert!(proxy.taken() >= 6, "{}", proxy.taken());
    });
}

#[test]
fn trap_7_a_box_that_masquerades_and_drops_what_is_invalid_intercepts_as_well() {
    lab::netns(|| {
        let lab = Lab::new();
        lab.masquerade();
        install(&lab, &interfaces(&["lan0"]));
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        for ip in BOTH {
            let _server = Server::start(&lab.server, lab.server_at(ip, 80), peers::echo);
            let client = lab.client().connect(lab.server_at(ip, 80)).unwrap();
            echoes(client, 1 << 20);
        }
        assert_eq!(proxy.taken(), 2);
        let invalid = lab.gateway.run("nft list table inet operator");
        assert!(invalid.contains("counter packets 0 bytes 0 drop"), "{invalid}");
        // Connections that are not intercepted are still masqueraded.
        drop(proxy);
        let _server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), peers::echo);
        echoes(lab.client().connect(lab.server_at(Ip::V4, 80)).unwrap(), 1000);
    });
}

fn echoes(mut client: TcpStream, bytes: usize) {
    let mut sender = client.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        sender.write_all(&vec![7; bytes]).unwrap();
        sender.shutdown(std::net::Shutdown::Write).unwrap();
    });
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert_eq!(back.len(), bytes);
}

fn both_families_pass(shape: Shape) {
    let lab = Lab::with(shape);
    install(&lab, &Config::default());
    let proxy = Proxy::start(&lab.gateway, &Config::default());
    for ip in BOTH {
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
        stream::exchange(&near, &far, 4 << 20, Pace::FULL);
    }
    assert_eq!(proxy.taken(), 2);
}

#[test]
fn trap_8_client_legs_find_a_narrow_path_mtu() {
    lab::netns(|| both_families_pass(Shape { near_mtu: Some(1280), ..Shape::default() }));
}

#[test]
fn trap_8_server_legs_find_a_narrow_path_mtu() {
    lab::netns(|| both_families_pass(Shape { far_mtu: Some(1280), ..Shape::default() }));
}

#[test]
fn trap_12_what_is_addressed_to_the_box_itself_is_not_intercepted() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        for ip in BOTH {
            let _server = Server::start(&lab.gateway, lab.gateway_at(ip, 22), peers::whoami);
            let peer = asked(lab.client().connect(lab.gateway_at(ip, 22)).unwrap());
            assert_eq!(peer.ip(), lab.client_at(0, ip, 0).ip());
        }
        assert_eq!(proxy.taken(), 0);
    });
}

#[test]
fn a_program_on_the_box_itself_is_not_intercepted() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        for ip in BOTH {
            asked(lab.gateway.connect(lab.server_at(ip, 80)).unwrap());
        }
        assert_eq!(proxy.taken(), 0);
    });
}

#[test]
fn another_transparent_program_on_the_box_gets_nothing_from_us() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        let _other = lab.gateway.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket.set_ip_transparent_v4(true).unwrap();
            socket.bind(&SocketAddr::from(([0; 4], 80)).into()).unwrap();
            socket.listen(8).unwrap();
            socket
        });
        quick(&lab, Ip::V4, 4001);
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        quick(&lab, Ip::V4, 4002);
        assert_eq!(proxy.taken(), 1);
    });
}

#[test]
fn trap_12_a_connection_that_is_older_than_the_rules_goes_on() {
    lab::netns(|| {
        let lab = Lab::new();
        for ip in BOTH {
            let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            install(&lab, &Config::default());
            let proxy = Proxy::start(&lab.gateway, &Config::default());
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
            assert_eq!(proxy.taken(), 0);
            drop(proxy);
            remove(&lab, Caller::Operator);
        }
    });
}

#[test]
fn a_client_that_asks_for_multipath_tcp_is_intercepted() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        let stream = lab.client().enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
            socket.connect(&lab.server_at(Ip::V4, 80).into()).unwrap();
            TcpStream::from(socket)
        });
        asked(stream);
        assert_eq!(proxy.taken(), 1);
    });
}

#[test]
fn a_connection_that_was_answered_with_a_syn_cookie_is_intercepted_too() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        lab.gateway.sysctl("net.ipv4.tcp_syncookies", "2");
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        for ip in BOTH {
            // A wildcard listener on the server's port must not receive the answer.
            let _other = lab.gateway.listen(SocketAddr::new(
                if ip == Ip::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) },
                80,
            ));
            for port in 4001..4020 {
                quick(&lab, ip, port);
            }
        }
        assert_eq!(proxy.taken(), 38);
    });
}

#[test]
fn a_flood_that_fills_the_memory_for_syns_has_new_connections_routed_and_breaks_none() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        // The same rules with a set for one connection, which is full after the first.
        let small = rules::print(&Config::default(), Format::Nft).replace("size 262144", "size 1");
        lab.gateway.nft(&small);
        // With cookies, an ACK that does not match the set would be routed, and the server would reset it.
        lab.gateway.sysctl("net.ipv4.tcp_syncookies", "2");
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        quick(&lab, Ip::V4, 4000);
        for port in 4001..4020 {
            quick(&lab, Ip::V4, port);
        }
        assert_eq!(proxy.taken(), 1, "the nineteen are routed");
        quick(&lab, Ip::V6, 4000);
        assert_eq!(proxy.taken(), 2, "IPv6 has its own");
    });
}

#[test]
fn trap_11_what_carries_our_own_mark_is_not_intercepted() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        // The case that the box's own packets come back over a bridge.
        lab.gateway.nft(
            "table inet operator {
                chain early { type filter hook prerouting priority -310; iifname \"lan0\" meta mark set 0x2; }
            }",
        );
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        both_are_answered(&lab, 4001);
        assert_eq!(proxy.taken(), 0);
    });
}

#[test]
fn conntrack_knows_server_legs_as_it_knows_any_connection_of_the_box() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        lab.gateway.nft(
            "table inet operator {
                chain input { type filter hook input priority filter; tcp sport 80 ct state untracked drop; }
            }",
        );
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        both_are_answered(&lab, 4001);
        assert_eq!(proxy.taken(), 2);
    });
}

#[test]
fn an_operator_who_marks_all_packets_in_mangle_does_not_take_them_from_us() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        lab.gateway.nft(
            "table inet operator {
                chain mangle { type filter hook prerouting priority mangle; meta mark set 0x10; }
            }",
        );
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        both_are_answered(&lab, 4001);
        assert_eq!(proxy.taken(), 2);
    });
}

#[test]
fn a_server_behind_the_same_interface_as_its_client_is_reached() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &interfaces(&["lan0", "wan0"]));
        let _servers = servers(&lab);
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        both_are_answered(&lab, 4001);
        assert_eq!(proxy.taken(), 2);
    });
}

#[test]
fn reports_of_multicast_groups_are_not_taken_for_what_a_client_leg_sends() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        lab.gateway.nft(
            "table inet watch { chain output { type filter hook output priority filter;
                icmpv6 type mld2-listener-report counter; }; }",
        );
        let counted = |table: &str| {
            let text = lab.gateway.run(&format!("nft list chain inet {table}"));
            let packets = text.split("packets ").nth(1).unwrap();
            packets.split(' ').next().unwrap().parse::<u32>().unwrap()
        };
        // Each address has its own multicast group, which the kernel reports.
        lab.gateway.ip("address add fd01::5/64 dev lan0 nodad");
        lab::wait_until("a report", Duration::from_secs(20), || counted("watch output") > 0);
        assert_eq!(counted("tcp_intercept client_leg_out"), 0);
    });
}
