//! What the rules do to traffic.
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lab::peers::{self, Server};
use lab::stream::{self, Pace};
use lab::{BOTH, Ip, Lab, Shape};
use socket2::{Domain, Protocol, Socket, Type};
use tcp_intercept::config::Config;
use tcp_intercept::rules::{self, Caller, Format, Gate, Installed, Removed};

use crate::support::{Proxy, interfaces};

fn install(lab: &Lab, config: &Config) -> Installed {
    lab.gateway.enter(|| rules::install(config)).unwrap()
}

fn remove(lab: &Lab, caller: Caller) -> Removed {
    lab.gateway.enter(|| rules::remove(Config::default().rules.own_mark, caller)).unwrap()
}

/// Who the server says that its client is.
fn asked(mut stream: TcpStream) -> SocketAddr {
    let mut text = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_to_string(&mut text).unwrap();
    text.parse().unwrap()
}

fn early_demux(lab: &Lab) -> String {
    lab.gateway.run("cat /proc/sys/net/ipv4/tcp_early_demux").trim().to_owned()
}

/// Connects from one port, asks, and says how long that took.
fn quick(lab: &Lab, ip: Ip, port: u16) -> Duration {
    let start = Instant::now();
    let stream = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 80)).unwrap();
    assert_eq!(asked(stream), lab.client_at(0, ip, port));
    start.elapsed()
}

fn both_are_answered(lab: &Lab, port: u16) {
    for ip in BOTH {
        quick(lab, ip, port);
    }
}

fn servers(lab: &Lab) -> Vec<Server> {
    BOTH.into_iter().map(|ip| Server::start(&lab.server, lab.server_at(ip, 80), peers::whoami)).collect()
}

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
        // A client that does not answer a stray ACK with a reset would wait for ever; ours does, so it is ignored.
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
        // What is not intercepted is still masqueraded.
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
fn trap_13_and_22_when_nobody_listens_connections_are_routed_at_once_also_from_ports_just_used() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        let mut proxy = Proxy::start(&lab.gateway, &Config::default());
        both_are_answered(&lab, 4001);
        let open: Vec<TcpStream> = BOTH
            .into_iter()
            .map(|ip| lab.client().connect_from(lab.client_at(0, ip, 4002), lab.server_at(ip, 80)).unwrap())
            .collect();
        proxy.stop();
        proxy.drop_sessions();
        for mut stream in open {
            peers::reset(stream.try_clone().unwrap());
            let _ = stream.write_all(b"the end");
        }
        let taken = proxy.taken();
        for ip in BOTH {
            for port in [4001, 4002, 4003] {
                assert!(quick(&lab, ip, port) < Duration::from_millis(900), "{ip:?} {port}");
            }
        }
        assert_eq!(proxy.taken(), taken);
    });
}

/// In TIME_WAIT on both legs: the connection from `port` is over, and the box closed both sides first.
fn leave_time_wait(lab: &Lab, port: u16) {
    lab.gateway.sysctl("net.ipv4.tcp_rfc1337", "1"); // nothing but time ends TIME_WAIT
    let proxy = Proxy::start(&lab.gateway, &Config::default());
    for ip in BOTH {
        let listener = lab.server.listen(lab.server_at(ip, 81));
        let mut near = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 81)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0]).unwrap();
        proxy.close_all();
        assert_eq!((near.read(&mut [0]).unwrap(), far.read(&mut [0]).unwrap()), (0, 0));
    }
    lab::wait_until("TIME_WAIT on both legs", Duration::from_secs(5), || {
        lab.gateway.ss("-tan state time-wait").lines().count() == 4
    });
}

fn reuse(lab: &Lab, port: u16) {
    for ip in BOTH {
        let listener = lab.server.listen(lab.server_at(ip, 81));
        let start = Instant::now();
        let near = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 81)).unwrap();
        let (far, _) = listener.accept().unwrap();
        stream::exchange(&near, &far, 100_000, Pace::FULL);
        assert!(start.elapsed() < Duration::from_millis(900), "{ip:?}: {:?}", start.elapsed());
    }
}

