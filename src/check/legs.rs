//! What the legs ask for and this kernel has not: congestion control, MPTCP, options. PURE.
use rustix::io::Errno;

use super::facts::{self, Facts};
use super::{Finding, Level};
use crate::config::{self, Config};
use crate::exit::Exit;

const AVAILABLE: &str = "net.ipv4.tcp_available_congestion_control";
const ALLOWED: &str = "net.ipv4.tcp_allowed_congestion_control";
const UNAVAILABLE: Level = Level::Error(Exit::Unavailable);

/// Findings about both legs.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![mptcp(config, facts)];
    let legs = [("client", &config.client.leg, &facts.client), ("server", &config.server.leg, &facts.server)];
    for (name, leg, found) in legs {
        findings.extend(congestion(name, leg, found, facts));
        findings.extend(found.refused.iter().map(|(key, errno)| refused(name, key, *errno, leg.mptcp)));
    }
    findings
}

fn mptcp(config: &Config, facts: &Facts) -> Finding {
    let wanted = config.client.leg.mptcp || config.server.leg.mptcp;
    match facts.mptcp {
        None if wanted => Finding::ok("mptcp", "MPTCP: sockets can be made"),
        None => Finding::ok("mptcp", "MPTCP: this kernel has it; no leg uses it"),
        Some(_) if wanted && facts.number("net.mptcp.enabled") == Some(0) => {
            let why = "the configuration asks for MPTCP (client.mptcp, server.mptcp), and no MPTCP socket can be made";
            Finding::new(UNAVAILABLE, "mptcp", "net.mptcp.enabled = 0", why)
                .mend("sysctl -w net.mptcp.enabled=1")
        }
        Some(errno) if wanted => {
            let why = "the configuration asks for it (client.mptcp, server.mptcp); it needs Linux 5.17 or newer with \
                       CONFIG_MPTCP";
            Finding::new(UNAVAILABLE, "mptcp", format!("MPTCP: no socket can be made: {errno}"), why)
        }
        Some(errno) => {
            let why = "only client.mptcp and server.mptcp need it, and both are false";
            Finding::new(Level::Note, "mptcp", format!("MPTCP: no socket can be made: {errno}"), why)
        }
    }
}

fn congestion(name: &str, leg: &config::Leg, found: &facts::Leg, facts: &Facts) -> Option<Finding> {
    let (tried, refused) = found.congestion.as_ref()?;
    let Some(errno) = refused else {
        return Some(Finding::ok("congestion-control", format!("{name}.congestion-control: {tried}")));
    };
    let list =
        |key: &str| facts.sysctl(key).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(", ");
    let has = list(AVAILABLE);
    if leg.congestion_control.is_none() {
        let default = facts.sysctl("net.ipv4.tcp_congestion_control").unwrap_or("its default");
        let what =
            format!("{name}.congestion-control: {default}, because this kernel refuses {tried}: {errno}");
        let why = "over links that lose packets for other reasons than congestion, bbr is many times faster";
        return Some(
            Finding::new(Level::Note, "congestion-control", what, why).mend(format!("modprobe tcp_{tried}")),
        );
    }
    let what = format!("{name}.congestion-control = {tried}: {errno}");
    if *errno != Errno::PERM && !has.split(", ").any(|known| known == tried) {
        let why = format!("this kernel has: {has}");
        return Some(Finding::new(UNAVAILABLE, "congestion-control", what, why));
    }
    let why = format!(
        "this kernel has it, but only these are allowed here: {}; the list is widened in the initial network namespace",
        list(ALLOWED)
    );
    let widen = format!("sysctl -w {ALLOWED}=\"{} {tried}\"", facts.sysctl(ALLOWED).unwrap_or_default());
    Some(Finding::new(UNAVAILABLE, "congestion-control", what, why).mend(widen))
}

fn refused(name: &str, key: &str, errno: Errno, mptcp: bool) -> Finding {
    let what = format!("{name}.{key}: {errno}");
    if mptcp {
        let why = format!(
            "MPTCP sockets of this kernel do not take it: {name} legs go without; plain TCP legs have it"
        );
        return Finding::new(Level::Warning, "degraded", what, why);
    }
    Finding::new(Level::Warning, "degraded", what, format!("this kernel refuses it: {name} legs go without"))
}
