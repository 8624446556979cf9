//! The properties of each leg of a session, as the kernel reports them and as the detection of dead peers shows them.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::peers::{self, expect_reset};
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Host, Ip, Lab, netns, wait_until, words};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 8000;
const MPTCP: &str = "client_mptcp server_mptcp";

/// A connection through the box: both ends, and both legs as `ss` on the box lists them.
struct Line {
    client: TcpStream,
    server: TcpStream,
    from: SocketAddr,
    to: SocketAddr,
}

impl Line {
    fn new(lab: &Lab, ip: Ip) -> Self {
        let to = lab.server_at(ip, PORT);
        let (client, server, from) = peers::pair(lab.client(), &lab.server, to);
        let line = Self { client, server, from, to };
        wait_until("both legs", SOON, || !line.leg(lab, "server", "").is_empty());
        line
    }

    /// Returns the box's `ss` output for one leg, whose own address is that of the far end.
    fn leg(&self, lab: &Lab, leg: &str, options: &str) -> String {
        let own = if leg == "client" { self.to } else { self.from };
        lab.gateway.ss(&format!("-tn{options} state established src '{own}'"))
    }

    /// Returns the end that one leg of the box is connected to, its host, and the other end.
    fn beyond<'a>(&'a self, lab: &'a Lab, leg: &str) -> (&'a TcpStream, &'a Host, &'a TcpStream) {
        match leg {
            "client" => (&self.client, lab.client(), &self.server),
            _ => (&self.server, &lab.server, &self.client),
        }
    }

    /// Ends the connection with a reset, so that nothing of it remains, and returns its flow.
    fn end(self) -> (SocketAddr, SocketAddr) {
        peers::reset(self.client);
        (self.from, self.to)
    }

    fn ended(&self, daemon: &Daemon, keys: &str) -> String {
        words(&daemon.record_of(self.from, self.to), keys)
    }
}

const LEGS: [&str; 2] = ["client", "server"];

/// Returns each leg in each family.
fn legs() -> impl Iterator<Item = (&'static str, Ip)> {
    LEGS.into_iter().flat_map(|leg| BOTH.map(|ip| (leg, ip)))
}

#[test]
fn each_leg_has_its_own_congestion_control() {
    netns(|| {
        let lab = Lab::new();
        for [client, server] in [["reno", "bbr"], ["bbr", "reno"]] {
            let settings = [
                format!("client.congestion-control={client}"),
                format!("server.congestion-control={server}"),
            ];
            let daemon = Daemon::start(&lab.gateway, BIN, &settings.each_ref().map(String::as_str));
            for ip in BOTH {
                let line = Line::new(&lab, ip);
                for (leg, name) in LEGS.into_iter().zip([client, server]) {
                    let shown = line.leg(&lab, leg, "i");
                    assert!(shown.contains(&format!(" {name} ")), "{leg}: {shown}");
                }
                let (from, to) = line.end();
                let recorded = words(&daemon.record_of(from, to), "client_cc server_cc");
                assert_eq!(recorded, format!("{client} {server}"));
            }
        }
    });
}

#[test]
fn a_send_buffer_holds_what_was_asked_for_and_without_a_bound_on_what_waits_it_is_the_kernels_own() {
    netns(|| {
        let lab = Lab::new();
        let limit = |settings: &[&str], leg| {
            let daemon = Daemon::start(&lab.gateway, BIN, settings);
            let line = Line::new(&lab, Ip::V4);
            // skmem:(r0,rb131072,t0,tb67108864,f0,w0,o0,bl0,d0)
            let shown = line.leg(&lab, leg, "m");
            let limit = shown.split(',').find_map(|word| word.strip_prefix("tb")?.parse::<usize>().ok());
            line.end();
            daemon.stop();
            limit.unwrap_or_else(|| panic!("{shown}"))
        };
        for leg in LEGS {
            let key = |key: &str| format!("{leg}.{key}");
            let wan = "wan.devices=[\"none0\"]";
            assert_eq!(limit(&[wan], leg), 64 << 20);
            assert!(limit(&[], leg) < 4 << 20);
            assert_eq!(limit(&[&key("send-buffer=1048576")], leg), 1 << 20);
            assert!(limit(&[wan, &key("send-buffer=0")], leg) < 4 << 20);
            assert!(limit(&[wan, &key("notsent-lowat=0")], leg) < 4 << 20);
        }
    });
}

