//! Features that the legs require and the kernel lacks: congestion control, MPTCP, options. PURE.
use super::facts::{Congestion, Degraded, Errno, Facts};
use super::{Finding, Level};
use crate::config::{self, Config};
use crate::exit::Exit;

const AVAILABLE: &str = "net.ipv4.tcp_available_congestion_control";
const ALLOWED: &str = "net.ipv4.tcp_allowed_congestion_control";
const UNAVAILABLE: Level = Level::Error(Exit::Unavailable);

/// Returns the findings about both legs.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![mptcp(config, facts)];
    findings.push(congestion("client", &config.client.leg, &facts.client, facts));
    findings.push(congestion("server", &config.server.leg, &facts.server, facts));
    // `mptcp` above already reports a kernel that refuses MPTCP sockets.
    let told = |found: &&Degraded| facts.mptcp.is_some() && found.key.ends_with(".mptcp");
    findings.extend(facts.degraded.iter().filter(|found| !told(found)).map(degraded));
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
                .fix("sysctl -w net.mptcp.enabled=1")
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

fn congestion(leg: &str, config: &config::Leg, found: &Congestion, facts: &Facts) -> Finding {
    let Congestion { name, refused } = found;
    let Some(errno) = refused else {
        return Finding::ok("congestion-control", format!("{leg}.congestion-control: {name}"));
    };
    let list =
        |key: &str| facts.sysctl(key).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(", ");
    let has = list(AVAILABLE);
    if !matches!(config.congestion_control, config::Congestion::Named(_)) {
        let default = facts.sysctl("net.ipv4.tcp_congestion_control").unwrap_or("its default");
        let what =
            format!("{leg}.congestion-control: {default}, because this kernel refuses {name}: {errno}");
        let why = "over links that lose packets for other reasons than congestion, bbr is many times faster";
        return Finding::new(Level::Note, "congestion-control", what, why)
            .fix(format!("modprobe tcp_{name}"));
    }
    let what = format!("{leg}.congestion-control = {name}: {errno}");
    if *errno != Errno::EPERM && !has.split(", ").any(|known| known == name) {
        let why = format!("this kernel has: {has}");
        return Finding::new(UNAVAILABLE, "congestion-control", what, why);
    }
    let why = format!(
        "this kernel has it, but only these are allowed here: {}; the list can be extended in the initial network \
         namespace",
        list(ALLOWED)
    );
    let widen = format!("sysctl -w {ALLOWED}=\"{} {name}\"", facts.sysctl(ALLOWED).unwrap_or_default());
    Finding::new(UNAVAILABLE, "congestion-control", what, why).fix(widen)
}

fn degraded(found: &Degraded) -> Finding {
    let Degraded { key, kind, errno } = found;
    let why = match kind.as_str() {
        "MPTCP" => "this kernel's MPTCP sockets do not support it: only plain TCP connections use it",
        _ => "this kernel does not support it: connections do without it",
    };
    Finding::new(Level::Warning, "degraded", format!("{key}: left out on {kind} sockets: {errno}"), why)
}
