//! When the daemon ends, for whatever reason, connections are routed immediately: traps 13 and 22.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]
mod intercepting;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use intercepting::{BIN, WHERE, legs_of_a_new_connection};
use lab::peers::{self, Server};
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Ip, Lab, netns, wait_until};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(20);
const EARLY_DEMUX: &str = "/proc/sys/net/ipv4/tcp_early_demux";

fn early_demux(lab: &Lab) -> String {
    lab.gateway.run(&format!("cat {EARLY_DEMUX}")).trim().to_owned()
}

fn rules_are_there(lab: &Lab) -> bool {
    lab.gateway.run("nft list tables").contains("tcp_intercept")
}

/// Opens a connection from the client's port `port` and returns both ends.
fn from_port(lab: &Lab, ip: Ip, port: u16) -> (TcpStream, TcpStream) {
    let listener = lab.server.listen(lab.server_at(ip, 7));
    let near = lab.client().connect_from(lab.client_at(0, ip, port), lab.server_at(ip, 7)).unwrap();
    let (far, peer) = listener.accept().unwrap();
    assert_eq!(peer, lab.client_at(0, ip, port), "the server sees the client");
    (near, far)
}

/// Ends the connection in order: `first` closes first, then `second`.
fn end(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"last words").unwrap();
    first.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(second.read_to_end(&mut Vec::new()).unwrap(), 10);
    drop(second);
    assert_eq!(first.read(&mut [0]).unwrap(), 0);
}

/// The client ports of three sessions: ended by the client first, ended by the server first, and still open.
const ENDED_BY_CLIENT: u16 = 4001;
const ENDED_BY_SERVER: u16 = 4002;
const GOES_ON: u16 = 4003;

/// Opens one session of each kind in both families, so that the ended ones leave their TIME_WAIT on the box.
fn sessions(lab: &Lab, daemon: &Daemon) -> Vec<(TcpStream, TcpStream)> {
    let go_on = BOTH.map(|ip| {
        let (near, far) = from_port(lab, ip, ENDED_BY_CLIENT);
        end(near, far);
        let (near, far) = from_port(lab, ip, ENDED_BY_SERVER);
        end(far, near);
        from_port(lab, ip, GOES_ON)
    });
    daemon.wait_for_records(4);
    assert!(go_on.iter().all(|(near, _)| lab.legs(near) == 2));
    // TIME_WAIT at the ends would block the port, with or without a box between them.
    for host in [lab.client(), &lab.server] {
        host.run("ss -KHtan state time-wait >&2");
    }
    go_on.into()
}

/// Checks the state after the daemon's end: cut sessions are reset, and all of their ports work for a new connection.
fn ports_just_used_are_routed(lab: &Lab, cut: Vec<(TcpStream, TcpStream)>) {
    for stream in cut.into_iter().flat_map(|(near, far)| [near, far]) {
        let read = (&stream).read(&mut [0]);
        assert_eq!(read.map_err(|err| err.kind()), Err(ErrorKind::ConnectionReset));
    }
    for ip in BOTH {
        for port in [ENDED_BY_CLIENT, ENDED_BY_SERVER, GOES_ON] {
            let (near, far) = from_port(lab, ip, port);
            assert_eq!(lab.legs(&near), 0);
            stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        }
    }
}

#[test]
fn trap_22_after_a_stop_connections_are_routed_also_from_ports_just_used() {
    netns(|| {
        let lab = Lab::new();
        for place in WHERE {
            lab.gateway.sysctl("net.ipv4.tcp_early_demux", "1");
            let daemon = Daemon::start(&lab.gateway, BIN, place);
            let cut = sessions(&lab, &daemon);
            assert_eq!(early_demux(&lab), "0");
            let (status, log) = daemon.stop();
            assert!(status.success(), "{log}");
            assert_eq!((early_demux(&lab).as_str(), rules_are_there(&lab)), ("1", false), "{log}");
            ports_just_used_are_routed(&lab, cut);
            lab.client().run("ss -KHtan state time-wait >&2");
        }
    });
}

