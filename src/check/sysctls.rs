//! Sysctls with harmful values: the value, the reason, and the command that fixes it. PURE.
use super::facts::{Facts, Interface};
use super::{Finding, Level};
use crate::config::{Config, FastOpen, Source};
use crate::exit::Exit;

/// The sysctls that [`judge`] reads; [`super::gather`] collects them.
pub const KEYS: [&str; 21] = [
    "fs.pipe-max-size",
    "fs.pipe-user-pages-soft",
    "net.core.somaxconn",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.all.src_valid_mark",
    "net.ipv4.ip_forward",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_allowed_congestion_control",
    "net.ipv4.tcp_available_congestion_control",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_fastopen",
    "net.ipv4.tcp_fastopen_blackhole_timeout_sec",
    "net.ipv4.tcp_fwmark_accept",
    "net.ipv4.tcp_rfc1337",
    "net.ipv4.tcp_timestamps",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "net.mptcp.blackhole_timeout",
    "net.mptcp.enabled",
    "net.netfilter.nf_conntrack_max",
];

/// The backlog of the program's listeners.
const BACKLOG: u64 = 4096;

/// Returns the findings about sysctls; a single `ok` if all are in order.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let plain = [forwarding(facts), accepting(facts), dialling(config, facts)].into_iter().flatten();
    let mut findings: Vec<Finding> = plain.chain(strict_rp_filter(facts)).chain(valid_mark(facts)).collect();
    if findings.is_empty() {
        findings.push(Finding::ok("sysctl", "sysctls: forwarding, TIME_WAIT, backlog, reverse path filter"));
    }
    findings
}

/// Returns the finding about the sysctl `key`, with the command that sets it to `set`.
fn wrong(facts: &Facts, level: Level, key: &str, set: u64, why: &str) -> Finding {
    let value = facts.sysctl(key).unwrap_or_default();
    Finding::new(level, "sysctl", format!("{key} = {value}"), why).fix(format!("sysctl -w {key}={set}"))
}

fn forwarding(facts: &Facts) -> Vec<Finding> {
    let (v4, v6) = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding");
    let off = |key| facts.number(key) == Some(0);
    let mut findings = Vec::new();
    if off(v4) {
        let why = "this host does not route: it loses packets that are not TCP or not intercepted, and all packets \
                   while tcp-intercept is stopped";
        findings.push(wrong(facts, Level::Warning, v4, 1, why));
    }
    if off(v6) {
        let why =
            "this host does not route IPv6; if it should, it loses all IPv6 packets that are not intercepted";
        findings.push(wrong(facts, Level::Note, v6, 1, why));
    }
    findings
}

fn accepting(facts: &Facts) -> Vec<Finding> {
    let (somaxconn, fwmark_accept) = ("net.core.somaxconn", "net.ipv4.tcp_fwmark_accept");
    let rfc1337 = "net.ipv4.tcp_rfc1337";
    let mut findings = Vec::new();
    if facts.number(somaxconn).is_some_and(|now| now < BACKLOG) {
        let why = "it limits the listeners' backlog of 4096: in a burst of new connections the kernel answers with \
                   SYN cookies, which lose TCP options, or not at all";
        findings.push(wrong(facts, Level::Warning, somaxconn, BACKLOG, why));
    }
    if facts.number(rfc1337) == Some(1) {
        let why = "a reset does not end TIME_WAIT: after tcp-intercept was killed, a client cannot reuse a port for \
                   up to a minute if the server had closed the connection";
        findings.push(wrong(facts, Level::Warning, rfc1337, 0, why));
    }
    if facts.number(fwmark_accept) == Some(1) {
        let why = "answers on connections that a listener without a mark accepts follow the divert table, so no data \
                   gets through. The listeners of tcp-intercept carry a mark and are safe; another transparent proxy \
                   on this host may not be";
        findings.push(wrong(facts, Level::Note, fwmark_accept, 0, why));
    }
    findings
}

