//! The daemon as a service: its messages to the service manager, and its behaviour at the session limit.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::time::Duration;

use lab::peers::{Server, echo};
use lab::{BOTH, Daemon, Ip, Lab, Proc, netns, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const UNIT: &str = include_str!("../packaging/tcp-intercept.service");
const GUIDE: &str = include_str!("../docs/operate.md");
const SOON: Duration = Duration::from_secs(20);

fn speaks(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// Waits until the service manager receives this message.
fn hear(manager: &UnixDatagram, what: &str) {
    let mut heard = Vec::new();
    while !heard.iter().any(|message: &String| message.lines().any(|line| line.starts_with(what))) {
        let mut message = [0; 256];
        let len = manager.recv(&mut message).unwrap_or_else(|err| panic!("{what}: {err}: {heard:?}"));
        heard.push(String::from_utf8_lossy(&message[..len]).into_owned());
    }
}

/// Returns the program that a unit file executes.
fn executed_by(unit: &str) -> &str {
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    command.split(' ').next().unwrap()
}

#[test]
fn the_unit_executes_the_program_where_the_guide_installs_it() {
    assert_eq!(executed_by(UNIT), "/usr/sbin/tcp-intercept", "where a package installs it");
    let install = "install -m 755 target/release/tcp-intercept ";
    let directory = GUIDE.lines().find_map(|line| line.strip_prefix(install)).unwrap();
    let command = GUIDE.lines().find(|line| line.starts_with("sed ")).unwrap();
    let (command, unit) = command.split_once(" > ").unwrap();
    assert_eq!(unit, "/etc/systemd/system/tcp-intercept.service");
    let mut sed = Command::new("sh");
    let installed = sed.args(["-ec", command]).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let installed = String::from_utf8(installed.stdout).unwrap();
    assert_eq!(executed_by(&installed), format!("{directory}tcp-intercept"));
    let changed = UNIT.lines().zip(installed.lines()).filter(|(shipped, installed)| shipped != installed);
    assert_eq!((changed.count(), installed.lines().count()), (1, UNIT.lines().count()), "{installed}");
}

#[test]
fn the_service_manager_hears_when_it_is_ready_how_it_is_and_when_it_stops() {
    netns(|| {
        let lab = Lab::new();
        let manager = manager();
        let mut daemon = run(&lab, "/run/notify");
        hear(&manager, "READY=1");
        assert!(
            lab.gateway.run("nft list tables").contains("tcp_intercept"),
            "ready, and the rules are there"
        );
        hear(&manager, "STATUS=0 of ");
        hear(&manager, "WATCHDOG=1");
        // `systemctl reload` does not end the daemon, whether or not there is a log file to reopen.
        daemon.signal(Signal::HUP);
        hear(&manager, "RELOADING=1");
        hear(&manager, "READY=1");
        // The new worker reports to the same service manager.
        daemon.signal(Signal::USR2);
        daemon.wait_for("upgraded from", SOON);
        hear(&manager, "WATCHDOG=1");
        daemon.signal(Signal::TERM);
        hear(&manager, "STOPPING=1");
        assert!(daemon.wait(SOON).success());
    });
}

/// Binds a service manager's socket at /run/notify.
fn manager() -> UnixDatagram {
    let manager = UnixDatagram::bind("/run/notify").unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    manager
}

/// Starts a daemon that reports to `socket`.
fn run(lab: &Lab, socket: &str) -> Proc {
    let mut command = lab.gateway.cmd(BIN);
    command.arg("run").env("NOTIFY_SOCKET", socket);
    Proc::start("tcp-intercept", command)
}

#[test]
fn a_service_manager_that_does_not_read_holds_nothing_up_and_hears_everything_later() {
    netns(|| {
        let lab = Lab::new();
        let manager = manager();
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        while other.send_to(b"OTHER=1", "/run/notify").is_ok() {}
        let mut daemon = run(&lab, "/run/notify");
        daemon.wait_for("ready: ", SOON);
        // The guardian still answers commands.
        let answer = lab.gateway.run(&format!("timeout 10 {BIN} upgrade /bin/true 2>&1 || true"));
        assert!(answer.contains("nothing has changed"), "{answer}");
        daemon.signal(Signal::HUP);
        let answer = lab.gateway.run(&format!("timeout 10 {BIN} upgrade /bin/true 2>&1 || true"));
        assert!(answer.contains("nothing has changed"), "{answer}");

        let mut heard = String::new();
        while !heard.contains("WATCHDOG=1") {
            let mut message = [0; 256];
            let len = manager.recv(&mut message).unwrap_or_else(|err| panic!("{err}: {heard}"));
            heard.push_str(&String::from_utf8_lossy(&message[..len]));
        }
        let lines: Vec<_> = heard.lines().map(|line| line.trim_start_matches("OTHER=1")).collect();
        let first: Vec<_> = lines.iter().map(|line| line.split(['=', ' ']).next().unwrap()).collect();
        assert_eq!(first, ["READY", "RELOADING", "MONOTONIC_USEC", "READY", "STATUS", "WATCHDOG"], "{heard}");
        daemon.signal(Signal::TERM);
        hear(&manager, "STOPPING=1");
        assert!(daemon.wait(SOON).success());
    });
}

#[test]
fn the_watchdog_hears_of_a_daemon_that_has_as_many_descriptors_as_it_may() {
    netns(|| {
        let lab = Lab::new();
        let manager = manager();
        let daemon = run(&lab, "/run/notify");
        hear(&manager, "READY=1");
        // All lower descriptor numbers are in use.
        let limit = Rlimit { current: Some(10), maximum: Some(10) };
        prlimit(Pid::from_raw(daemon.pid().cast_signed()), Resource::Nofile, limit).unwrap();
        (0..4).for_each(|_| hear(&manager, "WATCHDOG=1"));
    });
}

#[test]
fn a_service_manager_that_starts_again_under_its_name_is_told_on() {
    netns(|| {
        let lab = Lab::new();
        let first = manager();
        let _daemon = run(&lab, "/run/notify");
        hear(&first, "READY=1");
        drop(first);
        std::fs::remove_file("/run/notify").unwrap();
        let second = manager();
        (0..2).for_each(|_| hear(&second, "WATCHDOG=1"));
    });
}

#[test]
fn a_service_manager_with_an_abstract_name_is_told() {
    netns(|| {
        let lab = Lab::new();
        let name = SocketAddr::from_abstract_name("manager").unwrap();
        let manager = lab.gateway.enter(|| UnixDatagram::bind_addr(&name)).unwrap();
        manager.set_read_timeout(Some(SOON)).unwrap();
        let _daemon = run(&lab, "@manager");
        hear(&manager, "READY=1");
        hear(&manager, "WATCHDOG=1");
    });
}

#[test]
fn a_terminal_that_hangs_up_ends_it_well() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        daemon.signal(Signal::HUP);
        assert!(daemon.process().wait(SOON).success());
        assert!(daemon.log().contains("SIGHUP: stopping"), "{}", daemon.log());
        assert_eq!(lab.gateway.run("nft list tables"), "");
    });
}

