//! Failures of TCP Fast Open between two boxes, and of what it depends on. No connection is worse off for it, and
//! failures are remembered.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;

use boxes::{
    Boxes, FAR, FAR_NO_COOKIE, FIRST, NEAR, NEAR_NO_COOKIE, PORT, SOON, clear, obstruct, request, syns,
};
use lab::peers::{self, Server, expect_reset};
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Host, Ip, Pair, netns, wait_until, words};
use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::{Domain, Socket, Type};
use tcp_intercept::config::Config;
use tcp_intercept::host::kernel::Kernel;
use tcp_intercept::session::leg::Leg;
use tcp_intercept::session::relay::Direction;
use tcp_intercept::session::relay::first::FirstBytes;
use tcp_intercept::session::relay::pool::Pool;
use tcp_intercept::state::flow::Side;
use tcp_intercept::state::table::slot::Slot;

mod boxes;

/// Keys for net.ipv4.tcp_fastopen_key.
const OTHER_KEYS: [&str; 2] = ["00000000-00000000-00000000-00000001", "00000000-00000000-00000000-00000002"];

#[test]
fn a_near_end_that_vanishes_before_the_handshake_ends_is_noticed() {
    netns(|| {
        let pair = Pair::plain(1);
        pair.far.sysctl("net.ipv4.tcp_synack_retries", "1");
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[FAR_NO_COOKIE]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            obstruct(&pair.far, "tcp flags & (syn|ack) != syn drop");
            let client =
                boxes.spoken(|| pair.client.connect(server.address), |mut stream| stream.write_all(b"hello"));
            let from = client.local_addr().unwrap();
            assert_eq!(
                words(&boxes.far.record_of(from, server.address), "by phase cause"),
                "client relay timed-out"
            );
            clear(&pair.far, "obstruction");
        }
    });
}

#[test]
fn a_client_that_gives_up_while_its_bytes_are_waited_for_leaves_nothing_behind() {
    netns(|| {
        let pair = Pair::plain(1);
        for mode in ["true", "\"no-cookie\""] {
            let (near, far) = (format!("server.fast-open={mode}"), format!("client.fast-open={mode}"));
            let boxes = Boxes::start(&pair, &[&near], &[&far]);
            let server = Server::start(&pair.server, pair.server_at(Ip::V4, PORT), peers::deaf);
            // It is random which clients are gone before their connection is accepted, and which only later.
            let caught = (0..500).any(|_| {
                peers::reset(pair.client.connect(server.address).unwrap());
                let records = boxes.near.close_records();
                records.iter().any(|record| words(record, "by phase cause") == "client connect reset")
            });
            assert!(caught, "{mode}: {}", boxes.near.log());
            let legs = |host: &Host| host.ss("-tan exclude listening exclude time-wait");
            let gone = || [&pair.near, &pair.far].map(legs).concat().is_empty();
            wait_until("no leg is left on either box", SOON, gone);
            clear(&pair.far, "watch");
        }
    });
}

#[test]
fn a_refused_server_is_a_reset_for_the_client() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[FAR_NO_COOKIE]);
        for ip in BOTH {
            let to = pair.server_at(ip, 9);
            let client =
                boxes.spoken(|| pair.client.connect(to), |mut stream| stream.write_all(&request(500)));
            expect_reset(&client);
            let from = client.local_addr().unwrap();
            assert_eq!(words(&boxes.far.record_of(from, to), "by phase cause"), "server connect refused");
            let near = words(&boxes.near.record_of(from, to), "by cause");
            assert!(["server reset", "server refused"].contains(&near.as_str()), "{near}");
        }
    });
}

#[test]
fn a_far_end_that_ignores_the_data_gets_it_again_and_once() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            for (seen, opening) in [([1, 0, 1], "ignored no"), ([1, 1, 0], "asked no")] {
                let sent = request(3000);
                let (from, answer) = boxes.ask(&pair.client, server.address, &sent);
                assert!(answer == sent);
                assert_eq!(boxes.openings(from, server.address), opening);
                assert_eq!(syns(&pair.far), seen, "all, with the option, with data");
            }
        }
        let log = boxes.near.stop().1;
        assert!(log.contains("fast-open-data=0 fast-open-failed=2 fast-open-avoided=0"), "{log}");
    });
}

#[test]
fn a_cookie_that_is_outdated_costs_nothing_but_the_round_trip_once() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR], &[FAR]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            boxes.ask(&pair.client, server.address, b"for the cookie");
            // The state after a reboot.
            pair.far.sysctl(
                "net.ipv4.tcp_fastopen_key",
                if ip == Ip::V4 { OTHER_KEYS[0] } else { OTHER_KEYS[1] },
            );
            for opening in ["ignored no", "data data"] {
                let sent = request(3000);
                let (from, answer) = boxes.ask(&pair.client, server.address, &sent);
                assert!(answer == sent);
                assert_eq!(boxes.openings(from, server.address), opening);
            }
        }
    });
}

