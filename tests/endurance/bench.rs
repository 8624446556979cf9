//! Shared parts of these tests: a box with a daemon, an echo server, and the fates of new connections.
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use lab::peers::{Server, echo};
use lab::{Daemon, Ip, Lab};

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
pub const SOON: Duration = Duration::from_secs(30);
/// The number of descriptors that the idle pipes of two workers may use.
pub const PIPES: usize = 16;

/// The fate of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is intercepted and answered.
    Served,
    /// It is routed and answered.
    Routed,
    /// It is reset.
    Reset,
}

pub struct Bench {
    pub lab: Lab,
    pub daemon: Daemon,
    pub server: Server,
}

impl Bench {
    pub fn new(settings: &[&str]) -> Self {
        let lab = Lab::new();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        let daemon = Daemon::start(&lab.gateway, BIN, settings);
        Self { lab, daemon, server }
    }

    pub fn connect(&self) -> TcpStream {
        self.lab.client().connect(self.server.address).unwrap()
    }

    /// Opens `count` connections and checks that they are intercepted.
    pub fn sessions(&self, count: usize) -> Vec<TcpStream> {
        let all: Vec<_> = (0..count).map(|_| self.connect()).collect();
        for stream in &all {
            speaks(stream).unwrap();
            assert_eq!(self.lab.legs(stream), 2);
        }
        all
    }

    /// Opens a connection, uses it once, and returns its fate. Panics if it hangs.
    pub fn newcomer(&self) -> Fate {
        let answered = self.lab.client().connect(self.server.address).and_then(|stream| {
            speaks(&stream)?;
            Ok(self.lab.legs(&stream))
        });
        match answered.map_err(|err| err.kind()) {
            Ok(2) => Fate::Served,
            Ok(0) => Fate::Routed,
            Err(ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused | ErrorKind::BrokenPipe) => {
                Fate::Reset
            }
            other => panic!("neither served nor routed nor reset: {other:?}\n{}", self.daemon.log()),
        }
    }

    /// Returns whether new connections are routed, according to `nft`.
    pub fn gate_is_closed(&self) -> bool {
        self.lab.gateway.run("nft list chain inet tcp_intercept gate").contains("goto full")
    }

    pub fn pid(&mut self) -> u32 {
        self.daemon.worker()
    }
}

pub fn speaks(mut stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"hello")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

/// Returns the counter `name` in the last line of a daemon's log.
pub fn counter(log: &str, name: &str) -> usize {
    let counters = log.split("stopped: ").last().unwrap();
    let words = counters.split(|c: char| c == '"' || c.is_whitespace());
    let value = words.filter_map(|word| word.split_once('=')).find(|(key, _)| *key == name);
    value.unwrap_or_else(|| panic!("no {name} in {counters}")).1.parse().unwrap()
}

pub fn descriptors(daemon: &mut Daemon) -> usize {
    let pid = daemon.worker();
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Returns the worker's resident memory in KiB.
pub fn rss(daemon: &mut Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.worker())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Measures the processor time of a process from its construction on.
pub struct Work {
    pid: u32,
    since: Instant,
    before: Duration,
}

impl Work {
    pub fn of(pid: u32) -> Self {
        Self { pid, since: Instant::now(), before: processor_time(pid) }
    }

    /// Checks that the process does not spin: a spinning thread uses a whole processor, or its share of one.
    pub fn is_little(&self) {
        let (took, used) = (self.since.elapsed(), processor_time(self.pid) - self.before);
        assert!(used < took / 2, "{used:?} of {took:?} on the processor");
    }
}

/// Returns the processor time from fields 14 and 15 of /proc/PID/stat, in ticks of 10 ms: proc(5).
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_ascii_whitespace().skip(11);
    Duration::from_millis(10 * fields.take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>())
}
