//! tcp-intercept: transparent TCP acceleration for endpoints that know nothing of it.
//!
//! Three tiers, kept apart by `tests/tiers.rs`: PURE modules decide, EFFECT modules touch the kernel,
//! WIRING puts them together. The way of one connection, top to bottom, is in `session`.
#![forbid(unsafe_code)]

pub mod check;
pub mod cmd;
pub mod config;
pub mod exit;
pub mod units;