#[test]
fn trap_22_a_closed_gate_routes_at_once_from_ports_that_are_in_time_wait_here() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        leave_time_wait(&lab, 4001);
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        lab.gateway.enter(|| rules::gate(Gate::Closed)).unwrap();
        // As after 15 s; until then the gate takes a SYN from the same port for a repeated one.
        lab.gateway.run("for ip in 4 6; do nft flush set inet tcp_intercept taken$ip; done");
        reuse(&lab, 4001);
        assert_eq!(proxy.taken(), 0);
        lab.gateway.enter(|| rules::gate(Gate::Open)).unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
        reuse(&lab, 4001);
        assert_eq!(proxy.taken(), 2, "what was routed once is intercepted again");
    });
}

#[test]
fn trap_22_a_daemon_that_leaves_its_rules_destroys_its_leftovers() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        leave_time_wait(&lab, 4001);
        let destroyed = lab.gateway.enter(|| rules::destroy_leftovers(Config::default().rules.own_mark));
        assert_eq!(destroyed.unwrap(), 4);
        reuse(&lab, 4001);
    });
}

fn leftovers_are_destroyed(protocol: Protocol) {
    let lab = Lab::new();
    let _servers = servers(&lab);
    install(&lab, &Config::default());
    let mut proxy = Proxy::with_protocol(&lab.gateway, &Config::default(), protocol);
    for (ip, port) in BOTH.into_iter().zip([4001, 4011]) {
        quick(&lab, ip, port);
    }
    let open = lab.client().connect(lab.server_at(Ip::V4, 80)).unwrap();
    asked(open.try_clone().unwrap());
    proxy.stop();
    let removed = remove(&lab, Caller::Operator);
    assert!(removed.remarks[0].contains("a process still holds sockets"), "{removed:?}");
    assert_eq!(early_demux(&lab), "0", "the sockets of a process that runs are left alone");

    lab.gateway.run("echo 1 > /proc/sys/net/ipv4/tcp_early_demux");
    install(&lab, &Config::default());
    proxy.drop_sessions();
    drop(open);
    assert_ne!(lab.gateway.ss("-tan state all"), "", "there are leftovers");
    let removed = remove(&lab, Caller::Operator);
    assert_eq!(removed.remarks, [""; 0]);
    assert!(removed.changes.iter().any(|change| change.starts_with("destroy")), "{removed:?}");
    assert_eq!(lab.gateway.ss("-tan state all"), "");
    assert_eq!(early_demux(&lab), "1");
    for (ip, port) in BOTH.into_iter().zip([4001, 4011]) {
        assert!(quick(&lab, ip, port) < Duration::from_millis(900), "{ip:?} {port}");
    }
}

#[test]
fn trap_22_leftover_sockets_are_destroyed_before_early_demux_is_restored() {
    lab::netns(|| leftovers_are_destroyed(Protocol::TCP));
}

#[test]
fn trap_22_leftover_sockets_of_multipath_tcp_too() {
    lab::netns(|| leftovers_are_destroyed(Protocol::MPTCP));
}