#[test]
fn trap_13_and_22_after_a_kill_connections_are_routed_also_from_ports_just_used() {
    netns(|| {
        let lab = Lab::new();
        for place in WHERE {
            lab.gateway.sysctl("net.ipv4.tcp_early_demux", "1");
            let daemon = Daemon::start(&lab.gateway, BIN, place);
            let cut = sessions(&lab, &daemon);
            daemon.kill9();
            assert!(rules_are_there(&lab));
            ports_just_used_are_routed(&lab, cut);
            assert_eq!(early_demux(&lab), "0");
            lab.gateway.run(&format!("{BIN} rules remove"));
            assert_eq!((early_demux(&lab).as_str(), rules_are_there(&lab)), ("1", false));
            BOTH.iter().for_each(|&ip| assert_eq!(legs_of_a_new_connection(&lab, ip), 0));
            lab.client().run("ss -KHtan state time-wait >&2");
        }
    });
}

#[test]
fn a_start_over_what_a_kill_left_intercepts_and_what_was_before_the_first_is_restored_in_the_end() {
    netns(|| {
        let lab = Lab::new();
        for place in WHERE {
            lab.gateway.sysctl("net.ipv4.tcp_early_demux", "1");
            let killed = Daemon::start(&lab.gateway, BIN, place);
            drop(sessions(&lab, &killed));
            killed.kill9();
            let daemon = Daemon::start(&lab.gateway, BIN, place);
            drop(sessions(&lab, &daemon));
            let (status, log) = daemon.stop();
            assert!(status.success(), "{log}");
            assert_eq!((early_demux(&lab).as_str(), rules_are_there(&lab)), ("1", false), "{log}");
            BOTH.iter().for_each(|&ip| assert_eq!(legs_of_a_new_connection(&lab, ip), 0));
        }
    });
}

#[test]
fn a_connection_that_was_routed_between_two_daemons_from_a_port_just_used_goes_on() {
    netns(|| {
        let lab = Lab::new();
        let killed = Daemon::start(&lab.gateway, BIN, &[]);
        drop(sessions(&lab, &killed));
        killed.kill9();
        let routed = BOTH.map(|ip| from_port(&lab, ip, ENDED_BY_SERVER));
        let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for (near, far) in &routed {
            stream::exchange(near, far, 1 << 20, Pace::FULL);
        }
    });
}

#[test]
fn when_the_operator_flushes_all_rules_new_connections_are_routed() {
    netns(|| {
        let lab = Lab::new();
        for place in WHERE {
            let daemon = Daemon::start(&lab.gateway, BIN, place);
            let open = sessions(&lab, &daemon);
            lab.gateway.run("nft flush ruleset");
            BOTH.iter().for_each(|&ip| assert_eq!(legs_of_a_new_connection(&lab, ip), 0));
            for ip in BOTH {
                for port in [ENDED_BY_CLIENT, ENDED_BY_SERVER] {
                    let (near, far) = from_port(&lab, ip, port);
                    stream::exchange(&near, &far, 1000, Pace::FULL);
                }
            }
            drop(open);
            let (status, log) = daemon.stop();
            assert!(status.success(), "{log}");
            lab.client().run("ss -KHtan state time-wait >&2");
        }
    });
}

/// Clients that open connections as fast as they can, and their results.
#[derive(Default)]
struct Load {
    opened: AtomicUsize,
    /// SIGKILL ends the daemon, which then cannot finish the connections that it has begun.
    killed: bool,
    /// The daemon is gone; from here on no connection may be cut.
    ended: AtomicBool,
    over: AtomicBool,
    failed: Mutex<Vec<std::io::Error>>,
}

fn connect_and_read(server: SocketAddr) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect_timeout(&server, SOON)?;
    stream.set_read_timeout(Some(SOON / 2))?;
    stream.read_to_end(&mut Vec::new())
}

