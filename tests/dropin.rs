//! The drop-in replacement: 1.1.0's options on real hosts, judged by `ss`, /proc, the terminal, the log and the
//! traffic.
//!
//! | behaviour of 1.1.0 | where it is tested |
//! |---|---|
//! | `-h`, `-V`, an unknown option, spellings of options | `options` |
//! | `-k`, `-n`; dead peers | `legs` |
//! | `-f`; running in the background; exit codes; SIGINT and SIGTERM; privileges | `background` |
//! | `-p` | `pid_file` |
//! | syntax of `-b`: brackets, names, several addresses | `names` |
//! | effect of `-b`: which addresses, IPv6, the wildcard, a connection to the listener itself (trap 2) | `listening` |
//! | `-B`; the destination's own family; ports that are taken (traps 1, 2 and 4) | `outgoing` |
//! | `-l`, SIGHUP | `log` |
//! | EOF, a refused server, errors on one side | `sessions` |
//! | one thread, a backlog of 32 | `listening` |
//! | MPTCP and congestion control from the host | `legs` |
//! | routes and rules: the init script's, the README's, `rules install`, `rules print --format iptables` | `setup` |
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]

#[path = "dropin/background.rs"]
mod background;
#[path = "dropin/legs.rs"]
mod legs;
#[path = "dropin/listening.rs"]
mod listening;
#[path = "dropin/log.rs"]
mod log;
#[path = "dropin/names.rs"]
mod names;
#[path = "dropin/options.rs"]
mod options;
#[path = "dropin/outgoing.rs"]
mod outgoing;
#[path = "dropin/pid_file.rs"]
mod pid_file;
#[path = "dropin/sessions.rs"]
mod sessions;
#[path = "dropin/setup.rs"]
mod setup;
#[path = "dropin/support.rs"]
mod support;
