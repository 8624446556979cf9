//! Many connections, spoofed ones, stuck ones, and a kernel that has nothing left.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use lab::peers::{Server, banner, echo, reset};
use lab::stream::Random;
use lab::{BOTH, Daemon, Ip, Lab, becomes, netns, wait_until};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use socket2::{Domain, Protocol, Socket, Type};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);

/// What the idle pipes of two workers may hold of descriptors.
const PIPES: usize = 16;

fn speaks(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

fn descriptors(daemon: &mut Daemon) -> usize {
    let pid = daemon.process().pid();
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The limit is not a count: it is the first number that cannot be had.
fn forbid_new_descriptors(daemon: &mut Daemon) {
    let pid = daemon.process().pid();
    let first_free = (0..).find(|n| !Path::new(&format!("/proc/{pid}/fd/{n}")).is_symlink());
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: first_free, maximum: Some(20_000) }).unwrap();
}

#[test]
fn without_descriptors_new_connections_are_routed_and_taken_again_when_there_are_some() {
    netns(|| {
        let lab = Lab::new();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let connect = || lab.client().connect(server.address).unwrap();
        let mut held: Vec<_> = (0..20).map(|_| connect()).collect();
        held.iter().for_each(|stream| speaks(stream).unwrap());
        forbid_new_descriptors(&mut daemon);
        // This one has been intercepted, and there is nothing to accept it with: it is reset in the end, not left hanging.
        let unlucky = connect();
        assert!(speaks(&unlucky).is_err());
        for _ in 0..20 {
            speaks(&connect()).expect("routed");
        }
        held.iter().for_each(|stream| speaks(stream).unwrap());
        held.truncate(10);
        let intercepted = || {
            drop(connect());
            daemon.log().contains("intercepted again")
        };
        wait_until("connections are taken again", SOON, intercepted);
        let log = daemon.stop().1;
        assert!(log.contains("shed=1"), "{log}");
    });
}

#[test]
fn a_flood_of_spoofed_syns_leaves_the_others_alone() {
    netns(|| {
        let lab = Lab::new();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let established = lab.client().connect(server.address).unwrap();
        let before = descriptors(&mut daemon);
        let SocketAddr::V4(to) = server.address else { unreachable!() };
        std::thread::scope(|scope| {
            scope.spawn(|| lab.client().enter(|| flood(*to.ip(), 30_000)));
            for _ in 0..100 {
                speaks(&lab.client().connect(server.address).unwrap()).unwrap();
            }
        });
        speaks(&established).unwrap();
        speaks(&lab.client().connect(server.address).unwrap()).unwrap();
        wait_until("all descriptors are back", SOON, || descriptors(&mut daemon) <= before + PIPES);
    });
}

/// Sends SYNs to port 80 from 10.1.0.64 to .255 and random ports: nobody is there to answer what comes back.
fn flood(to: Ipv4Addr, count: usize) {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    raw.set_header_included_v4(true).unwrap();
    let mut random = Random::new(4);
    for _ in 0..count {
        let from = Ipv4Addr::new(10, 1, 0, 64 + random.below(192) as u8);
        let port = 1024 + random.below(60_000) as u16;
        let packet = syn(from, port, to, random.next() as u32);
        // ENOBUFS: faster than the cable, which is what a flood is.
        let _ = raw.send_to(&packet, &SocketAddr::new(to.into(), 80).into());
    }
}

/// An IPv4 packet with a SYN (RFC 9293, section 3.1); the kernel fills in the IP checksum.
fn syn(from: Ipv4Addr, port: u16, to: Ipv4Addr, sequence: u32) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    ip.extend(from.octets());
    ip.extend(to.octets());
    let mut tcp = Vec::from(port.to_be_bytes());
    tcp.extend(80_u16.to_be_bytes());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = [from.octets(), to.octets(), [0, 6, 0, 20]].concat();
    pseudo.extend(&tcp);
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    ip.extend(tcp);
    ip
}

