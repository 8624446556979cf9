//! The behaviour of one end of a session, as the other end sees it through the box.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use lab::peers::{self, expect_reset};
use lab::{BOTH, Ip, Lab, netns, wait_until};

use crate::support::{Daemon, SOON, closed, install_rules};

/// Opens a connection through the box and returns both ends, the client's first.
fn pair(lab: &Lab, ip: Ip) -> (TcpStream, TcpStream) {
    let (near, far, seen) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
    assert_ne!(seen.ip(), near.local_addr().unwrap().ip(), "the box connects");
    (near, far)
}

fn read_to_eof(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Runs `check` over both protocols, once with the client and once with the server as the acting end.
fn each_way(check: impl Fn(&Lab, Ip, &str)) {
    let lab = Lab::new();
    install_rules(&lab);
    let _daemon = Daemon::start(&lab, "-b [::]:[5000]");
    for (ip, by) in BOTH.into_iter().flat_map(|ip| ["client", "server"].map(|by| (ip, by))) {
        check(&lab, ip, by);
    }
}

#[test]
fn an_end_is_passed_on_and_the_other_direction_goes_on() {
    netns(|| {
        each_way(|lab, ip, by| {
            let (near, far) = pair(lab, ip);
            let client = near.local_addr().unwrap();
            let (mut first, mut second) = if by == "client" { (near, far) } else { (far, near) };
            first.write_all(b"question").unwrap();
            first.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_eof(&second), "question");
            for part in ["ans", "wer"] {
                second.write_all(part.as_bytes()).unwrap();
                first.read_exact(&mut [0; 3]).unwrap();
            }
            drop(second);
            assert_eq!(read_to_eof(&first), "");
            assert_eq!(closed(client, "by phase cause"), format!("{by} relay eof"));
        });
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    netns(|| {
        each_way(|lab, ip, by| {
            let (near, far) = pair(lab, ip);
            let client = near.local_addr().unwrap();
            let (from, to) = if by == "client" { (near, far) } else { (far, near) };
            peers::reset(from);
            expect_reset(&to);
            assert_eq!(closed(client, "by cause"), format!("{by} reset"));
        });
    });
}

#[test]
fn a_refused_server_is_a_reset_for_the_client() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let _daemon = Daemon::start(&lab, "-b [::]:[5000]");
        for ip in BOTH {
            let from = lab.client_at(0, ip, 4001);
            // The reset may arrive before connect() returns.
            match lab.client().connect_from(from, lab.server_at(ip, 7)) {
                Ok(client) => expect_reset(&client),
                Err(err) => assert_eq!(err.kind(), ErrorKind::ConnectionReset),
            }
            assert_eq!(closed(from, "by phase cause"), "server connect refused");
            wait_until("nothing is left", SOON, || {
                lab.gateway.ss("-tan '( sport = :7 or dport = :7 )'").is_empty()
            });
        }
    });
}
