//! A box under load, and the disturbances of its daemon.
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lab::peers::{self, Server};
use lab::traffic::{Amount, Traffic};
use lab::{BOTH, Daemon, Host, Lab, wait_until};
use rustix::process::Signal;

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
pub const SOON: Duration = Duration::from_secs(30);
pub const MANY: &str = "limits.crashes=1000";

/// An amount of every kind that suits two cores.
pub const SOME: Amount = Amount { bulk: 24, interactive: 150, connecting: 2, pulses: 4 };

/// A small amount of every kind.
pub const FEW: Amount = Amount { bulk: 4, interactive: 10, connecting: 1, pulses: 1 };

/// The variable that names crash points.
pub const CRASH_AT: &str = "TCP_INTERCEPT_CRASH_AT";

/// Sends a question to an echo server and checks the answer.
pub fn speaks(stream: &TcpStream) {
    tries_to_speak(stream).unwrap();
}

/// Sends a question to an echo server that may not answer.
pub fn tries_to_speak(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

/// Starts an echo server and opens a connection to it, for each protocol.
pub fn echoing(lab: &Lab) -> (Vec<Server>, Vec<TcpStream>) {
    let servers: Vec<_> =
        BOTH.iter().map(|ip| Server::start(&lab.server, lab.server_at(*ip, 7), peers::echo)).collect();
    let streams: Vec<_> =
        servers.iter().map(|server| lab.client().connect(server.address).unwrap()).collect();
    streams.iter().for_each(speaks);
    (servers, streams)
}

/// Starts traffic through a box, over both protocols.
pub fn traffic(lab: &Lab, amount: Amount) -> Traffic {
    Traffic::start(lab.client(), &lab.server, &BOTH.map(|ip| lab.server_at(ip, 9000)), amount)
}

/// Kills the daemon's worker, and waits until another worker has resumed all sessions.
pub fn kill_worker(daemon: &Daemon) {
    let before = takeovers(daemon);
    daemon.signal_worker(Signal::KILL);
    wait_until("another worker", SOON, || takeovers(daemon) > before);
}

/// Returns how often a worker has resumed the sessions of a previous one.
pub fn takeovers(daemon: &Daemon) -> usize {
    daemon.log().matches(": resumed ").count()
}

/// Ends the traffic, and checks that no session failed and that at least `at_least` connections were made.
pub fn went_well(traffic: Traffic, at_least: u64, daemon: &Daemon) {
    let outcome = traffic.end();
    assert_eq!(outcome.failures, Vec::<String>::new(), "{}", said(daemon));
    assert!(outcome.connected >= at_least, "{outcome:?}");
}

/// Returns the log without its close records.
pub fn said(daemon: &Daemon) -> String {
    daemon.log().lines().filter(|line| !line.contains("\"closed\"")).collect::<Vec<_>>().join("\n")
}

/// Returns the counter `name` in the last line of a daemon's log.
pub fn counter(log: &str, name: &str) -> u64 {
    let counters = log.split("stopped: ").last().unwrap();
    let words = counters.split(|c: char| c == '"' || c.is_whitespace());
    let value = words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name);
    value.unwrap_or_else(|| panic!("no {name} in {counters}")).1.parse().unwrap()
}

/// Returns how many descriptors guardian and worker share.
pub fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.worker())).unwrap().count()
}

/// Runs the program on `host` and returns its output and exit status.
pub fn command(host: &Host, arguments: &str) -> String {
    host.run(&format!("{BIN} {arguments} 2>&1 && echo exit=0 || echo exit=$?"))
}
