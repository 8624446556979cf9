//! Many connections, spoofed ones, stuck ones, and a kernel without free resources.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]

#[path = "endurance/bench.rs"]
mod bench;
#[path = "endurance/bytes.rs"]
mod bytes;
#[path = "endurance/crowd.rs"]
mod crowd;
#[path = "endurance/idle.rs"]
mod idle;
#[path = "endurance/lack.rs"]
mod lack;
#[path = "endurance/limit.rs"]
mod limit;
#[path = "endurance/ports.rs"]
mod ports;
#[path = "endurance/states.rs"]
mod states;
