//! State that outlives a worker, and the facts that are recorded of a connection. EFFECT.
pub mod crash;
pub mod flow;
pub mod limits;
pub mod metrics;
pub mod record;
pub mod table;
