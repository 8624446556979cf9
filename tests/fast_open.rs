//! TCP Fast Open between two boxes: what their SYNs carry, and what both ends receive. `fast_open_fails.rs` tests its
//! failures.
//!
//! Judged by counters of nftables and of the kernel on the far box, by checksums, and by the close records.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use boxes::{Boxes, FAR, FAR_NO_COOKIE, NEAR, NEAR_NO_COOKIE, PORT, SOON, clear, obstruct, request, syns};
use lab::peers::{self, Server};
use lab::stream::{self, Pace};
use lab::{BOTH, Pair, netns, wait_until, words};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

mod boxes;

#[test]
fn with_a_cookie_the_first_bytes_travel_in_the_syn() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR], &[FAR]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            let (passive, active) = ("TcpExtTCPFastOpenPassive", "TcpExtTCPFastOpenActive");
            let before = (pair.far.counter(passive), pair.near.counter(active));
            // The first connection requests a cookie; its SYN is otherwise ordinary.
            for (nth, (seen, openings)) in
                [([1, 1, 0], "asked no"), ([1, 1, 1], "data data"), ([1, 1, 1], "data data")]
                    .into_iter()
                    .enumerate()
            {
                let sent = request(300 + nth);
                let (from, answer) = boxes.ask(&pair.client, server.address, &sent);
                assert!(answer == sent);
                assert_eq!(boxes.openings(from, server.address), openings);
                assert_eq!(syns(&pair.far), seen, "all, with the option, with data");
            }
            let after = (pair.far.counter(passive), pair.near.counter(active));
            assert_eq!(after, (before.0 + 2, before.1 + 2));
        }
        let log = boxes.near.stop().1;
        assert!(log.contains("fast-open-data=4 fast-open-failed=0 fast-open-avoided=0"), "{log}");
    });
}

#[test]
fn without_cookies_the_first_bytes_travel_in_the_first_syn() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[FAR_NO_COOKIE]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            let sent = request(1000);
            let (from, answer) = boxes.ask(&pair.client, server.address, &sent);
            assert!(answer == sent);
            assert_eq!(boxes.openings(from, server.address), "data data");
            assert_eq!(syns(&pair.far), [1, 0, 1], "all, with the option, with data");
        }
    });
}

/// Drops everything except SYNs towards the far box. Returns the client's address if the server's answer still arrives
/// within `limit`: then the far box dialled at the SYN, and not a round trip later.
fn answered_at_the_syn(
    pair: &Pair,
    boxes: &Boxes,
    to: SocketAddr,
    request: &[u8],
    limit: Duration,
) -> Option<SocketAddr> {
    obstruct(&pair.far, "tcp flags & (syn|ack) != syn drop");
    let mut client = boxes.spoken(|| pair.client.connect(to), |mut stream| stream.write_all(request));
    client.set_read_timeout(Some(limit)).unwrap();
    let answered = client.read(&mut [0]).is_ok_and(|read| read == 1);
    clear(&pair.far, "obstruction");
    let from = client.local_addr().unwrap();
    peers::reset(client);
    answered.then_some(from)
}

#[test]
fn the_server_answers_before_the_handshake_ends() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR], &[FAR]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            let answered =
                |limit| answered_at_the_syn(&pair, &boxes, server.address, b"hello", limit).is_some();
            // Without a cookie no answer arrives, which shows that only SYNs pass.
            assert!(!answered(Duration::from_millis(500)));
            boxes.ask(&pair.client, server.address, b"hello");
            assert!(answered(SOON));
        }
    });
}

#[test]
fn a_first_flight_goes_out_whole_before_the_handshake_ends() {
    const REPLY: usize = 60_000;
    netns(|| {
        let pair = Pair::plain(1);
        // In pieces, directly one after another: pacing delays all but the first.
        let pieces = "client.notsent-lowat=16384";
        let far = [FAR, "client.congestion-control=bbr", "wan.devices=[\"wan0\"]", pieces];
        let boxes = Boxes::start(&pair, &[NEAR], &far);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), |mut stream| {
                stream.read_exact(&mut [0; 5])?;
                stream.write_all(&[7; REPLY])?;
                std::io::copy(&mut stream, &mut std::io::sink()).map(drop)
            });
            boxes.ask(&pair.client, pair.server_at(ip, PORT), b"hello");
            // Only SYNs reach the far box from here on, so its client leg can send nothing but a first flight.
            obstruct(&pair.far, "tcp flags & (syn|ack) != syn drop");
            let mut client =
                boxes.spoken(|| pair.client.connect(server.address), |mut stream| stream.write_all(b"hello"));
            client.set_read_timeout(Some(SOON)).unwrap();
            let mut reply = vec![0; REPLY];
            client.read_exact(&mut reply).unwrap();
            assert!(reply.iter().all(|byte| *byte == 7));
            clear(&pair.far, "obstruction");
            peers::reset(client);
        }
    });
}

