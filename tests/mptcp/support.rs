//! Two boxes that use the path `wan1` beside the routed one, and their observable state.
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use lab::stream::{self, Pace, Sum};
use lab::wan::{Link, Loss, Profile, Rate};
use lab::{Daemon, Host, Ip, Pair, becomes, peers};

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
pub const SOON: Duration = Duration::from_secs(30);
pub const PORT: u16 = 8000;
pub const NEAR: [&str; 2] = ["server.mptcp=true", "mptcp.path=[{device='wan1'}]"];
pub const FAR: [&str; 2] = ["client.mptcp=true", "mptcp.path=[{device='wan1', announce=true}]"];

/// The two running boxes.
pub struct Boxes {
    pub near: Daemon,
    pub far: Daemon,
}

impl Boxes {
    pub fn start(pair: &Pair) -> Self {
        Self { near: Daemon::start(&pair.near, BIN, &NEAR), far: Daemon::start(&pair.far, BIN, &FAR) }
    }
}

/// Builds two equal paths.
pub fn two_paths(mbit: u64) -> Pair {
    let path = Link::even(Duration::from_millis(20), Rate::mbit(mbit), Loss::None);
    Pair::new(&Profile { name: "two paths", paths: vec![path; 2], seed: 1 })
}

/// Returns the endpoints of `host` from `ip mptcp`, without the numbers that the kernel chose.
pub fn endpoints(host: &Host) -> Vec<String> {
    let text = host.ip("mptcp endpoint show");
    let without_id = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let at = words.iter().position(|word| *word == "id").unwrap_or(words.len());
        [&words[..at], words.get(at + 2..).unwrap_or_default()].concat().join(" ")
    };
    let lines = text.lines().filter(|line| !line.contains("implicit")).map(without_id);
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

pub fn limits(host: &Host) -> String {
    host.ip("mptcp limits show").trim().to_owned()
}

/// Waits until `host` has exactly these endpoints.
pub fn become_endpoints(host: &Host, expected: &[&str]) {
    let came = becomes(SOON, || endpoints(host) == expected);
    assert!(came, "{host}: {:?}, not {expected:?}", endpoints(host));
}

/// Waits until the daemon has logged this text.
pub fn says(daemon: &Daemon, text: &str) {
    assert!(becomes(SOON, || daemon.log().contains(text)), "{text} is not in:\n{}", daemon.log());
}

/// Sends `up` bytes from a client to a server and `down` bytes back, checks both, and calls `during` meanwhile. The end
/// that sends less closes its direction last, because the kernel adds no path to a connection of which one direction
/// has ended.
pub fn transfer(pair: &Pair, ip: Ip, [up, down]: [u64; 2], during: impl FnOnce()) {
    let (client, server, _) = peers::pair(&pair.client, &pair.server, pair.server_at(ip, PORT));
    let side = |stream: &TcpStream, seed, bytes, last: bool| -> [Sum; 2] {
        std::thread::scope(|scope| {
            let came = scope.spawn(|| stream::receive(stream, Pace::FULL).unwrap());
            let sent = stream::send(stream, seed, bytes, Pace::FULL).unwrap();
            let came = if last { Ok(came.join().unwrap()) } else { Err(came) };
            stream.shutdown(Shutdown::Write).unwrap();
            [sent, came.unwrap_or_else(|came| came.join().unwrap())]
        })
    };
    std::thread::scope(|scope| {
        let client = scope.spawn(|| side(&client, 1, up, up < down));
        let server = scope.spawn(|| side(&server, 2, down, down < up));
        during();
        let ([up, down], [down_sent, up_came]) = (client.join().unwrap(), server.join().unwrap());
        assert_eq!((up_came, down), (up, down_sent), "what came to the server and to the client");
    });
}

/// Returns how many bytes a box has sent by each of its two paths.
pub fn sent(host: &Host) -> [u64; 2] {
    ["wan0", "wan1"].map(|device| {
        let text = host.ip(&format!("-s -j link show {device}"));
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
    })
}