#[test]
fn when_it_is_almost_full_new_connections_are_routed_until_there_is_room() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &["limits.connections=20"]);
        let sessions = || lab.gateway.ss("-tnH state established").lines().count() / 2;
        for ip in BOTH {
            let server = Server::start(&lab.server, lab.server_at(ip, 80), echo);
            let mut streams: Vec<TcpStream> = Vec::new();
            // 19 of 20 sessions are 95 %: above that the gate closes.
            for n in 1..=19 {
                streams.push(lab.client().connect(server.address).unwrap());
                wait_until("the session is there", SOON, || sessions() == n);
            }
            wait_until("the gate is closed", SOON, || status(&lab).contains("the gate is closed"));
            let routed = lab.client().connect(server.address).unwrap();
            speaks(&routed);
            streams.iter().for_each(speaks);
            assert_eq!(sessions(), 19, "the twentieth is routed");
            // 18 of 20 sessions are 90 %: there is room again.
            streams.pop();
            wait_until("the gate is open", SOON, || !status(&lab).contains("the gate is closed"));
            streams.push(lab.client().connect(server.address).unwrap());
            streams.iter().for_each(speaks);
            speaks(&routed);
            assert_eq!(sessions(), 19, "the next one is intercepted");
            drop(streams);
            wait_until("all have ended", SOON, || sessions() == 0);
            wait_until("the gate is open again", SOON, || !status(&lab).contains("the gate is closed"));
        }
        // Twice for each family: at the nineteenth session, and at the session that replaced it.
        let log = daemon.stop().1;
        assert!(log.contains("gate-closed=4"), "{log}");
    });
}

fn status(lab: &Lab) -> String {
    lab.gateway.run(&format!("{BIN} rules status"))
}

#[test]
fn a_daemon_finds_the_gate_that_another_left_closed_and_opens_it() {
    netns(|| {
        let lab = Lab::new();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        let full = Daemon::start(&lab.gateway, BIN, &["limits.connections=1"]);
        let stream = lab.client().connect(server.address).unwrap();
        speaks(&stream);
        wait_until("the gate is closed", SOON, || status(&lab).contains("the gate is closed"));
        full.kill9();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        speaks(&lab.client().connect(server.address).unwrap());
        assert_eq!(daemon.wait_for_records(1).len(), 1, "intercepted");
    });
}

#[test]
fn more_sessions_than_descriptors_carry_are_refused_at_the_start() {
    netns(|| {
        let lab = Lab::new();
        let run = format!("ulimit -n 1000; {BIN} run --set limits.connections=451 2>&1 || echo exit=$?");
        let said = lab.gateway.run(&run);
        assert!(said.contains("limits.connections = 451: 1000 descriptors (ulimit -Hn) carry 450"), "{said}");
        assert!(said.contains("exit=69"), "{said}");
        assert_eq!(lab.gateway.run("nft list tables"), "");
    });
}