#[test]
fn trap_26_a_server_that_speaks_first_gains_the_round_trip_too() {
    netns(|| {
        let pair = Pair::plain(1);
        for (near, far, openings) in
            [(NEAR_NO_COOKIE, FAR_NO_COOKIE, "asked empty"), (NEAR, FAR, "empty empty")]
        {
            let boxes = Boxes::start(&pair, &[near], &[far]);
            for ip in BOTH {
                let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::banner);
                if near == NEAR {
                    drop(pair.client.connect(server.address).unwrap());
                    wait_until("a cookie", SOON, || pair.near.run("ip tcp_metrics").contains("fo_cookie"));
                }
                syns(&pair.far);
                for _ in 0..3 {
                    let from = answered_at_the_syn(&pair, &boxes, server.address, b"", SOON).unwrap();
                    assert_eq!(boxes.openings(from, server.address), openings);
                    assert_eq!(syns(&pair.far), [1, 1, 0], "all, with the option, with data");
                }
            }
            clear(&pair.far, "watch");
        }
    });
}

#[test]
fn more_than_a_syn_carries_arrives_whole_and_in_order() {
    netns(|| {
        let pair = Pair::plain(1);
        for (near, far) in [(NEAR, FAR), (NEAR_NO_COOKIE, FAR_NO_COOKIE)] {
            let boxes = Boxes::start(&pair, &[near], &[far]);
            for ip in BOTH {
                let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
                boxes.ask(&pair.client, server.address, b"for the cookie");
                for bytes in [1, 1399, 1400, 1401, 1460, 4096, 100_000, 1_000_000] {
                    let sent = request(bytes);
                    let (from, answer) = boxes.ask(&pair.client, server.address, &sent);
                    assert!(answer == sent, "{bytes}: {} came back", answer.len());
                    assert_eq!(boxes.openings(from, server.address), "data data");
                    let carried =
                        words(&boxes.near.record_of(from, server.address), "to_server to_client cause");
                    assert_eq!(carried, format!("{bytes} {bytes} eof"));
                }
            }
            clear(&pair.far, "watch");
        }
    });
}

#[test]
fn a_client_whose_end_comes_first_is_passed_on_as_ever() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[FAR_NO_COOKIE]);
        for ip in BOTH {
            let to = pair.server_at(ip, PORT);
            let listener = pair.server.listen(to);
            let client = boxes.spoken(|| pair.client.connect(to), |stream| stream.shutdown(Shutdown::Write));
            let (server, from) = listener.accept().unwrap();
            assert_eq!((&server).read(&mut [0]).unwrap(), 0);
            let sent = stream::send(&server, 1, 10_000, Pace::FULL).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream::receive(&client, Pace::FULL).unwrap(), sent);
            assert_eq!(words(&boxes.near.record_of(from, to), "by cause to_server"), "client eof 0");
        }
    });
}

#[test]
fn a_server_whose_end_comes_before_the_handshake_does_is_passed_on_as_ever() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[FAR_NO_COOKIE]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::whoami);
            obstruct(&pair.far, "tcp flags & (syn|ack) != syn drop");
            let mut client =
                boxes.spoken(|| pair.client.connect(server.address), |mut s| s.write_all(b"hello"));
            let from = client.local_addr().unwrap();
            let mut answer = vec![0; from.to_string().len()];
            client.read_exact(&mut answer).unwrap();
            assert_eq!(String::from_utf8(answer).unwrap(), from.to_string());
            let ended = || !pair.far.ss(&format!("-tn state close-wait dst '{}'", server.address)).is_empty();
            wait_until("the server's FIN is at the far box", SOON, ended);
            clear(&pair.far, "obstruction");
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(words(&boxes.near.record_of(from, server.address), "by cause"), "server eof");
        }
    });
}

#[test]
fn an_urgent_first_byte_is_passed_on_as_one() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[FAR_NO_COOKIE]);
        for ip in BOTH {
            let to = pair.server_at(ip, PORT);
            let listener = pair.server.listen(to);
            let speak = |mut stream: &TcpStream| {
                SockRef::from(stream).send_out_of_band(b"!")?;
                stream.write_all(b"and more")
            };
            let client = boxes.spoken(|| pair.client.connect(to), speak);
            client.shutdown(Shutdown::Write).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            SockRef::from(&server).set_out_of_band_inline(true).unwrap();
            let mut came = String::new();
            server.read_to_string(&mut came).unwrap();
            assert_eq!(came, "!and more");
        }
    });
}

#[test]
fn the_first_bytes_of_an_mptcp_client_travel_in_the_syn_too() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE, "client.mptcp=true"], &[FAR_NO_COOKIE]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            let connect = || {
                pair.client.enter(|| {
                    let kind = (Domain::for_address(server.address), Type::STREAM, Some(Protocol::MPTCP));
                    let socket = Socket::new(kind.0, kind.1, kind.2)?;
                    socket.connect(&server.address.into())?;
                    Ok(TcpStream::from(socket))
                })
            };
            let sent = request(5000);
            let mut client = boxes.spoken(connect, |mut stream| stream.write_all(&sent));
            client.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).unwrap();
            assert!(answer == sent);
            let (from, to) = (client.local_addr().unwrap(), server.address);
            assert_eq!(boxes.openings(from, to), "data data");
            assert_eq!(words(&boxes.near.record_of(from, to), "client_mptcp"), "yes");
        }
    });
}
