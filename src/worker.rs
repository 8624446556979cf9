//! One thread with its own listeners, pipes and sessions; workers share counters and nothing else that is hot. WIRING.
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use socket2::Socket;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::dial;
use crate::kernel::Kernel;
use crate::limits::{Gate, Occupancy};
use crate::listener::{self, Accepted, Arrival};
use crate::metrics::{Counter, Counters, worth_a_line};
use crate::relay::pool::Pool;
use crate::session::{self, Env};

/// A runtime looks for new events after so many tasks: low, so that a bulk flow's turns do not hold up an interactive one.
const TASKS_BETWEEN_EVENTS: u32 = 16;

/// What all workers share.
pub struct Shared {
    /// What the operator asked for.
    pub config: Config,
    /// What the kernel can do.
    pub kernel: Kernel,
    /// What is counted.
    pub counters: Counters,
    /// Where Fast Open and Multipath TCP fail.
    pub memory: dial::Memory,
    /// How many sessions there are.
    pub occupancy: Occupancy,
    /// Rung when the gate for new connections is to be looked at.
    pub gate: Notify,
}

impl Shared {
    /// The kernel had no descriptor or memory for one more connection: new ones are routed until it has.
    fn lacking(&self, err: &io::Error) {
        warn_seldom(&self.counters.exhausted, || format!("no means for one more connection: {err}"));
        self.occupancy.exhausted();
        self.gate.notify_one();
    }

    fn heed(&self, gate: Gate) {
        if gate == Gate::Moves {
            self.gate.notify_one();
        }
    }
}

/// Starts a thread that takes what arrives at `listeners`, until `stopping` changes.
///
/// # Errors
/// When there is no thread to be had.
pub fn start(
    n: usize,
    listeners: Vec<Socket>,
    shared: &Arc<Shared>,
    stopping: &watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let (shared, stopping) = (Arc::clone(shared), stopping.clone());
    thread::Builder::new().name(format!("worker-{n}")).spawn(move || work(&shared, listeners, stopping))
}

fn work(shared: &Arc<Shared>, listeners: Vec<Socket>, mut stopping: watch::Receiver<bool>) {
    let mut builder = Builder::new_current_thread();
    let rt = builder.enable_all().event_interval(TASKS_BETWEEN_EVENTS).build_local(LocalOptions::default());
    let rt = match rt {
        Ok(rt) => rt,
        Err(err) => return tracing::error!("a worker cannot start: {err}"),
    };
    let worker = Rc::new(Worker { shared: Arc::clone(shared), pool: Pool::with_a_pipe() });
    for listener in listeners {
        let worker = Rc::clone(&worker);
        rt.spawn_local(async move {
            let kernel = &worker.shared.kernel;
            let Err(err) = listener::accept(listener, kernel, |arrival| worker.take(arrival)).await;
            tracing::error!("a listener has failed, new connections are routed past it: {err}");
        });
    }
    // When this ends, dropping the runtime ends every session with a reset and its close record.
    rt.block_on(async { stopping.changed().await.is_ok() });
}

struct Worker {
    shared: Arc<Shared>,
    pool: Pool,
}

impl Worker {
    fn take(self: &Rc<Self>, arrival: Arrival) {
        let counters = &self.shared.counters;
        match arrival {
            Arrival::Connection(conn) => self.begin(conn),
            Arrival::ToListener(client) => warn_seldom(&counters.to_listener, || {
                format!(
                    "refused a connection from {client} to the listener itself: it takes only intercepted connections"
                )
            }),
            Arrival::Aborted(err) => warn_seldom(&counters.aborted, || {
                format!("a connection was over before it could be accepted: {err}")
            }),
            Arrival::Exhausted(err) => self.shared.lacking(&err),
            Arrival::Shed(count) => (0..count).for_each(|_| {
                warn_seldom(&counters.shed, || {
                    "reset a connection that had waited for a place; its next try is routed".to_owned()
                });
            }),
        }
    }

    fn begin(self: &Rc<Self>, conn: Accepted) {
        let seat = Seat::take(&self.shared);
        let worker = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let Shared { config, kernel, counters, memory, .. } = &*worker.shared;
            let lacking = |err: &io::Error| worker.shared.lacking(err);
            let pool = &worker.pool;
            session::run(conn, &Env { config, kernel, counters, memory, pool, lacking: &lacking }).await;
            drop(seat);
        });
    }
}

/// One session's place among those that the limit allows; free again when it is dropped.
struct Seat(Arc<Shared>);

impl Seat {
    fn take(shared: &Arc<Shared>) -> Self {
        shared.heed(shared.occupancy.enter());
        Self(Arc::clone(shared))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.heed(self.0.occupancy.leave());
    }
}

/// What a peer can bring about is always counted and seldom said.
fn warn_seldom(counter: &Counter, what: impl FnOnce() -> String) {
    counter.count();
    let so_far = counter.get();
    if worth_a_line(so_far) {
        tracing::warn!("{} ({so_far} so far)", what());
    }
}
