//! What outlives a worker, and what is said of a connection. EFFECT.
pub mod crash;
pub mod flow;
pub mod limits;
pub mod metrics;
pub mod record;
pub mod table;
