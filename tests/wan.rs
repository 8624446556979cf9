//! The initial window over the devices of `[wan]`, as the kernel applies it, and the routes that implement it.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
#[path = "wan/flight.rs"]
mod flight;
#[path = "wan/follow.rs"]
mod follow;
#[path = "wan/mirror.rs"]
mod mirror;
#[path = "wan/resuming.rs"]
mod resuming;
#[path = "wan/support.rs"]
mod support;
