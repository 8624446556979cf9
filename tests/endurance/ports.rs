//! Ports that clients reuse as soon as they may: trap 4.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use lab::peers::Server;
use lab::{Daemon, Ip, Lab, netns};
use socket2::{Domain, Socket, Type};

use crate::bench::{BIN, speaks};

#[test]
fn ports_used_again_within_a_second_lose_no_connection() {
    netns(|| {
        let lab = Lab::new();
        for n in 16..32 {
            lab.client().ip(&format!("addr add 10.1.0.{n}/24 dev eth0"));
        }
        // This client reuses its own ports as soon as the kernel considers it safe.
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

/// Connects, asks and closes, on 150 ports in rotation.
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
