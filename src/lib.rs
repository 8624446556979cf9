//! tcp-intercept: transparent TCP acceleration for endpoints that do not know of it.
//!
//! `docs/architecture.md` describes the modules. The first lines of each module name its tier: PURE modules decide,
//! EFFECT modules touch the kernel, WIRING puts them together. `tests/structure.rs` keeps the tiers and the folders
//! apart. The module `session` follows one connection from accept to its close record.
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
