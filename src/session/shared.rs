//! What all workers and their sessions share. WIRING.
use std::io;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::config::Config;
use crate::host::kernel::Kernel;
use crate::session::dial;
use crate::state::limits::{Gate, Occupancy};
use crate::state::metrics::{Counter, Counters, worth_a_line};
use crate::state::table::Table;

/// One for the whole program.
pub struct Shared {
    /// What the operator asked for.
    pub config: Config,
    /// What the kernel can do.
    pub kernel: Arc<Kernel>,
    /// What is counted.
    pub counters: Counters,
    /// Where Fast Open and Multipath TCP fail.
    pub memory: dial::Memory,
    /// How many sessions there are.
    pub occupancy: Occupancy,
    /// Where the sessions are written down, for whoever goes on with them.
    pub table: Table,
    /// Rung when the gate for new connections is to be looked at.
    pub gate: Notify,
}

impl Shared {
    /// Without sessions; the counters are those of `table`.
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

    /// The kernel had no descriptor or memory for one more connection: new ones are routed until it has.
    pub fn out_of_resources(&self, err: &io::Error) {
        warn_seldom(&self.counters.exhausted, || format!("no means for one more connection: {err}"));
        self.occupancy.exhausted();
        self.gate.notify_one();
    }

    /// Rings for the gate if it is to move.
    pub fn apply(&self, gate: Gate) {
        if gate == Gate::Moves {
            self.gate.notify_one();
        }
    }
}

/// What a peer can bring about is always counted and seldom said.
pub fn warn_seldom(counter: &Counter, what: impl FnOnce() -> String) {
    counter.count();
    let so_far = counter.get();
    if worth_a_line(so_far) {
        tracing::warn!("{} ({so_far} so far)", what());
    }
}
