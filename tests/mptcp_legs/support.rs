//! A connection through two boxes, the paths between them, and obstructions on the paths.
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use lab::stream::{self, Pace};
use lab::{Daemon, Host, Ip, Pair};
use serde_json::Value;

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
pub const SOON: Duration = Duration::from_secs(30);
pub const PORT: u16 = 8000;
pub const NEAR: &str = "server.mptcp=true";
pub const FAR: &str = "client.mptcp=true";
pub const BYTES: u64 = 16 << 20;

/// A connection through the boxes, with both ends.
pub struct Line {
    pub client: TcpStream,
    pub server: TcpStream,
    pub from: SocketAddr,
    pub to: SocketAddr,
}

impl Line {
    pub fn new(pair: &Pair, ip: Ip) -> Self {
        let to = pair.server_at(ip, PORT);
        let (client, server, from) = lab::peers::pair(&pair.client, &pair.server, to);
        Self { client, server, from, to }
    }

    /// Sends in both directions at the same time, to the end of each.
    pub fn exchange(self) -> (SocketAddr, SocketAddr) {
        stream::exchange(&self.client, &self.server, BYTES, Pace::FULL);
        (self.from, self.to)
    }

    /// Sends data over the connection, ends it, and returns the record that `daemon` writes.
    pub fn record(self, daemon: &Daemon) -> Value {
        let (from, to) = self.exchange();
        daemon.record_of(from, to)
    }
}

/// Lets the two boxes use all their paths as design decision 6 says: the far box announces its address on each further
/// path with a port, and the near box accepts that.
pub fn join_paths(pair: &Pair, paths: u8) {
    pair.near.run("ip mptcp limits set subflows 4 add_addr_accepted 4");
    pair.far.run("ip mptcp limits set subflows 4");
    for n in 1..paths {
        let at = pair.far_at(n, Ip::V4, 5001);
        let (ip, port) = (at.ip(), at.port());
        pair.far.run(&format!("ip mptcp endpoint add {ip} dev wan{n} id {n} signal port {port}"));
        let ip = pair.near_at(n, Ip::V4, 0).ip();
        pair.near.run(&format!("ip mptcp endpoint add {ip} dev wan{n} id {n} subflow"));
    }
}

/// Returns the subflows of `host` to the far box and the server, one line each.
pub fn subflows(host: &Host) -> Vec<String> {
    let shown = host.run("ss -HtnioeO state established");
    shown.lines().filter(|line| line.contains("tcp-ulp-mptcp")).map(str::to_owned).collect()
}

/// Applies `rule` to all packets from the near box that arrive at the far box.
pub fn obstruct(pair: &Pair, rule: &str) {
    pair.far.nft(&format!(
        "table inet obstruction {{
            chain arriving {{
                type filter hook prerouting priority -440; iifname wan0 {rule}
            }}
        }}"
    ));
}

pub fn clear(pair: &Pair) {
    pair.far.run("nft delete table inet obstruction");
}