#[test]
fn an_unknown_congestion_control_is_refused_with_those_there_are() {
    netns(|| {
        let lab = Lab::new();
        let there = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
        for mptcp in ["server.mptcp=false", "server.mptcp=true"] {
            let mut daemon =
                Daemon::launch(&lab.gateway, BIN, &[mptcp, "server.congestion-control=no-such-one"]);
            let status = daemon.process().wait(SOON);
            let said = daemon.log();
            assert_eq!(status.code(), Some(69), "{said}");
            assert!(said.contains("server.congestion-control = \"no-such-one\""), "{said}");
            assert!(said.contains(there.trim()), "{said}");
            assert_eq!(lab.gateway.run("nft list ruleset"), "");
        }
    });
}

/// Drops and counts everything that arrives at `host` except resets.
fn cut_off(host: &Host) {
    host.nft(
        "table inet cut {
            chain input { type filter hook input priority 0; tcp flags & rst == 0 counter drop; }
        }",
    );
}

#[test]
fn keepalive_has_its_three_timers_on_each_leg_and_ends_a_session_with_a_peer_that_is_gone() {
    netns(|| {
        let lab = Lab::new();
        for (leg, ip) in legs() {
            let timers = format!("{leg}.keepalive={{ idle = \"2s\", interval = \"1s\", probes = 2 }}");
            let other = if leg == "client" { "server.keepalive=false" } else { "client.keepalive=false" };
            let daemon = Daemon::start(&lab.gateway, BIN, &[&timers, other]);
            let line = Line::new(&lab, ip);
            let shown = line.leg(&lab, leg, "o");
            assert!(shown.contains("timer:(keepalive,"), "{shown}");
            let (_, host, other_end) = line.beyond(&lab, leg);
            cut_off(host);
            expect_reset(other_end);
            assert_eq!(line.ended(&daemon, "by phase cause"), format!("{leg} relay timed-out"));
            let probes = host.run("nft list chain inet cut input");
            assert!(probes.contains("counter packets 2 "), "{probes}");
            host.nft("delete table inet cut");
        }
    });
}

#[test]
fn by_default_keepalive_is_the_kernels_own_and_may_be_switched_off() {
    netns(|| {
        let lab = Lab::new();
        for (settings, timer) in [
            (&[][..], Some("timer:(keepalive,1")), // 119 minutes and some
            (&["client.keepalive=false", "server.keepalive=false"], None),
        ] {
            let _daemon = Daemon::start(&lab.gateway, BIN, settings);
            for ip in BOTH {
                let line = Line::new(&lab, ip);
                for leg in LEGS {
                    let shown = line.leg(&lab, leg, "o");
                    match timer {
                        Some(timer) => assert!(shown.contains(timer) && shown.contains("min,"), "{shown}"),
                        None => assert!(!shown.contains("timer:"), "{shown}"),
                    }
                }
            }
        }
    });
}

#[test]
fn the_user_timeout_ends_a_session_with_a_peer_that_confirms_nothing() {
    netns(|| {
        let lab = Lab::new();
        for (leg, ip) in legs() {
            let daemon = Daemon::start(&lab.gateway, BIN, &[&format!("{leg}.user-timeout=1s")]);
            let line = Line::new(&lab, ip);
            let (_, host, mut other_end) = line.beyond(&lab, leg);
            cut_off(host);
            other_end.write_all(b"is anybody there?").unwrap();
            expect_reset(other_end);
            assert_eq!(line.ended(&daemon, "by phase cause"), format!("{leg} relay timed-out"));
            host.nft("delete table inet cut");
        }
    });
}

