//! The traps that the packets of a transparent proxy can fall into. Each test is named after one of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]
mod intercepting;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use intercepting::{BIN, WHERE, intercepting, legs_of_a_new_connection};
use lab::peers::{self, Server};
use lab::servers::Sshd;
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Host, Ip, Lab, Shape, netns, wait_until};
use rustix::process::Signal;
use socket2::{Domain, Protocol, Socket, Type};

const SOON: Duration = Duration::from_secs(20);

/// Reads the server's answer, which is the peer address that it sees.
fn asked(stream: &mut TcpStream) -> SocketAddr {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.parse().unwrap()
}

fn any(ip: Ip, port: u16) -> SocketAddr {
    SocketAddr::new(if ip == Ip::V4 { [0; 4].into() } else { [0; 16].into() }, port)
}

#[test]
fn trap_2_services_on_all_of_the_boxs_addresses_and_a_client_on_our_port_are_in_nobodys_way() {
    netns(|| {
        let lab = Lab::new();
        intercepting(&lab, &[], |ip, _| {
            let _web = Server::start(&lab.gateway, any(ip, 7), peers::banner);
            assert_eq!(legs_of_a_new_connection(&lab, ip), 2);
            let server = Server::start(&lab.server, lab.server_at(ip, 5000), peers::echo);
            let client = lab.client().connect_from(lab.client_at(0, ip, 5000), server.address).unwrap();
            assert!(speaks(&client).is_ok());
            assert_eq!(lab.legs(&client), 2);
            let own = Server::start(&lab.gateway, lab.gateway_at(ip, 5000), peers::whoami);
            assert_eq!(
                asked(&mut lab.client().connect(own.address).unwrap()).ip(),
                lab.client_at(0, ip, 0).ip()
            );
        });
    });
}

#[test]
fn trap_3_a_program_on_the_box_reaches_the_server_from_a_port_that_a_client_uses() {
    netns(|| {
        let lab = Lab::new();
        intercepting(&lab, &[], |ip, _| {
            let server = Server::start(&lab.server, lab.server_at(ip, 7), peers::echo);
            let client = lab.client().connect_from(lab.client_at(0, ip, 4001), server.address).unwrap();
            assert!(speaks(&client).is_ok());
            assert_eq!(lab.legs(&client), 2);
            let own = lab.gateway.connect_from(any(ip, 4001), server.address).unwrap();
            assert!(speaks(&own).is_ok());
            assert_eq!(lab.legs(&own), 1, "the program's socket and no other");
            peers::reset(client);
            peers::reset(own);
        });
    });
}

#[test]
fn trap_5_a_client_that_uses_its_port_again_at_once_is_intercepted_again() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.ipv4.tcp_rfc1337", "1"); // TIME_WAIT is not ended by a reset
        intercepting(&lab, &[], |ip, _| {
            let listener = lab.server.listen(lab.server_at(ip, 7));
            let from = lab.client_at(0, ip, 4001);
            for _ in 0..5 {
                let mut near = lab.client().connect_from(from, lab.server_at(ip, 7)).unwrap();
                let (far, peer) = listener.accept().unwrap();
                assert_eq!((lab.legs(&near), peer.ip()), (2, from.ip()));
                drop(far);
                assert_eq!(near.read(&mut [0]).unwrap(), 0, "the server ends first");
                drop(near);
                wait_until("TIME_WAIT on the client leg", SOON, || {
                    !lab.gateway.ss(&format!("-tn state time-wait dst {from}")).is_empty()
                });
            }
        });
    });
}

