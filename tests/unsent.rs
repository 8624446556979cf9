//! The amount of unsent data that the box buffers for a peer that does not read.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use lab::{Daemon, Ip, Lab, netns, peers};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");

#[test]
fn no_more_than_asked_for_waits_unsent_for_a_peer_that_does_not_read() {
    netns(|| {
        let lab = Lab::new();
        // The state after hours of high throughput: without the limit, a send buffer would take all of this.
        lab.gateway.sysctl("net.ipv4.tcp_wmem", "4096 8388608 8388608");
        for (leg, ip) in [("client", Ip::V4), ("server", Ip::V6)] {
            let key = format!("{leg}.notsent-lowat");
            for (settings, expected) in [
                (vec![], 1 << 18..(1 << 20) + 65_536),
                (vec![format!("{key}=65536")], 1 << 14..2 * 65_536),
                (vec![format!("{key}=0")], 2 << 20..8 << 20),
            ] {
                let settings: Vec<_> = settings.iter().map(String::as_str).collect();
                let daemon = Daemon::start(&lab.gateway, BIN, &settings);
                let to = lab.server_at(ip, 8000);
                let (client, server, from) = peers::pair(lab.client(), &lab.server, to);
                let (writer, reader_at) = if leg == "client" { (&server, from) } else { (&client, to) };
                writer.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
                let all = vec![0; 128 << 20];
                assert!(taken(writer, &all) < all.len(), "it must stop somewhere");
                let shown = lab.gateway.ss(&format!("-tni state established dst '{reader_at}'"));
                let unsent: usize = number(&shown, "notsent:").unwrap_or_else(|| panic!("{shown}"));
                assert!(expected.contains(&unsent), "{settings:?}: {shown}");
                drop((client, server));
                daemon.stop();
            }
        }
    });
}

/// Writes until no byte is accepted for a second, and returns the number of accepted bytes.
fn taken(mut stream: &TcpStream, bytes: &[u8]) -> usize {
    let mut taken = 0;
    while let Ok(n @ 1..) = stream.write(&bytes[taken..]) {
        taken += n;
    }
    taken
}

/// Returns the number after `name` in the output of `ss`.
fn number(shown: &str, name: &str) -> Option<usize> {
    shown.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok())
}
