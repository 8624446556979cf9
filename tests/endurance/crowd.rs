//! Many connections at once: spoofed ones, and ones that do not read.
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use lab::peers::{Server, echo};
use lab::stream::Random;
use lab::{Daemon, Ip, Lab, becomes, netns, wait_until};
use socket2::{Domain, Protocol, Socket, Type};

use crate::bench::{BIN, PIPES, SOON, descriptors, rss, speaks};

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

/// Sends SYNs to port 80 from 10.1.0.64 to .255 and random ports. No host answers the SYN-ACKs.
fn flood(to: Ipv4Addr, count: usize) {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
    raw.set_header_included_v4(true).unwrap();
    let mut random = Random::new(4);
    for _ in 0..count {
        let from = Ipv4Addr::new(10, 1, 0, 64 + random.below(192) as u8);
        let port = 1024 + random.below(60_000) as u16;
        let packet = syn(from, port, to, random.next() as u32);
        // ENOBUFS means faster than the cable, which is expected in a flood.
        let _ = raw.send_to(&packet, &SocketAddr::new(to.into(), 80).into());
    }
}

/// Returns an IPv4 packet with a SYN (RFC 9293, section 3.1). The kernel fills in the IP checksum.
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
