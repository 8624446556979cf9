//! The processes of the daemon: the guardian, the worker, and what one worker takes over from another. WIRING.
pub mod daemon;
pub mod guardian;
pub mod lock;
pub mod takeover;
pub mod worker;