#[test]
fn trap_7_behind_a_box_that_masquerades_conntrack_knows_one_sound_connection_each() {
    netns(|| {
        let lab = Lab::new();
        lab.masquerade();
        let conntrack = |ip: Ip| {
            let family = if ip == Ip::V4 { "ipv4" } else { "ipv6" };
            lab.gateway.run(&format!("conntrack -L -p tcp -f {family} 2>/dev/null"))
        };
        let (gate, port) = (lab.gateway.ip("address show dev wan0"), 4001);
        let from_client = |ip| {
            let listener = lab.server.listen(lab.server_at(ip, 7));
            let near = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 7)).unwrap();
            let (far, peer) = listener.accept().unwrap();
            assert!(gate.contains(&peer.ip().to_string()), "masqueraded: {peer}");
            (near, far)
        };
        intercepting(&lab, &[], |ip, _| {
            let (near, far) = from_client(ip);
            assert_eq!(lab.legs(&near), 2);
            stream::exchange(&near, &far, 8 << 20, Pace::UNEVEN);
            let known = conntrack(ip);
            let ours = |line: &&str| line.contains(&format!("sport={port} dport=7 "));
            assert_eq!(known.lines().filter(ours).count(), 1, "{known}");
            assert!(!known.contains("UNREPLIED") && known.contains("ASSURED"), "{known}");
            lab.client().run("ss -KHtan state time-wait >&2"); // the server's end came second
        });
        for ip in BOTH {
            let (near, far) = from_client(ip);
            assert_eq!(lab.legs(&near), 0, "routed from a port just used, and masqueraded");
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        }
        let counters = lab.gateway.run("nft list table inet operator; conntrack -S");
        assert!(counters.contains("counter packets 0 bytes 0 drop"), "{counters}");
        assert!(counters.split_ascii_whitespace().all(|word| !is_some_invalid(word)), "{counters}");
    });
}

fn is_some_invalid(word: &str) -> bool {
    word.strip_prefix("invalid=").is_some_and(|count| count != "0")
}

/// Checks an MTU of 1280 in the path: a megabyte passes each way, intercepted once over TCP and once over Multipath
/// TCP.
fn narrow(shape: Shape) {
    let lab = Lab::with(shape);
    intercepting(&lab, &[], |ip, _| assert_eq!(legs_of_a_new_connection(&lab, ip), 2));
    let mptcp = ["client.mptcp=true", "server.mptcp=true"];
    intercepting(&lab, &mptcp, |ip, daemon| {
        let (near, far, _) = mptcp_pair(&lab, ip);
        assert_eq!(lab.legs(&near), 2);
        stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        drop((near, far));
        let records = daemon.wait_for_records(if ip == Ip::V4 { 1 } else { 2 });
        assert!(records.iter().all(|record| record["client_mptcp"] == "yes"), "{records:?}");
        assert!(records.iter().all(|record| record["server_mptcp"] == "yes"), "{records:?}");
    });
}

/// Opens a Multipath TCP connection from the client to the server and returns both ends, and the listener, without
/// which joins are refused.
fn mptcp_pair(lab: &Lab, ip: Ip) -> (TcpStream, TcpStream, TcpListener) {
    let address = lab.server_at(ip, 7);
    let socket = |host: &Host| {
        let socket =
            host.enter(|| Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::MPTCP)));
        socket.unwrap()
    };
    let (listener, near) = (socket(&lab.server), socket(lab.client()));
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(1).unwrap();
    near.connect_timeout(&address.into(), SOON).unwrap();
    let listener = TcpListener::from(listener);
    let (far, _) = listener.accept().unwrap();
    (near.into(), far, listener)
}

#[test]
fn trap_8_client_legs_learn_of_a_narrow_cable() {
    netns(|| narrow(Shape { near_mtu: Some(1280), ..Shape::default() }));
}

#[test]
fn trap_8_server_legs_learn_of_a_narrow_cable() {
    netns(|| narrow(Shape { far_mtu: Some(1280), ..Shape::default() }));
}

#[test]
fn trap_9_a_box_that_checks_the_reverse_path_strictly_intercepts() {
    netns(|| {
        let lab = Lab::new();
        for device in ["all", "default", "lo", "lan0", "wan0"] {
            lab.gateway.sysctl(&format!("net.ipv4.conf.{device}.rp_filter"), "1");
        }
        intercepting(&lab, &[], |ip, _| assert_eq!(legs_of_a_new_connection(&lab, ip), 2));
    });
}