#[test]
fn what_loses_syns_with_data_costs_one_connection_a_second_and_is_remembered() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR], &[FAR]);
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            boxes.ask(&pair.client, server.address, b"for the cookie");
            obstruct(&pair.far, "tcp flags & (syn|ack) == syn meta length > 100 drop");
            syns(&pair.far);
            for (seen, opening) in [([2, 1, 1], "lost no"), ([1, 1, 0], "empty empty")] {
                let sent = request(3000);
                let (from, answer) = boxes.ask(&pair.client, server.address, &sent);
                assert!(answer == sent);
                assert_eq!(boxes.openings(from, server.address), opening);
                assert_eq!(syns(&pair.far), seen, "all, with the option, with data");
            }
            clear(&pair.far, "obstruction");
        }
    });
}

#[test]
fn what_loses_syns_with_the_option_or_answers_them_with_a_reset_is_remembered_too() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR, "server.connect-timeout=500ms"], &[FAR]);
        for (ip, verdict) in [(Ip::V4, "drop"), (Ip::V6, "reject with tcp reset")] {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            obstruct(&pair.far, &format!("tcp option fastopen exists {verdict}"));
            let failing =
                boxes.spoken(|| pair.client.connect(server.address), |mut stream| stream.write_all(b"hello"));
            expect_reset(&failing);
            let (from, answer) = boxes.ask(&pair.client, server.address, b"hello");
            assert_eq!(
                (answer.as_slice(), boxes.openings(from, server.address).as_str()),
                (&b"hello"[..], "avoided no")
            );
            clear(&pair.far, "obstruction");
        }
    });
}

/// A socket of another program on the near box that has the client's address. A connected one blocks the address for
/// one server only; the near box then notices as late as connect(), when it already has the client's first bytes.
fn squatter(pair: &Pair, from: SocketAddr, to: Option<SocketAddr>) -> Socket {
    pair.near.enter(|| {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None).unwrap();
        let transparent = match from {
            SocketAddr::V4(_) => socket.set_ip_transparent_v4(true),
            SocketAddr::V6(_) => socket.set_ip_transparent_v6(true),
        };
        transparent.unwrap();
        socket.set_reuse_address(to.is_some()).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        to.map(|to| socket.connect(&to.into()).unwrap_err());
        socket
    })
}

#[test]
fn a_port_that_is_taken_costs_the_port_and_no_byte() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR_NO_COOKIE], &[FAR_NO_COOKIE]);
        // Drop the squatter's packets.
        obstruct(&pair.far, "tcp sport { 40000, 40001 } drop");
        for ip in BOTH {
            let server = Server::start(&pair.server, pair.server_at(ip, PORT), peers::echo);
            for (port, to) in [(40000, None), (40001, Some(server.address))] {
                let from = pair.client_at(ip, port);
                let _squatter = squatter(&pair, from, to);
                let sent = request(FIRST);
                let connect = || pair.client.connect_from(from, server.address);
                let mut client = boxes.spoken(connect, |mut stream| stream.write_all(&sent));
                client.shutdown(Shutdown::Write).unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).unwrap();
                assert!(answer == sent);
                let record = boxes.near.record_of(from, server.address);
                assert_eq!(words(&record, "dialled server_fast_open"), "other-port data");
            }
        }
    });
}

/// Makes a socket that sends its SYN with data as soon as it has a cookie. Returns it with the result of connect().
fn fast_opening(to: SocketAddr) -> (Socket, io::Result<()>) {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None).unwrap();
    sys::set_fast_open_connect(socket.as_fd()).unwrap();
    let connected = socket.connect(&to.into());
    (socket, connected)
}

/// Makes a connection with Fast Open time out in the near box's kernel, so that the kernel suspends Fast Open for an
/// hour.
fn pause_for_the_whole_host(pair: &Pair, to: SocketAddr) {
    obstruct(&pair.far, "drop");
    let (lost, put_off) = fast_opening(to);
    put_off.unwrap();
    rustix::net::send(&lost, b"lost", SendFlags::empty()).unwrap();
    wait_until("it times out", SOON, || lost.take_error().unwrap().is_some());
    clear(&pair.far, "obstruction");
}

