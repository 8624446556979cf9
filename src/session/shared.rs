//! State that all threads of the worker and their sessions share. WIRING.
use std::io;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::config::Config;
use crate::host::kernel::Kernel;
use crate::session::dial;
use crate::state::limits::{Gate, Occupancy};
use crate::state::metrics::{Counter, Counters, worth_a_line};
use crate::state::table::Table;

/// The shared state, once per process.
pub struct Shared {
    /// The configuration.
    pub config: Config,
    /// The features of this kernel.
    pub kernel: Arc<Kernel>,
    /// The counters.
    pub counters: Counters,
    /// The servers with which Fast Open or Multipath TCP fails.
    pub memory: dial::Memory,
    /// The number of sessions and its limit.
    pub occupancy: Occupancy,
    /// The session table, from which the next worker resumes the sessions.
    pub table: Table,
    /// Notified when the gate for new connections must be checked.
    pub gate: Notify,
}

impl Shared {
    /// Returns the state of a worker without sessions. The counters are those of `table`.
    pub fn new(config: Config, kernel: Arc<Kernel>, limit: u32, table: Table) -> Self {
        Self {
            config,
            kernel,
            counters: table.header().counters(),
            memory: dial::Memory::default(),
            occupancy: Occupancy::new(limit),
            table,
            gate: Notify::new(),
        }
    }

    /// Records that the kernel had no descriptor or memory for a connection. New connections are routed until it has.
    pub fn out_of_resources(&self, err: &io::Error) {
        warn_seldom(&self.counters.exhausted, || {
            format!("out of descriptors or memory for a connection: {err}")
        });
        self.occupancy.exhausted();
        self.gate.notify_one();
    }

    /// Notifies the gate's task if the gate must move.
    pub fn apply(&self, gate: Gate) {
        if gate == Gate::Moves {
            self.gate.notify_one();
        }
    }
}

/// Counts an event that a peer can cause, and logs it at the 1st, 10th, 100th … occurrence.
pub fn warn_seldom(counter: &Counter, what: impl FnOnce() -> String) {
    counter.count();
    let so_far = counter.get();
    if worth_a_line(so_far) {
        tracing::warn!("{} ({so_far} so far)", what());
    }
}
