//! SYNs that are never intercepted and pass unchanged.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lab::{Ip, Lab};
use socket2::{Domain, Protocol, Socket, Type};
use tcp_intercept::config::Config;

use crate::line::install;
use crate::support::Proxy;

/// Sends a SYN with a TCP option from the client to the server through the box, without the client's TCP stack.
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
