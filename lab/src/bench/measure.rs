//! The measurements, each on a way that has just been started.
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::scene::Scene;
use super::ways::Started;
use crate::load::{Bulk, Connects, Echo, Idle, RoundTrips};
use crate::wait::wait_until;

/// How long the load runs before it is measured.
const WARM_UP: f64 = 0.25;
/// Round trips and connections at once.
const AT_ONCE: usize = 64;

/// More than any way needs for what is only the beginning.
const A_WHILE: Duration = Duration::from_secs(300);

/// One kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measurement {
    /// So many streams from the server to the client.
    Bulk {
        /// At once.
        streams: usize,
    },
    /// 64-byte messages and answers on 64 connections.
    RoundTrips,
    /// Connect, ask, close.
    Connections,
    /// Round trips beside idle sessions.
    Idle,
}

/// The name of a figure, and what was measured.
pub(super) type Measured = (String, f64);

impl Measurement {
    /// All of them, in the order in which they are done.
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

/// What `counter` grows by in a second, after the load has warmed up.
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
    assert_eq!(bulk.ended(), 0, "{on}: bulk streams have ended by themselves");
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
    // From here on every port is one that has been used a moment ago.
    wait_until("every port has been used once", A_WHILE, || connects.turns() > 0);
    let rate = rate(scene, || connects.done());
    let outcome = connects.finish();
    outcome.why.iter().for_each(|why| eprintln!("{on}: a connection failed: {why}"));
    let tried = outcome.done + outcome.failed;
    let named = [("conn", rate), ("conn-tried", tried as f64), ("conn-failed", outcome.failed as f64)];
    named.map(|(name, value)| (name.to_owned(), value)).into()
}

/// Round trips beside more and more idle sessions, and what those cost the process. The memory is what it has after the
/// round trips: what it takes for itself only once is then there before the first idle session is.
fn idle(scene: &Scene, on: &Started<'_>) -> Vec<Measured> {
    let address = on.server(7500);
    let _server = Echo::start(&scene.lab.server, address);
    let (mut idle, mut measured) = (Idle::default(), Vec::new());
    let mut empty = None;
    for count in &scene.plan.idle {
        // These first: near its limit a box may let the last ones pass.
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

/// What a process has used of the processors, all its threads together.
fn cpu_seconds(pid: u32) -> f64 {
    /// USER_HZ, in which /proc counts (man 5 proc); 100 on every architecture that Debian has.
    const TICKS: f64 = 100.0;
    let stat = read_proc(pid, "stat");
    // The name, in parentheses, may have spaces in it; utime and stime are fields 14 and 15, the name is the second.
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