/// Sends a byte and then another to the end beyond `leg`, whose acknowledgements are lost. Tail loss probes are off,
/// because they would send what Nagle's algorithm holds back.
fn two_bytes(lab: &Lab, line: &Line, leg: &str) {
    let (mut end, host, mut other_end) = line.beyond(lab, leg);
    lab.gateway.sysctl("net.ipv4.tcp_early_retrans", "0");
    other_end.set_nodelay(true).unwrap();
    host.nft(
        "table inet lost {
            chain output { type filter hook output priority 0; tcp flags & (syn | fin | rst) == 0 drop; }
        }",
    );
    other_end.write_all(b"1").unwrap();
    end.read_exact(&mut [0]).unwrap();
    other_end.write_all(b"2").unwrap();
}

#[test]
fn with_no_delay_a_byte_does_not_wait_for_the_confirmation_of_the_one_before() {
    netns(|| {
        let lab = Lab::new();
        for (leg, ip) in legs() {
            let _daemon = Daemon::start(&lab.gateway, BIN, &[]);
            let line = Line::new(&lab, ip);
            two_bytes(&lab, &line, leg);
            line.beyond(&lab, leg).0.read_exact(&mut [0]).unwrap();
            line.beyond(&lab, leg).1.nft("delete table inet lost");
        }
    });
}

#[test]
fn without_no_delay_it_waits() {
    netns(|| {
        let lab = Lab::new();
        for (leg, ip) in legs() {
            let _daemon = Daemon::start(&lab.gateway, BIN, &[&format!("{leg}.no-delay=false")]);
            let line = Line::new(&lab, ip);
            two_bytes(&lab, &line, leg);
            wait_until("the byte waits", SOON, || line.leg(&lab, leg, "i").contains("notsent:1"));
            line.beyond(&lab, leg).1.nft("delete table inet lost");
        }
    });
}

/// Makes a Multipath TCP socket, listening or connected.
fn mptcp(host: &Host, at: SocketAddr, set_up: fn(&Socket, SocketAddr)) -> Socket {
    host.enter(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::from(262))).unwrap();
        set_up(&socket, at);
        socket
    })
}

fn listen(socket: &Socket, at: SocketAddr) {
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at.into()).unwrap();
    socket.listen(8).unwrap();
}

fn connect(socket: &Socket, to: SocketAddr) {
    socket.connect(&to.into()).unwrap();
}

/// Connects, with Multipath TCP at the ends that `client` and `server` select, exchanges data, and returns the words of
/// the record.
fn exchange(lab: &Lab, daemon: &Daemon, ip: Ip, [client, server]: [bool; 2]) -> String {
    let to = lab.server_at(ip, PORT);
    let listener = match server {
        true => mptcp(&lab.server, to, listen),
        false => lab.server.listen(to).into(),
    };
    let near: TcpStream = match client {
        true => mptcp(lab.client(), to, connect).into(),
        false => lab.client().connect(to).unwrap(),
    };
    let (far, from) = listener.accept().unwrap();
    let from = from.as_socket().unwrap();
    stream::exchange(&near, &far.into(), 4 << 20, Pace::UNEVEN);
    drop(near);
    let record = daemon.record_of(from, to);
    assert_eq!(words(&record, "cause source"), format!("eof {from}"));
    words(&record, MPTCP)
}

