//! Multipath TCP on a leg, judged by `ss`, `nstat`, checksums and the close record.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
#[path = "mptcp_legs/fallback.rs"]
mod fallback;
#[path = "mptcp_legs/paths.rs"]
mod paths;
#[path = "mptcp_legs/programs.rs"]
mod programs;
#[path = "mptcp_legs/support.rs"]
mod support;
#[path = "mptcp_legs/timeouts.rs"]
mod timeouts;
