//! The measurements. Each starts the way anew.
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::scene::Scene;
use super::ways::Started;
use crate::load::{Bulk, Connects, Echo, Idle, RoundTrips};
use crate::wait::wait_until;

/// How long the load runs before the measurement, in seconds.
const WARM_UP: f64 = 0.25;
/// The number of concurrent round trips or connections.
const AT_ONCE: usize = 64;

/// The time limit of the preparation, longer than any way needs.
const A_WHILE: Duration = Duration::from_secs(300);

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measurement {
    /// Streams from the server to the client.
    Bulk {
        /// The number of concurrent streams.
        streams: usize,
    },
    /// 64-byte messages and answers on 64 connections.
    RoundTrips,
    /// Repeatedly connect, ask and close.
    Connections,
    /// Round trips beside idle sessions.
    Idle,
}

/// The name of a figure and its measured value.
pub(super) type Measured = (String, f64);

impl Measurement {
    /// All measurements, in the order in which they run.
    pub const ALL: [Self; 5] = [
        Self::Bulk { streams: 1 },
        Self::Bulk { streams: 8 },
        Self::RoundTrips,
        Self::Connections,
        Self::Idle,
    ];

    pub(super) fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|measurement| measurement.to_string() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(|measurement| measurement.to_string()).join(", ");
            format!("one or more of {names}, with commas between")
        })
    }

    pub(super) fn take(self, scene: &Scene, on: &Started<'_>) -> Vec<Measured> {
        match self {
            Self::Bulk { streams } => bulk(scene, on, streams),
            Self::RoundTrips => vec![("rtt".to_owned(), round_trips(scene, on))],
            Self::Connections => connections(scene, on),
            Self::Idle => idle(scene, on),
        }
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk { streams } => write!(f, "bulk{streams}"),
            Self::RoundTrips => f.write_str("rtt"),
            Self::Connections => f.write_str("conn"),
            Self::Idle => f.write_str("idle"),
        }
    }
}

/// Returns the growth of `counter` per second, after the load has warmed up.
fn rate(scene: &Scene, counter: impl Fn() -> u64) -> f64 {
    std::thread::sleep(Duration::from_secs_f64(WARM_UP));
    let (start, before) = (Instant::now(), counter());
    std::thread::sleep(Duration::from_secs_f64(scene.plan.seconds));
    (counter() - before) as f64 / start.elapsed().as_secs_f64()
}

fn bulk(scene: &Scene, on: &Started<'_>, streams: usize) -> Vec<Measured> {
    let address = on.server(7200);
    let before = on.pid().map(cpu_seconds);
    let bulk = Bulk::start(scene.lab.client(), &scene.lab.server, address, streams);
    let bytes = rate(scene, || bulk.bytes());
    assert_eq!(bulk.ended(), 0, "{on}: bulk streams have ended unexpectedly");
    let used = on.pid().map(cpu_seconds).zip(before).map(|(after, before)| after - before);
    let gigabytes = bulk.bytes() as f64 / 1e9;
    let cpu = used.map(|used| (format!("bulk{streams}-cpu"), used / gigabytes));
    std::iter::once((format!("bulk{streams}"), bytes * 8.0 / 1e9)).chain(cpu).collect()
}

fn round_trips(scene: &Scene, on: &Started<'_>) -> f64 {
    let address = on.server(7300);
    let _server = Echo::start(&scene.lab.server, address);
    asked(scene, on, opened(scene, address, AT_ONCE))
}

fn opened(scene: &Scene, address: SocketAddr, count: usize) -> Idle {
    let mut idle = Idle::default();
    idle.grow(scene.lab.client(), &scene.addresses, address, count);
    idle
}

fn asked(scene: &Scene, on: &Started<'_>, connections: Idle) -> f64 {
    let asking = RoundTrips::start(scene.lab.client(), connections);
    let rate = rate(scene, || asking.done());
    let lost = asking.lost();
    assert!(lost.is_empty(), "{on}: connections have broken during round trips: {lost:?}");
    rate
}

fn connections(scene: &Scene, on: &Started<'_>) -> Vec<Measured> {
    let address = on.server(7400);
    let _server = Echo::start(&scene.lab.server, address);
    let from = (scene.addresses.clone(), scene.plan.ports);
    let connects = Connects::start(scene.lab.client(), from, address, AT_ONCE);
    // From here on, every port was used a moment ago.
    wait_until("every port has been used once", A_WHILE, || connects.turns() > 0);
    let rate = rate(scene, || connects.done());
    let outcome = connects.finish();
    outcome.why.iter().for_each(|why| eprintln!("{on}: a connection failed: {why}"));
    let tried = outcome.done + outcome.failed;
    let named = [("conn", rate), ("conn-tried", tried as f64), ("conn-failed", outcome.failed as f64)];
    named.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Measures round trips beside increasing numbers of idle sessions, and what the sessions cost the process. Memory is
/// read after the round trips, so one-time allocations are already included before the first idle session.
fn idle(scene: &Scene, on: &Started<'_>) -> Vec<Measured> {
    let address = on.server(7500);
    let _server = Echo::start(&scene.lab.server, address);
    let (mut idle, mut measured) = (Idle::default(), Vec::new());
    let mut empty = None;
    for count in &scene.plan.idle {
        // Open these first: near its limit a box may route the last ones.
        let asking = opened(scene, address, AT_ONCE);
        idle.grow(scene.lab.client(), &scene.addresses, address, *count);
        let sessions = on.sessions().saturating_sub(AT_ONCE) as f64;
        measured.push((format!("rtt-{count}"), asked(scene, on, asking)));
        let Some(memory) = on.pid().map(resident_kib) else { continue };
        let empty = *empty.get_or_insert(memory);
        if sessions > 0.0 {
            measured.push((format!("kib-{count}"), (memory - empty) / sessions));
            measured.push((format!("sessions-{count}"), sessions));
        }
    }
    measured
}

/// Returns the processor time of all threads of a process, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    /// USER_HZ, the unit of /proc (man 5 proc). It is 100 on every architecture of Debian.
    const TICKS: f64 = 100.0;
    let stat = read_proc(pid, "stat");
    // The name, in parentheses, may contain spaces. It is field 2; utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace());
    let times = fields.into_iter().flatten().skip(11).take(2);
    times.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

fn resident_kib(pid: u32) -> f64 {
    let status = read_proc(pid, "status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or_else(|| panic!("/proc/{pid}/status has no VmRSS:\n{status}"))
}

fn read_proc(pid: u32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"))
}