#[test]
fn trap_10_the_destination_is_the_one_that_the_client_wanted_where_conntrack_knows_others() {
    netns(|| {
        let lab = Lab::new();
        lab.masquerade();
        intercepting(&lab, &[], |ip, daemon| {
            let before = daemon.close_records().len();
            for port in [7, 8] {
                drop(peers::pair(lab.client(), &lab.server, lab.server_at(ip, port)));
            }
            let records = daemon.wait_for_records(before + 2);
            for port in [7, 8] {
                let server = lab.server_at(ip, port).to_string();
                assert!(records.iter().any(|record| record["server"] == server.as_str()), "{records:?}");
            }
        });
    });
}

#[test]
fn trap_11_accepted_sockets_do_not_inherit_the_divert_mark() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.ipv4.tcp_fwmark_accept", "1");
        intercepting(&lab, &[], |ip, _| assert_eq!(legs_of_a_new_connection(&lab, ip), 2));
    });
}

#[test]
fn trap_12_ssh_to_the_box_itself_is_not_intercepted() {
    netns(|| {
        let lab = Lab::new();
        let sshd = Sshd::start(&lab.gateway);
        intercepting(&lab, &[], |ip, daemon| {
            for port in [0, 5000] {
                let address = lab.gateway_at(ip, port).ip();
                let output = sshd.client(lab.client(), address).arg("echo $SSH_CONNECTION").output().unwrap();
                let seen = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(seen.starts_with(&format!("{} ", lab.client_at(0, ip, 0).ip())), "{output:?}");
            }
            assert_eq!(daemon.close_records().len(), 0);
        });
    });
}

#[test]
fn trap_12_connections_older_than_the_start_are_routed_to_their_end() {
    netns(|| {
        let lab = Lab::new();
        let pairs = BOTH.map(|ip| peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7)));
        let speak = || {
            for (near, far, _) in &pairs {
                let (mut near, mut far, mut byte) = (near, far, [0]);
                for _ in 0..3 {
                    near.write_all(&[1]).unwrap();
                    far.read_exact(&mut byte).unwrap();
                    far.write_all(&[2]).unwrap();
                    near.read_exact(&mut byte).unwrap();
                }
                assert_eq!(lab.legs(near), 0);
            }
        };
        intercepting(&lab, &[], |_, _| speak());
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        pairs.iter().for_each(|(near, far, _)| stream::exchange(near, far, 1 << 20, Pace::FULL));
    });
}

#[test]
fn trap_12_connections_with_md5_signatures_are_routed() {
    netns(|| {
        let lab = Lab::new();
        fs_write("/run/md5.py", MD5);
        intercepting(&lab, &[], |ip, daemon| {
            let (client, server) =
                (lab.client_at(0, ip, 0).ip().to_string(), lab.server_at(ip, 0).ip().to_string());
            let mut listener = lab.server.spawn("python3", &["/run/md5.py", "listen", &server, &client]);
            listener.wait_for("listening", SOON);
            let said = lab.client().run(&format!("python3 /run/md5.py connect {client} {server}"));
            assert_eq!(said.trim(), "signed");
            assert_eq!(daemon.close_records().len(), 0);
        });
    });
}

fn fs_write(path: &str, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// TCP_MD5SIG is 14. Its value is `struct tcp_md5sig` of include/uapi/linux/tcp.h.
const MD5: &str = r#"
import socket, struct, sys
role, own, peer = sys.argv[1:]
family = socket.AF_INET6 if ":" in own else socket.AF_INET
address = socket.inet_pton(family, peer)
address = struct.pack("=HH4s", family, 0, address) if len(address) == 4 else struct.pack("=HHI16sI", family, 0, 0, address, 0)
s = socket.socket(family, socket.SOCK_STREAM)
s.settimeout(20)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.IPPROTO_TCP, 14, struct.pack("=128sBBHi80s", address, 0, 0, 3, 0, b"key"))
if role == "listen":
    s.bind((own, 179)); s.listen(); print("listening", flush=True)
    s.accept()[0].sendall(b"signed")
