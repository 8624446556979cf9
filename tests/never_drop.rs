//! The worker is killed and the program replaced under load: no connection ends, and no byte is lost, duplicated or
//! reordered.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]

#[path = "never_drop/crash_points.rs"]
mod crash_points;
#[path = "never_drop/dialling.rs"]
mod dialling;
#[path = "never_drop/ending.rs"]
mod ending;
#[path = "never_drop/fallback.rs"]
mod fallback;
#[path = "never_drop/full_table.rs"]
mod full_table;
#[path = "never_drop/garbage.rs"]
mod garbage;
#[path = "never_drop/killed.rs"]
mod killed;
#[path = "never_drop/multipath.rs"]
mod multipath;
#[path = "never_drop/starting.rs"]
mod starting;
#[path = "never_drop/support.rs"]
mod support;
#[path = "never_drop/upgraded.rs"]
mod upgraded;
