//! Derives findings from facts. PURE: nothing here touches the host.
use std::num::NonZeroU32;

use super::facts::{Facts, Privileges};
use super::{Finding, Level, firewall, legs, paths, sysctls, wan};
use crate::config::{Config, Source};
use crate::exit::Exit;
use crate::state::limits;

const NO_PERMISSION: Level = Level::Error(Exit::NoPerm);

/// Returns all findings of `check` about a host with `facts`, for `config`.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("config", "configuration: valid")];
    findings.extend(privileges(config, facts));
    findings.extend(firewall::judge(config, facts));
    findings.extend(legs::judge(config, facts));
    findings.extend(sysctls::judge(config, facts));
    findings.extend(wan::judge(config, facts));
    findings.extend(paths::judge(config, facts));
    findings.extend(absent_interfaces(config, facts));
    findings.extend(facts.bridges.iter().map(|name| bridge(name)));
    findings.extend(conntrack(config, facts));
    findings.push(descriptors(config, facts));
    findings.extend(pipes(facts));
    findings
}

fn privileges(config: &Config, facts: &Facts) -> Vec<Finding> {
    let Privileges { net_admin, net_raw, bind_service, transparent, mark, .. } = &facts.privileges;
    let mut findings = Vec::new();
    let missing = |what: &str, why: &str| {
        Finding::new(NO_PERMISSION, "capability", what, why).fix("sudo tcp-intercept check")
    };
    if let Some(errno) = transparent.or(*mark) {
        let what = format!("transparent sockets are refused: {errno}");
        let why = "IP_TRANSPARENT and SO_MARK need CAP_NET_ADMIN or CAP_NET_RAW in this network namespace: run as root, or give \
                   the service AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE";
        findings.push(missing(&what, why));
    } else if !net_admin && config.rules.manage {
        let why = "the rules cannot be installed; with rules.manage = false and rules that root has installed, CAP_NET_RAW is enough";
        findings.push(missing("CAP_NET_ADMIN is missing", why));
    } else {
        let held = [
            (*net_admin, "CAP_NET_ADMIN"),
            (*net_raw, "CAP_NET_RAW"),
            (*bind_service, "CAP_NET_BIND_SERVICE"),
        ];
        let held: Vec<&str> = held.iter().filter_map(|(held, name)| held.then_some(*name)).collect();
        findings.push(Finding::ok("capability", format!("capabilities: {}", held.join(", "))));
    }
    let reserved = facts.number("net.ipv4.ip_unprivileged_port_start").unwrap_or(1024);
    if !bind_service && u64::from(config.listen.port.get()) < reserved {
        let what =
            format!("listen.port = {} needs CAP_NET_BIND_SERVICE, which is missing", config.listen.port);
        findings.push(missing(&what, "ports below net.ipv4.ip_unprivileged_port_start are reserved"));
    } else if !bind_service && reserved > 0 && config.server.source == Source::Client {
        let why = format!(
            "a client's port below {reserved} (NFS, rsh) cannot be the source port of the server leg: the server sees \
             another port"
        );
        findings.push(Finding::new(Level::Note, "capability", "CAP_NET_BIND_SERVICE is missing", why));
    }
    findings
}

fn absent_interfaces(config: &Config, facts: &Facts) -> Vec<Finding> {
    let absent = |name: &&str| !facts.interfaces.iter().any(|found| found.name == *name);
    let names = config.rules.interfaces.iter().map(|interface| interface.as_str()).filter(absent);
    let why = "rules.interfaces names it: nothing is intercepted there until it exists";
    names
        .map(|name| Finding::new(Level::Warning, "interface", format!("there is no interface {name}"), why))
        .collect()
}

fn bridge(name: &str) -> Finding {
    let why = "packets that it bridges from port to port are not routed, so they are not intercepted; packets that \
               are routed through its own address are";
    Finding::new(Level::Note, "bridge", format!("{name} is a bridge with several ports"), why)
}

fn conntrack(config: &Config, facts: &Facts) -> Option<Finding> {
    let max = facts.number("net.netfilter.nf_conntrack_max")?;
    let wanted = config.limits.connections.map_or(0, |limit| u64::from(limit.get()));
    if max >= wanted {
        return Some(Finding::ok("conntrack", format!("conntrack: {max} entries")));
    }
    let what = format!("net.netfilter.nf_conntrack_max = {max}, limits.connections = {wanted}");
    let why = "each connection to a server needs an entry: when the table is full, the kernel drops new connections";
    let set = format!("sysctl -w net.netfilter.nf_conntrack_max={}", wanted * 2);
    Some(Finding::new(Level::Warning, "conntrack", what, why).fix(set))
}

/// Checks the descriptor limit with the same calculation as `run`, so that both give the same answer.
fn descriptors(config: &Config, facts: &Facts) -> Finding {
    let carried = limits::carried_by(facts.descriptors);
    let wanted = config.limits.connections.map_or(0, NonZeroU32::get);
    if wanted <= carried {
        let what = format!("descriptors: {}, enough for {carried} connections", facts.descriptors);
        return Finding::ok("descriptors", what);
    }
    let what = format!(
        "limits.connections = {wanted}, but {} descriptors are enough for only {carried}",
        facts.descriptors
    );
    let why = "run refuses to start: a connection takes two sockets, and pipes while data moves. Raise the limit \
               (LimitNOFILE= in a systemd unit) or lower the key";
    let enough = (u64::from(wanted) * 2).div_ceil(9) * 10;
    Finding::new(Level::Error(Exit::Unavailable), "descriptors", what, why).fix(format!("ulimit -n {enough}"))
}

fn pipes(facts: &Facts) -> Vec<Finding> {
    const LARGE: u64 = 1 << 20;
    const PAGES: u64 = LARGE / 4096;
    let mut findings = Vec::new();
    let why = "the relay moves data through pipes of 1 MiB; smaller pipes are slower";
    if let Some(max) =
        facts.number("fs.pipe-max-size").filter(|max| *max < LARGE && !facts.privileges.pipes_unlimited)
    {
        let what = format!("fs.pipe-max-size = {max}");
        findings.push(
            Finding::new(Level::Note, "pipes", what, why).fix(format!("sysctl -w fs.pipe-max-size={LARGE}")),
        );
    }
    let soft =
        facts.number("fs.pipe-user-pages-soft").filter(|soft| *soft > 0 && !facts.privileges.pipes_unlimited);
    if let Some(soft) = soft {
        let what = format!("fs.pipe-user-pages-soft = {soft}");
        let why = format!(
            "{why}. A user without CAP_SYS_RESOURCE gets about {} of 1 MiB (with 4 KiB pages), then smaller ones; 0 \
             means no limit",
            (soft / PAGES).saturating_sub(1)
        );
        findings
            .push(Finding::new(Level::Note, "pipes", what, why).fix("sysctl -w fs.pipe-user-pages-soft=0"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("pipes", "pipes: 1 MiB each"));
    }
    findings
}