#[test]
fn the_daemon_may_destroy_its_own_sockets_while_it_holds_them() {
    lab::netns(|| {
        let lab = Lab::new();
        let _servers = servers(&lab);
        install(&lab, &Config::default());
        let mut proxy = Proxy::start(&lab.gateway, &Config::default());
        let stream = lab.client().connect(lab.server_at(Ip::V4, 80)).unwrap();
        asked(stream.try_clone().unwrap());
        proxy.stop();
        let removed = remove(&lab, Caller::Daemon);
        assert_eq!((removed.remarks.len(), early_demux(&lab).as_str()), (0, "1"));
        drop(stream);
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
            // A wildcard listener on the server's port must not take the answer for its own.
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
fn a_closed_gate_routes_new_connections_and_keeps_the_old_ones() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        let proxy = Proxy::start(&lab.gateway, &Config::default());
        let gate = |gate| lab.gateway.enter(|| rules::gate(gate)).unwrap();
        for ip in BOTH {
            let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            let taken = proxy.taken();
            gate(Gate::Closed);
            let (routed, routed_far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
            assert_eq!(proxy.taken(), taken);
            gate(Gate::Open);
            let (again, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
            stream::exchange(&again, &far, 1000, Pace::FULL);
            stream::exchange(&routed, &routed_far, 1000, Pace::FULL);
            assert_eq!(proxy.taken(), taken + 1);
        }
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

/// `kind`: `nft` or `legacy`.
fn iptables_intercepts(kind: &str) {
    let lab = Lab::new();
    let _servers = servers(&lab);
    let config = interfaces(&["lan0"]);
    let commands = lab.gateway.enter(|| rules::print(&config, Format::Iptables));
    std::fs::write("/run/commands", &commands).unwrap();
    let on_box = |text: &str| {
        lab.gateway.run(&format!(
            "mkdir -p /run/iptables; for name in iptables ip6tables; do
               ln -sf \"$(command -v $name-{kind})\" /run/iptables/$name
               ln -sf \"$(command -v $name-{kind}-save)\" /run/iptables/$name-save
             done; export PATH=/run/iptables:$PATH; {text}"
        ))
    };
    let show = "ip rule; ip -6 rule; ip route show table 5; ip -6 route show table 5";
    let before = lab.gateway.run("ip rule; ip -6 rule");
    on_box("sh -e /run/commands");
    let proxy = Proxy::start(&lab.gateway, &config);
    both_are_answered(&lab, 4001);
    assert_eq!(proxy.taken(), 2, "{commands}");
    on_box(
        "sed -n '/^# To take them away/,$ s/^# \\(i.*\\)/\\1/p' /run/commands > /run/undo; sh -e /run/undo",
    );
    assert_eq!(lab.gateway.run(show), before, "{commands}");
    assert!(!on_box("iptables-save; ip6tables-save").contains("tcp_intercept"), "{commands}");
}

#[test]
fn the_printed_commands_intercept_with_iptables_nft() {
    lab::netns(|| iptables_intercepts("nft"));
}

#[test]
fn the_printed_commands_intercept_with_iptables_legacy() {
    lab::netns(|| iptables_intercepts("legacy"));
}

/// A SYN with a TCP option, sent as it is: from the client to the server, through the box.
fn send_syn(lab: &Lab, option: &[u8]) {
    let (from, to) = (lab.client_at(0, Ip::V4, 4001), lab.server_at(Ip::V4, 80));
    let mut options = option.to_vec();
    options.resize(option.len().next_multiple_of(4), 1);
    let length = 20 + options.len();
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, (length as u8 / 4) << 4, 2, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(options);
    let sum = checksum(&from, &to, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    lab.client().enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        socket.send_to(&segment, &SocketAddr::new(to.ip(), 0).into()).unwrap();
    });
}

fn checksum(from: &SocketAddr, to: &SocketAddr, segment: &[u8]) -> u16 {
    let octets = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => unreachable!("IPv4 only"),
    };
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let pseudo = [&octets(from)[..], &octets(to), &[0, 6], &length, segment].concat();
    let words =
        pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[test]
fn trap_12_syns_with_mp_join_md5_or_ao_reach_the_server_and_others_do_not() {
    lab::netns(|| {
        let lab = Lab::new();
        install(&lab, &Config::default());
        let _proxy = Proxy::start(&lab.gateway, &Config::default());
        lab.server.nft(
            "table inet watch { chain input { type filter hook input priority filter;
                tcp flags syn tcp dport 80 tcp sport 4001 counter drop; }; }",
        );
        let arrived = || {
            let text = lab.server.run("nft list table inet watch");
            let packets = text.split("packets ").nth(1).unwrap();
            packets.split(' ').next().unwrap().parse::<u32>().unwrap()
        };
        let mp_join = [30, 12, 0x10, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let md5: Vec<u8> = [&[19, 18][..], &[0; 16]].concat();
        let ao: Vec<u8> = [&[29, 16, 1, 1][..], &[0; 12]].concat();
        for (number, option) in (1..).zip([&mp_join[..], &md5, &ao]) {
            send_syn(&lab, option);
            lab::wait_until("the SYN at the server", Duration::from_secs(2), || arrived() == number);
        }
    });
}
