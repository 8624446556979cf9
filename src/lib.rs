//! tcp-intercept: transparent TCP acceleration for endpoints that know nothing of it.
//!
//! `docs/architecture.md` describes the modules. Each says in its first lines to which of three tiers it belongs: PURE modules decide,
//! EFFECT modules touch the kernel, WIRING puts them together. `tests/structure.rs` keeps the tiers and the folders apart. One connection,
//! from accept to its record, is in `session`.
#![forbid(unsafe_code)]

pub mod check;
pub mod cli;
pub mod cmd;
pub mod config;
pub mod dropin;
pub mod exit;
pub mod host;
pub mod log;
pub mod process;
pub mod session;
pub mod state;
pub mod units;
