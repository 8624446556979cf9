//! From the start to the stop of the whole program. WIRING.
mod gate;
mod interception;
mod listeners;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use socket2::Socket;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::config::{Config, LogTarget};
use crate::dial::Memory;
use crate::exit::{Exit, Fatal};
use crate::kernel::Kernel;
use crate::limits::{self, Occupancy};
use crate::listener;
use crate::lock::Lock;
use crate::log;
use crate::metrics::Counters;
use crate::paths::{self, keep::Paths};
use crate::shared::Shared;
use crate::wan::{self, keep::Mirror};
use crate::worker;
use gate::Guard;
pub(crate) use gate::Reserve;
pub use interception::Interception;

/// What a daemon is to do.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What the operator asked for.
    pub config: Config,
    /// Where to listen. Where there are several, an IPv6 one is left out on a host without IPv6.
    pub listen: Vec<SocketAddr>,
    /// How connections come to the listeners.
    pub interception: Interception,
    /// SIGHUP has the log opened again; else it ends the process, as it does by default.
    pub reopens_log: bool,
}

impl From<Config> for Setup {
    fn from(config: Config) -> Self {
        Self {
            listen: listener::addresses(&config).to_vec(),
            interception: if config.rules.manage { Interception::Managed } else { Interception::Expected },
            reopens_log: matches!(config.log.target, LogTarget::File(_)),
            config,
        }
    }
}

/// Runs until SIGINT or SIGTERM; calls `started` when it listens and takes connections.
///
/// # Errors
/// Whatever keeps it from starting, `started` too; then nothing is left behind.
pub fn run(setup: Setup, started: impl FnOnce() -> Result<(), Fatal>) -> Result<(), Fatal> {
    let _lock = Lock::take()?;
    let config = &setup.config;
    let occupancy = Occupancy::new(most_sessions(config)?);
    let kernel = Kernel::probe(config)?;
    let listeners = listeners::bind_all(&setup, &kernel)?;
    let log = log::init(&config.log)?;
    for degraded in &kernel.degraded {
        tracing::warn!("{degraded}");
    }
    let ours = interception::begin(config, setup.interception)?;
    let mirror = Mirror::start(config, setup.interception == Interception::Managed);
    let paths = Paths::start(config);
    let counters = Counters::default();
    let workers = listeners.len();
    let Setup { config, listen, reopens_log, .. } = setup;
    let memory = Memory::default();
    let shared = Arc::new(Shared { config, kernel, counters, memory, occupancy, gate: Notify::new() });
    let served = serve(&shared, listeners, (mirror, paths), reopens_log.then_some(&log), || {
        started()?;
        let limit = shared.occupancy.limit();
        let listen: Vec<_> = listen.iter().map(SocketAddr::to_string).collect();
        tracing::info!(
            "ready: {workers} workers, at most {limit} sessions, listening on {}",
            listen.join(" and ")
        );
        Ok(())
    });
    tracing::info!("stopped: {}", shared.counters);
    wan::keep::clear(shared.config.rules.own_mark);
    paths::keep::clear(&shared.config);
    served.and(interception::end(&shared.config, ours))
}

/// Raises the descriptor limit as far as it goes, and sees what it carries.
fn most_sessions(config: &Config) -> Result<u32, Fatal> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Should this fail, the limit stays as it was, and that is what counts.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let carried = limits::carried_by(descriptors);
    match config.limits.connections.map_or(carried, |asked| asked.get()) {
        asked if asked > carried => Err(Fatal::new(
            Exit::Unavailable,
            format!(
                "limits.connections = {asked}: {descriptors} descriptors (ulimit -Hn) carry {carried}; \
                 raise the limit (systemd: LimitNOFILE=) or lower the key"
            ),
        )),
        asked => Ok(asked),
    }
}

fn serve(
    shared: &Arc<Shared>,
    listeners: Vec<Vec<Socket>>,
    (mirror, paths): (Option<Mirror>, Option<Paths>),
    hangup: Option<&log::Guard>,
    started: impl FnOnce() -> Result<(), Fatal>,
) -> Result<(), Fatal> {
    let rt = runtime::Builder::new_current_thread().enable_all().build().map_err(os("making the runtime"))?;
    rt.block_on(async {
        // Before anybody is told, so that a signal that comes right behind it is not deadly.
        let signals = Signals::watch(hangup).map_err(os("watching for signals"))?;
        let (stop, stopping) = watch::channel(false);
        let start = |(n, listeners)| worker::start(n, listeners, shared, &stopping);
        let workers: Result<Vec<_>, _> = listeners.into_iter().enumerate().map(start).collect();
        let workers = workers.map_err(os("starting a worker thread"))?;
        mirror.map(|mirror| tokio::spawn(mirror.follow()));
        paths.map(|paths| tokio::spawn(paths.follow()));
        let began = started();
        if began.is_ok() {
            tell_service_manager(NotifyState::Ready);
            signals.until_the_end(shared).await;
            tell_service_manager(NotifyState::Stopping);
            interception::admit_no_more(&shared.config);
        }
        let _ = stop.send(true);
        let failed = workers.into_iter().filter_map(|worker| worker.join().err()).count();
        began?;
        if failed > 0 { Err(Fatal::new(Exit::Software, "a worker thread failed")) } else { Ok(()) }
    })
}

/// What can reach the daemon from outside.
struct Signals<'l> {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<(Signal, &'l log::Guard)>,
}

impl<'l> Signals<'l> {
    fn watch(hangup: Option<&'l log::Guard>) -> io::Result<Self> {
        let hangup = hangup.map(|log| signal(SignalKind::hangup()).map(|hangup| (hangup, log)));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup.transpose()?,
        })
    }

    async fn until_the_end(mut self, shared: &Shared) {
        let mut guard = Guard::new();
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return tracing::info!("SIGINT: stopping"),
                _ = self.terminate.recv() => return tracing::info!("SIGTERM: stopping"),
                log = hung_up(&mut self.hangup) => log.reopen(),
                () = shared.gate.notified() => guard.look(shared),
                () = guard.later(shared) => guard.look_again(shared),
            }
        }
    }
}

async fn hung_up<'l>(hangup: &mut Option<(Signal, &'l log::Guard)>) -> &'l log::Guard {
    match hangup {
        Some((signal, log)) => {
            signal.recv().await;
            log
        }
        None => std::future::pending().await,
    }
}

/// Type=notify; without a service manager it does nothing.
fn tell_service_manager(state: NotifyState<'_>) {
    if let Err(err) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell the service manager (NOTIFY_SOCKET): {err}");
    }
}

/// Turns the failure of a system call into the end of the program.
fn os<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Fatal {
    move |err| Fatal::new(Exit::OsErr, format!("{what}: {err}"))
}