impl Load {
    fn open(&self, server: SocketAddr) {
        while !self.over.load(Ordering::SeqCst) {
            let ended = self.ended.load(Ordering::SeqCst);
            match connect_and_read(server) {
                // A SYN-ACK admitted the connection, and the daemon's end cut it. In SYN-SENT a reset would be
                // "refused", and silence would be "timed out".
                Err(err) if err.kind() == ErrorKind::ConnectionReset && !ended => {}
                // Silence after the SYN-ACK: the ACK arrived when the listener was gone.
                Err(err) if err.kind() == ErrorKind::WouldBlock && !ended && self.killed => {}
                Err(err) => self.failed.lock().unwrap().push(err),
                Ok(_) => {}
            }
            self.opened.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn goes_on(&self, connections: usize) {
        let so_far = self.opened.load(Ordering::SeqCst);
        wait_until("connections under load", SOON, || {
            self.opened.load(Ordering::SeqCst) >= so_far + connections
        });
    }
}

fn nobody_is_refused_while_the_daemon_ends_by(signal: Signal) {
    let lab = Lab::new();
    for (place, ip) in WHERE.iter().flat_map(|place| BOTH.map(|ip| (place, ip))) {
        let server = Server::start(&lab.server, lab.server_at(ip, 7), peers::whoami);
        let mut daemon = Daemon::start(&lab.gateway, BIN, place);
        let load = Load { killed: signal == Signal::KILL, ..Load::default() };
        lab.client().enter(|| {
            thread::scope(|scope| {
                (0..8).for_each(|_| drop(scope.spawn(|| load.open(server.address))));
                load.goes_on(300);
                daemon.signal(signal);
                daemon.process().wait(SOON);
                load.ended.store(true, Ordering::SeqCst);
                load.goes_on(300);
                load.over.store(true, Ordering::SeqCst);
            });
        });
        let failed = load.failed.into_inner().unwrap();
        assert!(failed.is_empty(), "{ip:?}: {failed:?}\n{}", daemon.log());
    }
}

#[test]
fn nobody_is_refused_while_the_daemon_stops_under_load() {
    netns(|| nobody_is_refused_while_the_daemon_ends_by(Signal::TERM));
}

#[test]
fn nobody_is_refused_while_the_daemon_is_killed_under_load() {
    netns(|| nobody_is_refused_while_the_daemon_ends_by(Signal::KILL));
}

/// Drops the client's answers to SYN-ACKs until this is dropped.
struct LostAcks<'l>(&'l Lab);

impl<'l> LostAcks<'l> {
    fn of(lab: &'l Lab) -> Self {
        lab.client().nft(
            "table inet lost { chain out { type filter hook output priority 0;
                tcp flags & (fin | syn | rst | psh | ack) == ack drop; }; }",
        );
        Self(lab)
    }
}

impl Drop for LostAcks<'_> {
    fn drop(&mut self) {
        self.0.client().run("nft delete table inet lost");
    }
}

#[test]
fn a_client_whose_handshake_ends_while_the_daemon_stops_is_told() {
    netns(|| {
        let lab = Lab::new();
        for (place, ip) in WHERE.iter().flat_map(|place| BOTH.map(|ip| (place, ip))) {
            let _server = Server::start(&lab.server, lab.server_at(ip, 7), peers::banner);
            let mut daemon = Daemon::start(&lab.gateway, BIN, place);
            let lost = LostAcks::of(&lab);
            // For the client the connection is established. It waits for the server to speak, as SSH and SMTP clients
            // do.
            let stream = lab.client().connect(lab.server_at(ip, 7)).unwrap();
            assert_eq!(lab.gateway.ss("-tn state syn-recv").lines().count(), 1);
            daemon.signal(Signal::TERM);
            wait_until("new connections are routed", SOON, || {
                let rules = lab.gateway.run("nft list ruleset");
                rules.contains("goto full") || !rules.contains("tcp_intercept")
            });
            drop(lost);
            peers::expect_reset(&stream);
            assert!(daemon.process().wait(SOON).success(), "{}", daemon.log());
        }
    });
}

#[test]
fn what_a_session_has_left_when_the_daemon_stops_is_delivered() {
    netns(|| {
        let lab = Lab::new();
        for (place, ip) in WHERE.iter().flat_map(|place| BOTH.map(|ip| (place, ip))) {
            let daemon = Daemon::start(&lab.gateway, BIN, place);
            let (mut near, mut far) = from_port(&lab, ip, 4004);
            // More than the client's window, but less than the window and the box's send buffer together.
            far.write_all(&vec![9; 200 << 10]).unwrap();
            near.shutdown(std::net::Shutdown::Write).unwrap();
            drop(far);
            let record = &daemon.wait_for_records(1)[0];
            assert_eq!(lab::words(record, "cause to_client"), format!("eof {}", 200 << 10));
            let left = lab.gateway.ss("-tn state last-ack");
            assert_eq!(left.lines().count(), 1, "the remaining data waits for the client");
            daemon.signal(Signal::TERM);
            wait_until("its sessions are gone", SOON, || daemon.log().contains("stopped: "));
            // Long enough to destroy the remaining data if the daemon did not wait for it.
            thread::sleep(Duration::from_millis(300));
            let mut came = Vec::new();
            near.set_read_timeout(Some(SOON)).unwrap();
            near.read_to_end(&mut came).expect("not a reset");
            assert!(came == vec![9; 200 << 10], "{} bytes came", came.len());
            assert!(daemon.stop().0.success());
        }
    });
}