#[test]
fn a_thousand_peers_that_do_not_read_cost_little_and_harm_nobody() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let stuck = lab.server.listen(lab.server_at(Ip::V4, 81));
        let echoes = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        let before = descriptors(&mut daemon);
        let open = |listener: &TcpListener| {
            let near = lab.client().connect(listener.local_addr().unwrap()).unwrap();
            near.set_nonblocking(true).unwrap();
            (near, listener.accept().unwrap().0)
        };
        let mut pairs: Vec<_> = (0..1000).map(|_| open(&stuck)).collect();
        let memory = rss(&mut daemon);
        let chunk = vec![7; 1 << 20];
        for (near, _) in &mut pairs {
            let _ = near.write(&chunk);
        }
        for _ in 0..1000 {
            speaks(&lab.client().connect(echoes.address).unwrap()).unwrap();
        }
        let calm = becomes(SOON, || descriptors(&mut daemon) <= before + 2000 + PIPES);
        assert!(calm, "2,000 sockets, and {} more descriptors", descriptors(&mut daemon) - before - 2000);
        let grown = rss(&mut daemon).saturating_sub(memory);
        assert!(grown < 4096, "{grown} KiB more memory for a thousand stuck sessions");
    });
}

/// The daemon's resident memory in KiB.
fn rss(daemon: &mut Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.process().pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn sessions_that_are_reset_in_every_state_leave_nothing_behind() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let before = descriptors(&mut daemon);
        for ip in BOTH {
            let echoes = Server::start(&lab.server, lab.server_at(ip, 80), echo);
            let speaker = Server::start(&lab.server, lab.server_at(ip, 81), banner);
            let resetter = Server::start(&lab.server, lab.server_at(ip, 82), |stream| {
                reset(stream);
                Ok(())
            });
            let refused = lab.server_at(ip, 83);
            for n in 0..400 {
                let to = [echoes.address, speaker.address, resetter.address, refused][n % 4];
                let Ok(mut stream) = lab.client().connect(to) else { continue };
                match n / 4 % 4 {
                    0 => {}
                    1 => drop(stream.write_all(b"some")),
                    2 => drop(stream.shutdown(std::net::Shutdown::Write)),
                    _ if to == echoes.address => speaks(&stream).unwrap(),
                    _ => {}
                }
                reset(stream);
            }
        }
        wait_until("all descriptors are back", SOON, || descriptors(&mut daemon) <= before + PIPES);
        assert_eq!(lab.gateway.ss("-tn state connected exclude time-wait"), "");
        let records = daemon.close_records().len();
        let log = daemon.stop().1;
        assert!(records > 100 && log.contains(&format!("accepted={records} ")), "{records} records\n{log}");
    });
}

#[test]
fn ports_used_again_within_a_second_lose_no_connection() {
    netns(|| {
        let lab = Lab::new();
        for n in 16..32 {
            lab.client().ip(&format!("addr add 10.1.0.{n}/24 dev eth0"));
        }
        // A client that may use its own ports again as soon as the kernel finds it safe.
        lab.client().sysctl("net.ipv4.tcp_tw_reuse", "1");
        lab.gateway.sysctl("net.ipv4.tcp_tw_reuse", "1");
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), |mut stream| {
            let mut request = [0; 64];
            let len = stream.read(&mut request)?;
            stream.write_all(&request[..len])
        });
        std::thread::scope(|scope| {
            for n in 16..32 {
                let (lab, to) = (&lab, server.address);
                scope.spawn(move || lab.client().enter(|| ask_often(Ipv4Addr::new(10, 1, 0, n), to, 1875)));
            }
        });
        let log = daemon.stop().1;
        assert!(log.contains("accepted=30000") && log.contains("dial-failed=0"), "{log}");
    });
}

/// Connects, asks and closes, on 150 ports by turns.
fn ask_often(from: Ipv4Addr, to: SocketAddr, times: u16) {
    for n in 0..times {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::new(from.into(), 20_000 + n % 150).into()).unwrap();
        socket.connect(&to.into()).unwrap_or_else(|err| panic!("connection {n} from {from}: {err}"));
        let stream = TcpStream::from(socket);
        speaks(&stream).unwrap_or_else(|err| panic!("connection {n} from {from}: {err}"));
    }
}
