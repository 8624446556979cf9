//! The worker process, which carries the sessions. The guardian starts it and shares its descriptor table with it. The
//! worker resumes the sessions of the previous one, and may die at any time. WIRING.
mod host;
mod orders;
mod prepared;
mod thread;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::thread::set_name;
use sys::{Registered, Unowned};

use crate::exit::{Exit, Fatal};
use crate::host::kernel::Kernel;
use crate::log::Log;
use crate::process::daemon::listeners::Listeners;
use crate::process::daemon::{Setup, os};
use crate::process::takeover::{Death, Found, Inventory};
use crate::session::listener;
use crate::session::shared::Shared;
use crate::state::crash::{self, Point};
use crate::state::metrics::Counters;
use crate::state::table::Table;

pub use orders::{Channel, Message, Order, Report};
pub use prepared::Prepared;

/// What the guardian passes to a worker. It belongs to the guardian: the worker has a copy in its memory, and must drop
/// nothing of it.
pub struct WorkerConfig<'a> {
    /// The setup of the daemon.
    pub setup: &'a Setup,
    /// The features of the kernel.
    pub kernel: &'a Arc<Kernel>,
    /// The listeners: one list for each thread.
    pub listeners: &'a Listeners,
    /// The session table.
    pub table: Table,
    /// The highest number of sessions.
    pub limit: u32,
    /// Connects the worker with the guardian.
    pub channel: &'a Channel,
    /// The pidfd of the guardian: readable when the guardian has ended.
    pub guardian: &'a Registered<OwnedFd>,
    /// The log.
    pub log: &'a Log,
    /// Whether the daemon removes the rules when it ends.
    pub ours: bool,
    /// The daemon drains: new connections are routed already.
    pub draining: bool,
    /// Why the worker starts.
    pub reason: StartReason,
    /// When the guardian saw the previous worker end.
    pub since: Instant,
}

/// Why a worker starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartReason {
    /// The worker is the daemon's first one.
    Start,
    /// The previous worker has died; the text describes how.
    Died(Death, String),
    /// The program was upgraded from this version.
    Upgraded(String),
    /// An upgrade failed, and this program continues.
    NotUpgraded,
}

impl StartReason {
    fn death(&self) -> Death {
        match self {
            Self::Start | Self::Upgraded(_) | Self::NotUpgraded => Death::None,
            Self::Died(death, _) => *death,
        }
    }
}

/// The name of a worker's process.
const NAME: &std::ffi::CStr = c"tcp-int-worker";
/// The interval of a worker's heartbeats.
const TICK: Duration = Duration::from_secs(1);

/// Runs a worker until it is told to end; returns its exit status. It drops nothing that it owns: sessions end on
/// purpose, or not at all.
pub fn run(config: &WorkerConfig<'_>) -> u8 {
    let exit = work(config).unwrap_or_else(|fatal| {
        tracing::error!("a worker cannot start: {fatal}");
        fatal.exit
    });
    config.log.drain();
    exit as u8
}

fn work(config: &WorkerConfig<'_>) -> Result<Exit, Fatal> {
    let WorkerConfig { setup, table, ref reason, .. } = *config;
    let own_mark = setup.config.rules.own_mark;
    // The name is for ps(1) and pgrep(1). The worker also runs without it.
    let _ = set_name(NAME);
    crash::arm(table.header().crash_points(), *reason == StartReason::Start);
    crash::at(Point::Start);
    let open = Unowned::list().map_err(os("listing the descriptors of the previous worker"))?;
    let inventory = Inventory::take(table, open, own_mark);
    let shared = Arc::new(Shared::new(setup.config.clone(), Arc::clone(config.kernel), config.limit, table));
    let prepared = Prepared::new(&shared, config.listeners, config.channel, config.guardian)?;
    let own: Vec<SocketAddr> =
        config.listeners.iter().flatten().filter_map(|listener| listener::address(listener).ok()).collect();
    // From here on the worker owns sessions, and no step may fail: dropping the sessions would reset all of them.
    let found = inventory.take_over(reason.death(), &own);
    crash::at(Point::TakenOver);
    let resumed = Resumed::of(&found, config);
    resumed.count(&shared.counters);
    prepared.serve(&shared, found, config, &resumed)
}

/// What a worker reports when it has started.
struct Resumed {
    reason: StartReason,
    since: Instant,
    sessions: u64,
    unregistered: u64,
    lost: u64,
    given_up: u64,
}

impl Resumed {
    fn of(found: &Found, config: &WorkerConfig) -> Self {
        Self {
            reason: config.reason.clone(),
            since: config.since,
            sessions: found.sessions.len() as u64,
            unregistered: found.unregistered.len() as u64,
            lost: found.lost,
            given_up: found.given_up,
        }
    }

    fn count(&self, counters: &Counters) {
        counters.taken_up.add(self.sessions);
        counters.not_taken_up.add(self.lost);
        counters.given_up.add(self.given_up);
        match &self.reason {
            StartReason::Died(..) => counters.crashes.count(),
            StartReason::Upgraded(_) => counters.upgrades.count(),
            StartReason::Start | StartReason::NotUpgraded => {}
        }
    }

    fn log(&self) {
        let Self { reason, since, sessions, unregistered, lost, given_up } = self;
        let took = since.elapsed();
        let mut result = format!("resumed {sessions} sessions in {took:?}");
        for (count, what) in [
            (unregistered, "started {} that had just been accepted"),
            (lost, "reset {} damaged ones"),
            (given_up, "reset {} in which two workers in a row have crashed"),
        ] {
            if *count > 0 {
                result.push_str(&format!("; {}", what.replace("{}", &count.to_string())));
            }
        }
        match reason {
            StartReason::Start => {}
            StartReason::Died(_, how) => tracing::error!("a worker {how}: {result}"),
            StartReason::Upgraded(before) => {
                tracing::info!("upgraded from {before} to {}: {result}", env!("CARGO_PKG_VERSION"));
            }
            StartReason::NotUpgraded => tracing::info!("not upgraded: {result}"),
        }
    }
}
