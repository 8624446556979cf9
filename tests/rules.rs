//! The rules on real hosts, judged by `ip`, `nft`, `ss`, /proc/sys and the traffic.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

#[path = "rules/excluded.rs"]
mod excluded;
#[path = "rules/host.rs"]
mod host;
#[path = "rules/iptables.rs"]
mod iptables;
#[path = "rules/leftovers.rs"]
mod leftovers;
#[path = "rules/line.rs"]
mod line;
#[path = "rules/refused.rs"]
mod refused;
#[path = "rules/support.rs"]
mod support;
#[path = "rules/traffic.rs"]
mod traffic;