#[test]
fn where_the_kernel_stops_fast_open_between_connect_and_the_syn_no_byte_is_lost() {
    netns(|| {
        let pair = Pair::plain(1);
        pair.near.sysctl("net.ipv4.tcp_syn_retries", "1");
        pair.near.sysctl("net.ipv4.tcp_fastopen_blackhole_timeout_sec", "3600");
        pair.far.sysctl("net.ipv4.tcp_fastopen", "3");
        let far = pair.far.listen(pair.far_at(0, Ip::V4, PORT));
        sys::set_fast_open(far.as_fd(), 16).unwrap();
        let to = far.local_addr().unwrap();
        pair.near.enter(|| {
            let (asking, connected) = fast_opening(to);
            assert_eq!(connected.unwrap_err().raw_os_error(), Some(Errno::INPROGRESS.raw_os_error()));
            wait_until("a cookie", SOON, || pair.near.run("ip tcp_metrics").contains("fo_cookie"));
            let (socket, put_off) = fast_opening(to);
            put_off.unwrap();
            pause_for_the_whole_host(&pair, to);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let inner = Socket::from(listener.accept().unwrap().0);
            inner.set_nonblocking(true).unwrap();
            client.write_all(b"hello").unwrap();
            let options = Kernel::probe(&Config::default()).unwrap().client;
            let rt = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            rt.block_on(async {
                let source = Leg::new(inner, Side::Client, &options).unwrap();
                let (way, pool) = (Direction::resume(Slot::unkept().up(), None, 0, None), Pool::default());
                let first = FirstBytes { source: &source, direction: &way, pool: &pool };
                first.wait().await;
                assert!(first.take().unwrap());
                let sink = Leg::new(socket, Side::Server, &options).unwrap();
                assert!(!first.give(&sink).unwrap(), "an ordinary SYN carries no data");
                assert!(way.holds_pipe() && !first.gone());
                sink.connected().await.unwrap();
            });
            drop(asking);
        });
    });
}

#[test]
fn on_a_host_that_has_it_switched_off_it_is_left_out_and_said() {
    netns(|| {
        let pair = Pair::plain(1);
        pair.near.sysctl("net.ipv4.tcp_fastopen", "0");
        let boxes = Boxes::start(&pair, &[NEAR], &[FAR]);
        let server = Server::start(&pair.server, pair.server_at(Ip::V4, PORT), peers::echo);
        let (from, answer) = boxes.ask(&pair.client, server.address, b"hello");
        assert_eq!(
            (answer.as_slice(), boxes.openings(from, server.address).as_str()),
            (&b"hello"[..], "no no")
        );
        assert_eq!(syns(&pair.far), [1, 0, 0], "all, with the option, with data");
        let log = boxes.near.stop().1;
        assert!(log.contains("server.fast-open: left out") && log.contains("net.ipv4.tcp_fastopen"), "{log}");
    });
}

/// Sends and receives at the same time; the client starts immediately.
fn exchange(pair: &Pair, to: SocketAddr, bytes: u64) {
    let listener = pair.server.listen(to);
    let client = pair.client.connect(to).unwrap();
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let sent = stream::send(&client, 1, bytes, Pace::FULL).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            sent
        });
        let (server, _) = listener.accept().unwrap();
        let answered = scope.spawn(move || {
            let received = stream::receive(&server, Pace::FULL).unwrap();
            let answered = stream::send(&server, 2, bytes, Pace::FULL).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            (received, answered)
        });
        let received = stream::receive(&client, Pace::FULL).unwrap();
        let (arrived, answered) = answered.join().unwrap();
        assert_eq!((sent.join().unwrap(), received), (arrived, answered));
    });
}

#[test]
fn two_hundred_connections_on_a_link_that_loses_packets_are_whole() {
    netns(|| {
        let pair = Pair::plain(1);
        let boxes = Boxes::start(&pair, &[NEAR], &[FAR]);
        for end in [&pair.near, &pair.far] {
            obstruct(end, "numgen random mod 100 < 2 drop");
        }
        std::thread::scope(|scope| {
            for worker in 0..20 {
                let pair = &pair;
                scope.spawn(move || {
                    for n in 0..10 {
                        let ip = BOTH[n % 2];
                        exchange(pair, pair.server_at(ip, PORT + worker), 20_000);
                    }
                });
            }
        });
        let with_data = |daemon: &Daemon, key| {
            let records = daemon.wait_for_records(200);
            assert!(records.iter().all(|record| words(record, "cause") == "eof"), "{records:?}");
            records.iter().filter(|record| words(record, key) == "data").count()
        };
        let (near, far) =
            (with_data(&boxes.near, "server_fast_open"), with_data(&boxes.far, "client_fast_open"));
        assert!(near > 0 && far >= near, "{near} SYNs had data, {far} were accepted");
    });
}
