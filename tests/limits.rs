//! The timeouts that end a session, and the resources that a session uses when a peer does not read.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use lab::peers::{self, Server, expect_reset};
use lab::{BOTH, Daemon, Ip, Lab, becomes, netns, wait_until, words};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);

/// Opens a connection through the box and returns both ends, the client's first, and its flow.
fn pair(lab: &Lab, ip: Ip) -> (TcpStream, TcpStream, (SocketAddr, SocketAddr)) {
    let to = lab.server_at(ip, 8000);
    let (client, server, from) = peers::pair(lab.client(), &lab.server, to);
    (client, server, (from, to))
}

fn passes(mut from: &TcpStream, mut to: &TcpStream) {
    from.write_all(b".").unwrap();
    to.read_exact(&mut [0]).unwrap();
}

fn ended(daemon: &Daemon, (from, to): (SocketAddr, SocketAddr)) -> String {
    words(&daemon.record_of(from, to), "by phase cause")
}

#[test]
fn the_idle_timeout_ends_a_silent_session_and_no_other() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &["timeouts.idle=2s"]);
        for ip in BOTH {
            let (client, server, silent) = pair(&lab, ip);
            let (speaker, listener, _) = pair(&lab, ip);
            passes(&client, &server);
            // The other session carries data until the one has ended.
            let over = becomes(SOON, || {
                passes(&speaker, &listener);
                client.take_error().unwrap().is_some()
            });
            assert!(over, "it has ended");
            expect_reset(&server);
            assert_eq!(ended(&daemon, silent), "us relay idle-timeout");
            passes(&listener, &speaker);
        }
    });
}

#[test]
fn the_half_closed_timeout_ends_a_session_that_is_silent_behind_one_end_and_no_other() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &["timeouts.half-closed=1s"]);
        for ip in BOTH {
            for first in ["client", "server"] {
                let (open, other, _) = pair(&lab, ip);
                let (client, server, half) = pair(&lab, ip);
                let (early, late) = if first == "client" { (&client, &server) } else { (&server, &client) };
                early.shutdown(Shutdown::Write).unwrap();
                expect_reset(early);
                expect_reset(late);
                assert_eq!(ended(&daemon, half), "us relay half-closed-timeout");
                // This session is equally silent and older, but neither end has closed its direction.
                passes(&open, &other);
            }
        }
    });
}

#[test]
fn by_default_nothing_but_the_kernels_keepalive_watches_a_session() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            let (idle, peer, _) = pair(&lab, ip);
            let (half, mut other, _) = pair(&lab, ip);
            half.shutdown(Shutdown::Write).unwrap();
            assert_eq!(other.read(&mut [0]).unwrap(), 0);
            let timers = || lab.gateway.ss("-tno");
            let calm = becomes(SOON, || timers().lines().all(|leg| leg.contains("timer:(keepalive,")));
            assert!(calm && timers().lines().count() >= 4, "{}", timers());
            // A timer of the daemon itself is not visible, so the test only shows that it does not fire.
            thread::sleep(Duration::from_secs(2));
            passes(&idle, &peer);
            passes(&other, &half);
        }
        let records = daemon.close_records();
        assert!(records.iter().all(|record| words(record, "by") != "us"), "{records:?}");
    });
}

/// Returns the resident memory of a process in KiB.
fn resident(lab: &Lab, pid: u32) -> u64 {
    let line = lab.gateway.run(&format!("grep VmRSS /proc/{pid}/status"));
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Returns how many pipe ends a process has open.
fn pipe_ends(lab: &Lab, pid: u32) -> usize {
    lab.gateway.run(&format!("ls -l /proc/{pid}/fd | grep -c ' -> pipe:' || true")).trim().parse().unwrap()
}

/// Returns the bytes of kernel memory that the box's sockets hold (`r`, `t`, `w` and `bl` of ss's skmem), and their
/// limits.
fn socket_memory(lab: &Lab) -> (u64, u64) {
    let (mut held, mut limit) = (0, 0);
    for memory in lab.gateway.ss("-tnm").split("skmem:(").skip(1) {
        for part in memory.split(')').next().unwrap().split(',') {
            let digits = part.find(|c: char| c.is_ascii_digit()).unwrap();
            let value: u64 = part[digits..].parse().unwrap();
            match &part[..digits] {
                "r" | "w" => held += value,
                "rb" | "tb" => limit += value,
                _ => {}
            }
        }
    }
    (held, limit)
}

#[test]
fn peers_that_do_not_read_cost_bounded_memory_and_no_pipe_and_stop_nobody() {
    const DEAF: usize = 40;
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let pid = daemon.worker();
        let echo = Server::start(&lab.server, lab.server_at(Ip::V4, 7), peers::echo);
        let mut key = lab.client().connect(echo.address).unwrap();
        let deaf = BOTH.map(|ip| Server::start(&lab.server, lab.server_at(ip, 8000), peers::deaf));
        let (memory, pipes) = (resident(&lab, pid), pipe_ends(&lab, pid));
        let connect = |n: usize| lab.client().connect(deaf[n % 2].address).unwrap();
        let senders: Vec<_> = (0..DEAF).map(connect).collect();
        thread::scope(|scope| senders.iter().for_each(|sender| drop(scope.spawn(|| peers::fill(sender)))));

        // A worker keeps four idle pipes; a waiting session holds none.
        let workers = thread::available_parallelism().unwrap().get();
        let now = pipe_ends(&lab, pid);
        assert!(now <= pipes + workers * 4 * 2, "{pipes} pipe ends, then {now}");
        let grown = resident(&lab, pid).saturating_sub(memory);
        assert!(grown < 20 * DEAF as u64 + 4096, "{grown} KiB more for {DEAF} sessions");
        let (held, limit) = socket_memory(&lab);
        assert!(held > 0 && held <= limit, "{held} bytes in sockets, the limit is {limit}");
        for _ in 0..100 {
            key.write_all(b"k").unwrap();
            key.read_exact(&mut [0]).unwrap();
        }
        // Each session still works: the daemon notices that a peer is gone although the other does not read.
        senders.into_iter().for_each(peers::reset);
        let gone = |daemon: &Daemon| daemon.close_records().len() == DEAF;
        wait_until("all of them have ended", SOON, || gone(&daemon));
    });
}