fn dialling(config: &Config, facts: &Facts) -> Vec<Finding> {
    let (reuse, timestamps) = ("net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_timestamps");
    let blackhole = "net.mptcp.blackhole_timeout";
    let mut findings = Vec::new();
    if kernel_chooses_port(config.server.source) && facts.number(reuse).is_some_and(|now| now != 1) {
        let why = "the kernel reuses a port for the same server only a minute after its last connection; with 1, \
                   after a second (2 is for loopback only). In a burst of connections to one server, clients are \
                   refused when no port is left";
        findings.push(wrong(facts, Level::Note, reuse, 1, why));
    }
    if config.server.source == Source::Client && facts.number(timestamps) == Some(0) {
        let why = "if a client reuses its port within a minute, the previous connection to the server is still in \
                   TIME_WAIT: without timestamps it keeps the port, and the server then sees another port";
        findings.push(wrong(facts, Level::Warning, timestamps, 1, why));
    }
    if config.server.leg.mptcp && facts.number(blackhole).is_some_and(|now| now > 0) {
        let why = "after one attempt during an outage of a few seconds, the kernel dials plain TCP for this number of \
                   seconds";
        findings.push(wrong(facts, Level::Warning, blackhole, 0, why));
    }
    if config.server.fast_open != FastOpen::Off {
        findings.extend(fast_open(facts));
    }
    findings
}

/// Returns whether the kernel chooses the source port of server legs. Only then does `tcp_tw_reuse` apply: the client's
/// own port is bound, which TIME_WAIT does not prevent (tcp_twsk_unique() in net/ipv4/tcp_ipv4.c).
fn kernel_chooses_port(source: Source) -> bool {
    match source {
        Source::Client => false,
        Source::ClientAddress | Source::Gateway => true,
        Source::Fixed(address) => address.port() == 0,
    }
}

fn fast_open(facts: &Facts) -> impl Iterator<Item = Finding> {
    let (switch, blackhole) = ("net.ipv4.tcp_fastopen", "net.ipv4.tcp_fastopen_blackhole_timeout_sec");
    let off = facts.number(switch).filter(|now| now & 1 == 0).map(|now| {
        let why = "server.fast-open is left out: without bit 1 this host sends no data in SYNs";
        wrong(facts, Level::Warning, switch, now | 1, why)
    });
    let pause = facts.number(blackhole).filter(|&now| now > 0).map(|_| {
        let why = "one connection that stalls after Fast Open makes the kernel disable it everywhere for at least \
                   this number of seconds; with 0, only tcp-intercept disables it, for servers where it has seen it \
                   fail";
        wrong(facts, Level::Note, blackhole, 0, why)
    });
    off.into_iter().chain(pause)
}

/// Reports strict reverse path filters. They drop a packet that arrives on another interface than its answer leaves by.
fn strict_rp_filter(facts: &Facts) -> Option<Finding> {
    let all = facts.number("net.ipv4.conf.all.rp_filter").unwrap_or(0);
    let strict = |found: &&Interface| u64::from(found.rp_filter).max(all) == 1;
    let strict: Vec<&str> = facts.interfaces.iter().filter(strict).map(|found| found.name.as_str()).collect();
    if strict.is_empty() {
        return None;
    }
    let why = "the kernel drops packets that arrive on another interface than their answers would leave by: with more \
               than one uplink, connections hang";
    let what = format!("rp_filter = 1 (strict) on {}", strict.join(", "));
    // The kernel uses the maximum of `all` and the interface's value: one setting fixes every interface.
    Some(Finding::new(Level::Warning, "rp-filter", what, why).fix("sysctl -w net.ipv4.conf.all.rp_filter=2"))
}

/// Reports `src_valid_mark`. With it, the kernel looks up the route back to the client with the divert mark. The divert
/// table then says that the client is this host, so that the kernel drops the packet as a martian.
fn valid_mark(facts: &Facts) -> Option<Finding> {
    let all = facts.number("net.ipv4.conf.all.src_valid_mark") == Some(1);
    let own = facts.interfaces.iter().filter(|found| found.src_valid_mark).map(|found| found.name.as_str());
    let on: Vec<&str> = all.then_some("all").into_iter().chain(own).collect();
    if on.is_empty() {
        return None;
    }
    let why = "the kernel then drops every intercepted IPv4 packet as a martian: it looks up the route back to the \
               client with the divert mark. wg-quick sets this when WireGuard is the default route; with rp_filter 0 \
               or 2 WireGuard does not need it";
    let what = format!("src_valid_mark = 1 on {}", on.join(", "));
    let finding = Finding::new(Level::Error(Exit::Unavailable), "src-valid-mark", what, why);
    // With slashes, sysctl does not treat a dot in an interface's name as a separator.
    Some(on.iter().fold(finding, |finding, name| {
        finding.fix(format!("sysctl -w net/ipv4/conf/{name}/src_valid_mark=0"))
    }))
}
