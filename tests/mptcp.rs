//! Two boxes with several paths: what each path carries, what `ip mptcp` shows, and what happens to a connection whose
//! paths are cut.
//!
//! Judged by `ip mptcp`, `ss`, counters of devices and of the kernel, and checksums.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
#[path = "mptcp/carrying.rs"]
mod carrying;
#[path = "mptcp/checked.rs"]
mod checked;
#[path = "mptcp/endpoints.rs"]
mod endpoints;
#[path = "mptcp/following.rs"]
mod following;
#[path = "mptcp/resuming.rs"]
mod resuming;
#[path = "mptcp/support.rs"]
mod support;
