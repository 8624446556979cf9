//! From the start to the stop of the whole program. WIRING.
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use socket2::Socket;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use crate::config::{Config, LogTarget};
use crate::exit::{Exit, Fatal};
use crate::kernel::Kernel;
use crate::limits::{self, Occupancy};
use crate::listener;
use crate::lock::Lock;
use crate::log;
use crate::metrics::Counters;
use crate::rules::{self, Gate, Keeper};
use crate::worker::{self, Shared};

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

/// How connections come to the listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interception {
    /// The daemon installs the rules, and removes them when it ends.
    Managed,
    /// `rules install` did, or should have done: what differs is said.
    Expected,
    /// By whatever the operator has installed, be it ours or commands for iptables.
    Foreign,
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
    let listeners = bind_all(&setup, &kernel)?;
    let log = log::init(&config.log)?;
    for degraded in &kernel.degraded {
        tracing::warn!("{degraded}");
    }
    let installed = intercept(config, setup.interception)?;
    let counters = Counters::default();
    let workers = listeners.len();
    let Setup { config, listen, reopens_log, .. } = setup;
    let shared = Arc::new(Shared { config, kernel, counters, occupancy, gate: Notify::new() });
    let served = serve(&shared, listeners, reopens_log.then_some(&log), || {
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
    // All our sockets are closed by now: what is left of them is not in use, and may be destroyed.
    if installed {
        return served.and(route_past(&shared.config));
    }
    leave_nothing_in_the_way(&shared.config);
    served
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

/// Has connections come to the listeners; says whether it is ours to end that.
fn intercept(config: &Config, how: Interception) -> Result<bool, Fatal> {
    match how {
        Interception::Managed => manage(config),
        Interception::Expected => {
            let status = rules::status(config).map_err(rules::Errors::from)?;
            for difference in status.differences.iter().chain(&status.remarks) {
                tracing::warn!("rules (not managed by this program): {difference}");
            }
            reopen_gate(&status).map_err(rules::Errors::from)?;
            Ok(false)
        }
        Interception::Foreign => {
            // A host that has only iptables has no gate either.
            let reopened = rules::status(config).and_then(|status| reopen_gate(&status));
            if let Err(err) = reopened {
                tracing::debug!("rules: {err}");
            }
            Ok(false)
        }
    }
}

/// Another daemon may have left the gate closed.
fn reopen_gate(status: &rules::Status) -> Result<(), rules::RulesError> {
    if status.gate == Some(Gate::Closed) { rules::gate(Gate::Open) } else { Ok(()) }
}

fn manage(config: &Config) -> Result<bool, Fatal> {
    let installed = rules::install(config, Keeper::Daemon)?;
    rules::gate(Gate::Open).map_err(rules::Errors::from)?;
    for change in &installed.changes {
        tracing::info!("rules: {change}");
    }
    for remark in &installed.remarks {
        tracing::warn!("rules: {remark}");
    }
    let ours = installed.keeper == Keeper::Daemon;
    if !ours {
        tracing::info!("rules: installed by `rules install`; they are used, and left when this ends");
    }
    Ok(ours)
}

fn route_past(config: &Config) -> Result<(), Fatal> {
    let removed = rules::remove(config.rules.own_mark, rules::Caller::Daemon)?;
    for change in removed.changes.iter().chain(&removed.remarks) {
        tracing::info!("rules: {change}");
    }
    Ok(())
}

/// The rules stay: a client that uses its port again must not meet what is left of a session. A kernel that does not let it be
/// destroyed makes no bad end of a good one.
fn leave_nothing_in_the_way(config: &Config) {
    match rules::destroy_leftovers(config.rules.own_mark) {
        Ok(destroyed) => tracing::info!("rules: left as they are; {destroyed} leftover sockets destroyed"),
        Err(err) => tracing::warn!(
            "rules: left as they are; for up to a minute a port just used may not connect again, as leftover sockets stay: {err}"
        ),
    }
}

fn serve(
    shared: &Arc<Shared>,
    listeners: Vec<Vec<Socket>>,
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
        let began = started();
        if began.is_ok() {
            tell_service_manager(NotifyState::Ready);
            signals.until_the_end(shared).await;
            tell_service_manager(NotifyState::Stopping);
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
        let mut reserve = Reserve::take();
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return tracing::info!("SIGINT: stopping"),
                _ = self.terminate.recv() => return tracing::info!("SIGTERM: stopping"),
                log = hung_up(&mut self.hangup) => log.reopen(),
                () = shared.gate.notified() => reserve.lend(|| move_gate(shared)),
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

/// Descriptors that are kept for the child that moves the gate: it is needed most when there are none left.
struct Reserve(Vec<OwnedFd>);

impl Reserve {
    /// More than the pipes of a child take.
    const DESCRIPTORS: usize = 16;

    fn take() -> Self {
        let stderr = io::stderr();
        Self((0..Self::DESCRIPTORS).filter_map(|_| fcntl_dupfd_cloexec(&stderr, 0).ok()).collect())
    }

    fn lend(&mut self, work: impl FnOnce()) {
        self.0.clear();
        work();
        *self = Self::take();
    }
}

/// When there are almost too many sessions, has new connections routed past us; when there is room again, no longer.
fn move_gate(shared: &Shared) {
    let close = shared.occupancy.closes();
    let (gate, what) =
        if close { (Gate::Closed, "routed past us") } else { (Gate::Open, "intercepted again") };
    if close {
        shared.counters.gate_closed.count();
    }
    let (sessions, limit) = (shared.occupancy.sessions(), shared.occupancy.limit());
    match rules::gate(gate) {
        Ok(()) => tracing::warn!("{sessions} of {limit} sessions: new connections are {what}"),
        Err(err) => {
            tracing::error!("{sessions} of {limit} sessions: new connections cannot be {what}: {err}")
        }
    }
    shared.occupancy.moved(close);
    if shared.occupancy.closes() != close {
        // It went the other way meanwhile, and nobody was told, as the gate was not yet said to have moved.
        shared.gate.notify_one();
    }
}

/// One list of listeners for each worker.
fn bind_all(setup: &Setup, kernel: &Kernel) -> Result<Vec<Vec<Socket>>, Fatal> {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let several = setup.listen.len() > 1;
    let bind = |addr: SocketAddr| match listener::bind(addr, &setup.config, kernel) {
        Ok(listener) => Ok(Some(listener)),
        Err(err) if several && addr.is_ipv6() && no_ipv6(&err) => Ok(None),
        Err(err) => Err(cannot_bind(addr, &err)),
    };
    let bind_some = |_| setup.listen.iter().filter_map(|&addr| bind(addr).transpose()).collect();
    let all: Vec<Vec<Socket>> = (0..workers).map(bind_some).collect::<Result<_, _>>()?;
    all.iter().flatten().try_for_each(listener::listen).map_err(os("listening"))?;
    Ok(all)
}

fn no_ipv6(err: &io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn cannot_bind(addr: SocketAddr, err: &io::Error) -> Fatal {
    match Errno::from_io_error(err) {
        Some(Errno::ADDRINUSE) => Fatal::new(
            Exit::Unavailable,
            format!(
                "{addr} is taken by another program ({err}): \
                 stop it (ss -tlnp shows it) or choose another port (listen.port, -b)"
            ),
        ),
        Some(Errno::PERM | Errno::ACCESS) => Fatal::new(
            Exit::NoPerm,
            format!(
                "cannot make a transparent listener on {addr} ({err}): CAP_NET_ADMIN is missing; \
                 start as root or with that capability"
            ),
        ),
        _ => Fatal::new(Exit::OsErr, format!("cannot listen on {addr}: {err}")),
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
