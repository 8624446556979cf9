//! Shared parts of the Fast Open tests: two boxes that use TCP Fast Open between each other.
#![allow(dead_code, reason = "each of the test files uses its part")]
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use lab::{Daemon, Host, Pair, stream, words};
use rustix::process::Signal;

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
pub const SOON: Duration = Duration::from_secs(30);
pub const PORT: u16 = 8000;
/// The size of a request: more than a SYN carries, but less than a socket accepts at once without a reader.
pub const FIRST: usize = 10_000;
pub const NEAR: &str = "server.fast-open=true";
pub const FAR: &str = "client.fast-open=true";
pub const NEAR_NO_COOKIE: &str = "server.fast-open=\"no-cookie\"";
pub const FAR_NO_COOKIE: &str = "client.fast-open=\"no-cookie\"";

/// The two running boxes.
pub struct Boxes {
    pub near: Daemon,
    pub far: Daemon,
}

impl Boxes {
    /// Starts both boxes with these settings, and counts the SYNs between them.
    pub fn start(pair: &Pair, near: &[&str], far: &[&str]) -> Self {
        watch(&pair.far);
        Self { near: Daemon::start(&pair.near, BIN, near), far: Daemon::start(&pair.far, BIN, far) }
    }

    /// Opens a connection that the near box accepts only after the client has sent data. The data is therefore in time
    /// for the SYN, independent of timing.
    pub fn spoken(
        &self,
        connect: impl FnOnce() -> std::io::Result<TcpStream>,
        speak: impl FnOnce(&TcpStream) -> std::io::Result<()>,
    ) -> TcpStream {
        self.near.pause_worker();
        let stream = connect().unwrap();
        speak(&stream).unwrap();
        self.near.signal_worker(Signal::CONT);
        stream
    }

    /// Sends a request and closes the direction, then reads the answer to its end.
    pub fn ask(&self, client: &Host, to: SocketAddr, request: &[u8]) -> (SocketAddr, Vec<u8>) {
        let (first, rest) = request.split_at(request.len().min(FIRST));
        let mut stream = self.spoken(|| client.connect(to), |mut stream| stream.write_all(first));
        stream.write_all(rest).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        (stream.local_addr().unwrap(), answer)
    }

    /// Returns how the near box dialled and how the far box accepted, from their close records.
    pub fn openings(&self, from: SocketAddr, to: SocketAddr) -> String {
        let near = words(&self.near.record_of(from, to), "server_fast_open");
        let far = words(&self.far.record_of(from, to), "client_fast_open");
        format!("{near} {far}")
    }
}

/// Counts the SYNs from the near box by their content. A SYN without data has at most 100 bytes. If a request for a
/// cookie yields none, the kernel tries the option's older number 254 alternately: tcp_fastopen_cache_set() in
/// net/ipv4/tcp_metrics.c.
pub fn watch(far: &Host) {
    far.nft(
        "table inet watch {
            counter syns { }
            counter options { }
            counter data { }
            chain arriving {
                type filter hook prerouting priority -450; iifname != wan0 accept
                tcp flags & (syn|ack) == syn counter name syns
                tcp flags & (syn|ack) == syn tcp option fastopen exists counter name options
                tcp flags & (syn|ack) == syn tcp option 254 exists counter name options
                tcp flags & (syn|ack) == syn meta length > 100 counter name data
            }
        }",
    );
}

/// Returns how many SYNs have arrived at the far box since the last call: all, those with the option, those with data.
pub fn syns(far: &Host) -> [u64; 3] {
    let listing = far.run("nft -j reset counters table inet watch");
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    ["syns", "options", "data"].map(|name| {
        let counters = listing["nftables"].as_array().unwrap().iter();
        let counter = counters.map(|item| &item["counter"]).find(|counter| counter["name"] == name);
        counter.unwrap()["packets"].as_u64().unwrap()
    })
}

/// Applies `rule` to all packets from the near box that arrive at the far box.
pub fn obstruct(far: &Host, rule: &str) {
    far.nft(&format!(
        "table inet obstruction {{
            chain arriving {{
                type filter hook prerouting priority -440; iifname wan0 {rule}
            }}
        }}"
    ));
}

pub fn clear(host: &Host, table: &str) {
    host.run(&format!("nft delete table inet {table}"));
}

/// Returns a request of `bytes` random bytes.
pub fn request(bytes: usize) -> Vec<u8> {
    let mut request = vec![0; bytes];
    stream::Random::new(7).fill(&mut request);
    request
}
