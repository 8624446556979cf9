//! The sysctls that get in the way: which value, why, and what to set. PURE.
use super::facts::{Facts, Interface};
use super::{Finding, Level};
use crate::config::{Config, FastOpen, Source};
use crate::exit::Exit;

/// What [`judge`] reads; [`super::gather`] fetches these.
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

/// The backlog of our listeners.
const BACKLOG: u64 = 4096;

/// All that is wrong with sysctls; one `ok` when nothing is.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let plain = [forwarding(facts), accepting(facts), dialling(config, facts)].into_iter().flatten();
    let mut findings: Vec<Finding> = plain.chain(strict_rp_filter(facts)).chain(valid_mark(facts)).collect();
    if findings.is_empty() {
        findings.push(Finding::ok("sysctl", "sysctls: forwarding, TIME_WAIT, backlog, reverse path filter"));
    }
    findings
}

/// A sysctl that is wrong, and what to set.
fn wrong(facts: &Facts, level: Level, key: &str, set: u64, why: &str) -> Finding {
    let value = facts.sysctl(key).unwrap_or_default();
    Finding::new(level, "sysctl", format!("{key} = {value}"), why).fix(format!("sysctl -w {key}={set}"))
}

fn forwarding(facts: &Facts) -> Vec<Finding> {
    let (v4, v6) = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding");
    let off = |key| facts.number(key) == Some(0);
    let mut findings = Vec::new();
    if off(v4) {
        let why = "this host does not route: what is not TCP, what is not intercepted, and everything when tcp-intercept is \
                   stopped, is lost here";
        findings.push(wrong(facts, Level::Warning, v4, 1, why));
    }
    if off(v6) {
        let why = "this host does not route IPv6; when it should: what is not intercepted is lost here";
        findings.push(wrong(facts, Level::Note, v6, 1, why));
    }
    findings
}

fn accepting(facts: &Facts) -> Vec<Finding> {
    let (somaxconn, fwmark_accept) = ("net.core.somaxconn", "net.ipv4.tcp_fwmark_accept");
    let rfc1337 = "net.ipv4.tcp_rfc1337";
    let mut findings = Vec::new();
    if facts.number(somaxconn).is_some_and(|now| now < BACKLOG) {
        let why = "it cuts the listeners' backlog of 4096: in a burst of new connections the kernel answers with SYN cookies, \
                   which lose TCP options, or not at all";
        findings.push(wrong(facts, Level::Warning, somaxconn, BACKLOG, why));
    }
    if facts.number(rfc1337) == Some(1) {
        let why = "a reset does not end TIME_WAIT: when tcp-intercept was killed, a client that uses a port again whose connection \
                   the server had ended cannot connect from it for up to a minute";
        findings.push(wrong(facts, Level::Warning, rfc1337, 0, why));
    }
    if facts.number(fwmark_accept) == Some(1) {
        let why = "connections that a listener without a mark accepts answer by the divert table: not one byte gets through. \
                   Our listeners carry a mark and are safe; another transparent proxy on this host may not be";
        findings.push(wrong(facts, Level::Note, fwmark_accept, 0, why));
    }
    findings
}

fn dialling(config: &Config, facts: &Facts) -> Vec<Finding> {
    let (reuse, timestamps) = ("net.ipv4.tcp_tw_reuse", "net.ipv4.tcp_timestamps");
    let blackhole = "net.mptcp.blackhole_timeout";
    let mut findings = Vec::new();
    if kernel_chooses_port(config.server.source) && facts.number(reuse).is_some_and(|now| now != 1) {
        let why = "a port of this host is free for the same server a minute after its last connection, with 1 after a second (2 is \
                   for loopback only): in a burst of connections to one server, clients are refused when none is left";
        findings.push(wrong(facts, Level::Note, reuse, 1, why));
    }
    if config.server.source == Source::Client && facts.number(timestamps) == Some(0) {
        let why = "a client that uses its port again within a minute meets our own connection to the server in TIME_WAIT: \
                   without timestamps that keeps the port, and the server then sees another";
        findings.push(wrong(facts, Level::Warning, timestamps, 1, why));
    }
    if config.server.leg.mptcp && facts.number(blackhole).is_some_and(|now| now > 0) {
        let why = "one attempt during an outage of a few seconds makes the kernel dial plain TCP for so many seconds";
        findings.push(wrong(facts, Level::Warning, blackhole, 0, why));
    }
    if config.server.fast_open != FastOpen::Off {
        findings.extend(fast_open(facts));
    }
    findings
}

/// A client's own port is bound, and one in TIME_WAIT can be: tcp_twsk_unique() in net/ipv4/tcp_ipv4.c asks for `tcp_tw_reuse`
/// only where connect() looks for a port.
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
        let why = "one connection that stalls after Fast Open makes the kernel leave it out everywhere for so many seconds or \
                   more; with 0 it is left out only where tcp-intercept has seen it fail";
        wrong(facts, Level::Note, blackhole, 0, why)
    });
    off.into_iter().chain(pause)
}

/// Strict mode drops what comes back by another path than the one it would take itself.
fn strict_rp_filter(facts: &Facts) -> Option<Finding> {
    let all = facts.number("net.ipv4.conf.all.rp_filter").unwrap_or(0);
    let strict = |found: &&Interface| u64::from(found.rp_filter).max(all) == 1;
    let strict: Vec<&str> = facts.interfaces.iter().filter(strict).map(|found| found.name.as_str()).collect();
    if strict.is_empty() {
        return None;
    }
    let why = "packets that arrive on another interface than the one their answer would leave by are dropped: with more than \
               one uplink, connections hang";
    let what = format!("rp_filter = 1 (strict) on {}", strict.join(", "));
    // The kernel takes the greater one of `all` and the interface's own: one value mends every interface.
    Some(Finding::new(Level::Warning, "rp-filter", what, why).fix("sysctl -w net.ipv4.conf.all.rp_filter=2"))
}

/// With `src_valid_mark` the kernel looks for the way back by the divert mark, finds the divert table, which says that
/// the client is this host itself, and drops the packet as a martian.
fn valid_mark(facts: &Facts) -> Option<Finding> {
    let all = facts.number("net.ipv4.conf.all.src_valid_mark") == Some(1);
    let own = facts.interfaces.iter().filter(|found| found.src_valid_mark).map(|found| found.name.as_str());
    let on: Vec<&str> = all.then_some("all").into_iter().chain(own).collect();
    if on.is_empty() {
        return None;
    }
    let why = "the kernel then drops every intercepted IPv4 packet as a martian: it looks for the way back to the client by \
               the divert mark. wg-quick sets this when WireGuard is the default route; with rp_filter 0 or 2 \
               WireGuard does not need it";
    let what = format!("src_valid_mark = 1 on {}", on.join(", "));
    let finding = Finding::new(Level::Error(Exit::Unavailable), "src-valid-mark", what, why);
    // With slashes, a dot in an interface's name is not taken for a separator.
    Some(on.iter().fold(finding, |finding, name| {
        finding.fix(format!("sysctl -w net/ipv4/conf/{name}/src_valid_mark=0"))
    }))
}
