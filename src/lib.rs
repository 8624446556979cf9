//! tcp-intercept: transparent TCP acceleration for endpoints that know nothing of it.
//!
//! Three tiers, kept apart by `tests/tiers.rs`: PURE modules decide, EFFECT modules touch the kernel,
//! WIRING puts them together. The way of one connection, top to bottom, is in `session`.
#![forbid(unsafe_code)]

pub mod check;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod crash;
pub mod daemon;
pub mod dial;
pub mod dropin;
pub mod exit;
pub mod flow;
mod follow;
pub mod guardian;
pub mod kernel;
pub mod leg;
pub mod limits;
pub mod listener;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod paths;
pub mod record;
pub mod relay;
mod reserve;
pub mod rules;
pub mod session;
pub mod shared;
pub mod table;
pub mod takeover;
pub mod units;
pub mod wan;
pub mod worker;