else:
    s.connect((peer, 179)); print(s.recv(6).decode())
"#;

#[test]
fn trap_12_a_join_reaches_the_connection_that_was_routed_before_the_start() {
    netns(|| {
        let lab = Lab::new();
        lab.client().ip("mptcp limits set subflows 8");
        lab.server.ip("mptcp limits set subflows 8");
        for (more, n) in [("10.1.0.3/24", 1), ("fd01::3/64", 2)] {
            lab.client().ip(&format!("address add {more} dev eth0"));
            let ip = BOTH[n - 1];
            let (mut near, mut far, _listener) = mptcp_pair(&lab, ip);
            near.write_all(b"joins are allowed once data was acknowledged").unwrap();
            far.read_exact(&mut [0; 44]).unwrap();
            let _daemon = Daemon::start(&lab.gateway, BIN, WHERE[n - 1]);
            let address = more.split('/').next().unwrap();
            lab.client().ip(&format!("mptcp endpoint add {address} dev eth0 subflow"));
            wait_until("the join", SOON, || lab.server.counter("MPTcpExtMPJoinAckRx") == n as u64);
            assert_eq!(lab.gateway.ss("-tn state established"), "", "both subflows are routed");
            stream::exchange(&near, &far, 4 << 20, Pace::FULL);
        }
    });
}

/// Sends "hello" to an echo server and reads it back.
fn speaks(mut stream: &TcpStream) -> io::Result<()> {
    let mut answer = [0; 5];
    stream.write_all(b"hello")?;
    stream.read_exact(&mut answer)?;
    (&answer == b"hello").then_some(()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Opens `count` concurrent connections to an echo server, uses each once, and returns the errors.
fn crowd(lab: &Lab, server: &Server, count: usize) -> Vec<io::Error> {
    let one = || speaks(&TcpStream::connect_timeout(&server.address, Duration::from_secs(60))?);
    lab.client().enter(|| {
        thread::scope(|scope| {
            let all: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
            all.into_iter().filter_map(|one| one.join().unwrap().err()).collect()
        })
    })
}

#[test]
fn trap_23_connections_that_were_answered_with_a_syn_cookie_are_intercepted() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.ipv4.tcp_syncookies", "2");
        intercepting(&lab, &[], |ip, daemon| {
            let _web = lab.gateway.listen(any(ip, 7)); // must not take the answers
            let server = Server::start(&lab.server, lab.server_at(ip, 7), peers::echo);
            let (before, cookies) =
                (daemon.close_records().len(), lab.gateway.counter("TcpExtSyncookiesRecv"));
            assert!(crowd(&lab, &server, 200).is_empty());
            daemon.wait_for_records(before + 200);
            assert!(lab.gateway.counter("TcpExtSyncookiesRecv") >= cookies + 200);
        });
    });
}

#[test]
fn trap_23_connections_beyond_the_backlog_come_in_when_there_is_room() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.core.somaxconn", "8");
        intercepting(&lab, &[], |ip, daemon| {
            let server = Server::start(&lab.server, lab.server_at(ip, 7), peers::echo);
            let overflows = lab.gateway.counter("TcpExtListenOverflows");
            daemon.pause_worker();
            let errors = thread::scope(|scope| {
                let crowd = scope.spawn(|| crowd(&lab, &server, 100));
                wait_until("the backlog overflows", SOON, || {
                    lab.gateway.counter("TcpExtListenOverflows") > overflows
                });
                daemon.signal_worker(Signal::CONT);
                crowd.join().unwrap()
            });
            assert!(errors.is_empty(), "{errors:?}");
        });
    });
}
