//! From the start to the stop of the whole program. WIRING.
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use socket2::Socket;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::config::Config;
use crate::exit::{Exit, Fatal};
use crate::kernel::{Kernel, KernelError};
use crate::listener::{self, Arrival};
use crate::lock::{Lock, LockError};
use crate::log::{self, LogError};
use crate::metrics::{Counters, worth_a_line};
use crate::relay::pool::Pool;
use crate::rules;
use crate::session::{self, Env};

/// A runtime looks for new events after so many tasks: low, so that a bulk flow's turns do not hold up an interactive one.
const TASKS_BETWEEN_EVENTS: u32 = 16;

struct Shared {
    config: Config,
    kernel: Kernel,
    counters: Counters,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// Whatever keeps it from starting; then nothing is left behind.
pub fn run(config: Config) -> Result<(), Fatal> {
    let _lock = Lock::take()?;
    let kernel = Kernel::probe(&config)?;
    let listeners = bind_all(&config, &kernel)?;
    let _log = log::init(&config.log)?;
    for degraded in &kernel.degraded {
        tracing::warn!("{degraded}");
    }
    let installed = intercept(&config)?;
    let shared = Arc::new(Shared { config, kernel, counters: Counters::default() });
    let served = serve(&shared, listeners);
    tracing::info!("stopped: {}", shared.counters);
    // All our sockets are closed by now: what is left of them is not in use, and may be destroyed.
    let removed = if installed { route_past(&shared.config) } else { Ok(()) };
    served.and(removed)
}

/// Has connections come to the listeners; says whether it is ours to end that.
fn intercept(config: &Config) -> Result<bool, Fatal> {
    if !config.rules.manage {
        let status = rules::status(config).map_err(rules::Errors::from)?;
        for difference in status.differences.iter().chain(&status.remarks) {
            tracing::warn!("rules (not managed by this program): {difference}");
        }
        return Ok(false);
    }
    let installed = rules::install(config)?;
    rules::gate(rules::Gate::Open).map_err(rules::Errors::from)?;
    for change in &installed.changes {
        tracing::info!("rules: {change}");
    }
    for remark in &installed.remarks {
        tracing::warn!("rules: {remark}");
    }
    let found = installed.found == rules::Verdict::Installed;
    if found {
        tracing::info!("rules: found installed; they are used, and left when this ends");
    }
    Ok(!found)
}

fn route_past(config: &Config) -> Result<(), Fatal> {
    let removed = rules::remove(config.rules.own_mark, rules::Caller::Daemon)?;
    for change in removed.changes.iter().chain(&removed.remarks) {
        tracing::info!("rules: {change}");
    }
    Ok(())
}

fn serve(shared: &Arc<Shared>, listeners: Vec<Vec<Socket>>) -> Result<(), Fatal> {
    let rt = runtime::Builder::new_current_thread().enable_all().build().map_err(os("making the runtime"))?;
    rt.block_on(serve_until_signal(shared, listeners))
}

async fn serve_until_signal(shared: &Arc<Shared>, listeners: Vec<Vec<Socket>>) -> Result<(), Fatal> {
    // Before "ready", so that a signal that comes right behind it is not deadly.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(os("watching for SIGINT"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(os("watching for SIGTERM"))?;
    let (stop, stopping) = watch::channel(false);
    let workers = start_workers(shared, listeners, &stopping)?;
    tracing::info!(
        "ready: {} workers, listening on {}",
        workers.len(),
        listener::addresses(&shared.config).map(|addr| addr.to_string()).join(" and ")
    );
    tokio::select! {
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
    }
    let _ = stop.send(true);
    let failed = workers.into_iter().filter_map(|worker| worker.join().err()).count();
    if failed > 0 { Err(Fatal::new(Exit::Software, "a worker thread failed")) } else { Ok(()) }
}

/// One list of listeners (IPv4, and IPv6 where there is any) for each worker; none listens yet.
fn bind_all(config: &Config, kernel: &Kernel) -> Result<Vec<Vec<Socket>>, Fatal> {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let addrs: Vec<SocketAddr> = listener::addresses(config).into();
    let mut all = Vec::new();
    for _ in 0..workers {
        let mut listeners = Vec::new();
        for &addr in &addrs {
            match listener::bind(addr, config, kernel) {
                Ok(listener) => listeners.push(listener),
                Err(err) if addr.is_ipv6() && no_ipv6(&err) => {}
                Err(err) => return Err(cannot_bind(addr, &err)),
            }
        }
        all.push(listeners);
    }
    all.iter().flatten().try_for_each(listener::listen).map_err(os("listening"))?;
    Ok(all)
}

fn no_ipv6(err: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(err), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn cannot_bind(addr: SocketAddr, err: &std::io::Error) -> Fatal {
    match Errno::from_io_error(err) {
        Some(Errno::ADDRINUSE) => Fatal::new(
            Exit::Unavailable,
            format!(
                "listen.port = {}: {addr} is taken by another program ({err}); stop it (ss -tlnp shows it) or choose another port",
                addr.port()
            ),
        ),
        Some(Errno::PERM | Errno::ACCESS) => Fatal::new(
            Exit::NoPerm,
            format!(
                "cannot make a transparent listener on {addr} ({err}): CAP_NET_ADMIN is missing; start as root or with that capability"
            ),
        ),
        _ => Fatal::new(Exit::OsErr, format!("cannot listen on {addr}: {err}")),
    }
}

fn start_workers(
    shared: &Arc<Shared>,
    listeners: Vec<Vec<Socket>>,
    stopping: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<()>>, Fatal> {
    let start = |(n, listeners): (usize, Vec<Socket>)| {
        let (shared, stopping) = (Arc::clone(shared), stopping.clone());
        let named = thread::Builder::new().name(format!("worker-{n}"));
        named.spawn(move || work(&shared, listeners, stopping)).map_err(os("starting a worker thread"))
    };
    listeners.into_iter().enumerate().map(start).collect()
}

/// One worker: its own runtime, listeners, pipes and sessions.
fn work(shared: &Arc<Shared>, listeners: Vec<Socket>, mut stopping: watch::Receiver<bool>) {
    let rt = runtime::Builder::new_current_thread().enable_all().event_interval(TASKS_BETWEEN_EVENTS).build();
    let rt = match rt {
        Ok(rt) => rt,
        Err(err) => return tracing::error!("a worker cannot start: {err}"),
    };
    let worker = Rc::new(Worker { shared: Arc::clone(shared), pool: Pool::default() });
    let local = LocalSet::new();
    for listener in listeners {
        let worker = Rc::clone(&worker);
        local.spawn_local(async move {
            let mptcp = worker.shared.kernel.client.mptcp;
            let failed = listener::accept(listener, mptcp, |arrival| worker.take(arrival)).await;
            tracing::error!("a listener has failed, new connections are routed past it: {failed:?}");
        });
    }
    // When this ends, dropping `local` ends every session with a reset and its close record.
    rt.block_on(local.run_until(async { stopping.changed().await.is_ok() }));
}

struct Worker {
    shared: Arc<Shared>,
    pool: Pool,
}

impl Worker {
    fn take(self: &Rc<Self>, arrival: Arrival) {
        let counters = &self.shared.counters;
        match arrival {
            Arrival::Connection(conn) => {
                let worker = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    let Shared { config, kernel, counters } = &*worker.shared;
                    session::run(conn, &Env { config, kernel, counters, pool: &worker.pool }).await;
                });
            }
            Arrival::ToListener(client) => {
                counters.to_listener.count();
                let so_far = counters.to_listener.get();
                if worth_a_line(so_far) {
                    tracing::warn!(
                        "refused a connection from {client} to the listener itself ({so_far} so far): it takes only intercepted connections"
                    );
                }
            }
            Arrival::Exhausted(err) => {
                counters.exhausted.count();
                let so_far = counters.exhausted.get();
                if worth_a_line(so_far) {
                    tracing::warn!("accepting rests for a moment ({so_far} times so far): {err}");
                }
            }
        }
    }
}

/// Turns the failure of a system call into the end of the program.
fn os<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Fatal {
    move |err| Fatal::new(Exit::OsErr, format!("{what}: {err}"))
}

impl From<LockError> for Fatal {
    fn from(err: LockError) -> Self {
        Self::new(Exit::Unavailable, err.to_string())
    }
}

impl From<KernelError> for Fatal {
    fn from(err: KernelError) -> Self {
        let exit = match err {
            KernelError::CongestionControl { .. } => Exit::Unavailable,
            KernelError::CongestionControlNotAllowed { .. } => Exit::NoPerm,
            KernelError::Socket(_) => Exit::OsErr,
        };
        Self::new(exit, err.to_string())
    }
}

impl From<LogError> for Fatal {
    fn from(err: LogError) -> Self {
        let exit = match err {
            LogError::File { .. } => Exit::CantCreat,
            LogError::Journal(_) => Exit::Unavailable,
            LogError::Thread(_) => Exit::OsErr,
        };
        Self::new(exit, err.to_string())
    }
}