/// Returns the kernel counter `name` of `host`.
fn counted(host: &Host, name: &str) -> u64 {
    let line = host.run(&format!("nstat -asz {name} | grep {name}"));
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

const BOTH_MPTCP: [&str; 2] = ["client.mptcp=true", "server.mptcp=true"];

#[test]
fn a_multipath_client_reaches_a_plain_server_and_a_plain_client_a_multipath_server() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &BOTH_MPTCP);
        let mut sessions = 0;
        for ip in BOTH {
            // After a success, two failures are not enough to avoid Multipath TCP with this server.
            for ends in [[false, true], [true, true], [true, false], [false, false]] {
                let word = |mptcp| if mptcp { "yes" } else { "fallback" };
                let expected = ends.map(word).join(" ");
                assert_eq!(exchange(&lab, &daemon, ip, ends), expected, "{ip:?}");
                sessions += 1;
            }
        }
        assert_eq!(sessions, 8);
        // The ends' own kernels agree: four sessions at each end were Multipath TCP until the end.
        assert_eq!(counted(lab.client(), "MPTcpExtMPCapableSYNACKRX"), 4);
        assert_eq!(counted(&lab.server, "MPTcpExtMPCapableACKRX"), 4);
        for host in [lab.client(), &lab.server] {
            assert_eq!(counted(host, "MPTcpExtMPFallbackTokenInit"), 0);
        }
    });
}

#[test]
fn without_mptcp_in_the_configuration_a_multipath_client_gets_tcp() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        for ip in BOTH {
            assert_eq!(exchange(&lab, &daemon, ip, [true, true]), "off off");
        }
        assert_eq!(counted(lab.client(), "MPTcpExtMPCapableSYNACKRX"), 0);
    });
}

#[test]
fn where_the_kernel_has_no_mptcp_sessions_are_tcp_and_the_log_says_so_once() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.sysctl("net.mptcp.enabled", "0");
        let daemon = Daemon::start(&lab.gateway, BIN, &BOTH_MPTCP);
        for ip in BOTH {
            assert_eq!(exchange(&lab, &daemon, ip, [true, true]), "off off");
        }
        let log = daemon.log();
        for leg in LEGS {
            let degraded = format!("{leg}.mptcp: left out on MPTCP sockets");
            assert_eq!(log.matches(&degraded).count(), 1, "{log}");
        }
    });
}

#[test]
fn when_mptcp_is_switched_off_meanwhile_sessions_go_on_with_tcp() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &BOTH_MPTCP);
        assert_eq!(exchange(&lab, &daemon, Ip::V4, [true, true]), "yes yes");
        lab.gateway.sysctl("net.mptcp.enabled", "0");
        for ip in BOTH {
            // The existing listener is unchanged; new server legs are affected.
            assert_eq!(exchange(&lab, &daemon, ip, [true, true]), "yes refused");
        }
        let log = daemon.log();
        assert_eq!(log.matches("the kernel no longer makes MPTCP sockets").count(), 1, "{log}");
    });
}

#[test]
fn trap_14_what_an_mptcp_listener_refuses_its_tcp_clients_legs_have() {
    netns(|| {
        let lab = Lab::new();
        let settings = ["client.mptcp=true", "client.user-timeout=1s", "client.congestion-control=reno"];
        let daemon = Daemon::start(&lab.gateway, BIN, &settings);
        let log = daemon.log();
        assert!(!log.contains("left out"), "the relay does it on MPTCP sockets: {log}");
        for ip in BOTH {
            // This client does not use Multipath TCP, so its leg is a TCP socket and can have all configured options.
            let line = Line::new(&lab, ip);
            let shown = line.leg(&lab, "client", "io");
            assert!(shown.contains(" reno ") && shown.contains("timer:(keepalive,"), "{shown}");
            SockRef::from(&line.client).send_out_of_band(b"!").unwrap();
            let mut urgent = [std::mem::MaybeUninit::uninit()];
            let mut came = || SockRef::from(&line.server).recv_out_of_band(&mut urgent).is_ok();
            wait_until("an urgent byte", SOON, &mut came);
            cut_off(lab.client());
            (&line.server).write_all(b"is anybody there?").unwrap();
            expect_reset(&line.server);
            assert_eq!(line.ended(&daemon, "by phase cause"), "client relay timed-out");
            lab.client().nft("delete table inet cut");
        }
    });
}
