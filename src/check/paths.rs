//! MPTCP between two boxes: problems that keep a connection from using all paths. PURE.
use super::facts::Facts;
use super::wan::{RMEM, set, three};
use super::{Finding, Level};
use crate::config::{Config, MptcpPath};
use crate::exit::Exit;
use crate::host::paths::endpoint::Endpoint;
use crate::host::paths::plan::{self, Seen, Survey, Way};
use crate::host::paths::standing::{Standing, State};

/// The sysctls that [`judge`] reads; [`super::gather`] collects them.
pub const KEYS: [&str; 9] = [
    RMEM,
    RETRIES,
    RTO_MAX,
    "net.mptcp.allow_join_initial_addr_port",
    "net.mptcp.available_path_managers",
    SCHEDULERS,
    PATH_MANAGER,
    PM_TYPE,
    "net.mptcp.scheduler",
];

const RETRIES: &str = "net.ipv4.tcp_retries2";
const RTO_MAX: &str = "net.ipv4.tcp_rto_max_ms";
const SCHEDULERS: &str = "net.mptcp.available_schedulers";
const PATH_MANAGER: &str = "net.mptcp.path_manager";
const PM_TYPE: &str = "net.mptcp.pm_type";
const NAME: &str = "paths";
/// The initial receive buffer, in bytes, with which no connection stalled: docs/decisions/0006.
const ROOM: u64 = 1 << 20;
/// The recommended maximum of the retransmission timer in ms: above the round trip of a satellite link; docs/pair.md
/// has the measurement.
const RTO_MOST: u64 = 2000;
/// The number of connections or joins without a single success from which a failure is systematic.
const SOME: u64 = 3;

/// Returns whether `config` uses MPTCP.
pub fn asked_for(config: &Config) -> bool {
    config.server.leg.mptcp || config.client.leg.mptcp || !config.mptcp.paths.is_empty()
}

/// Returns the findings about the paths, if a leg or a path uses MPTCP.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    // `legs` reports a kernel that refuses MPTCP sockets.
    let Some(found) = facts.paths.as_ref().filter(|_| facts.mptcp.is_none()) else { return Vec::new() };
    let survey = match found {
        Ok(survey) => survey,
        Err(why) => {
            let what = "mptcp.path: the kernel's path manager cannot be used";
            let level =
                if config.mptcp.paths.is_empty() { Level::Note } else { Level::Error(Exit::Unavailable) };
            return vec![Finding::new(level, NAME, what, why)];
        }
    };
    let mut findings: Vec<Finding> = manager(facts).into_iter().collect();
    findings.extend(without_leg(config));
    findings.extend(without_path(config, &survey.seen));
    findings.extend(standing(config, &survey.seen));
    findings
        .extend(survey.ways.iter().filter_map(|(path, endpoint, way)| steering_rules(path, endpoint, *way)));
    findings.extend(strangers(config, facts));
    findings.extend(recovery(config, facts));
    findings.extend(room(config, facts));
    findings.extend(experience(config, survey));
    if findings.iter().all(|finding| finding.level == Level::Ok) && !config.mptcp.paths.is_empty() {
        let names: Vec<String> = config.mptcp.paths.iter().map(MptcpPath::to_string).collect();
        findings.push(Finding::ok(NAME, format!("paths: {}", names.join(", "))));
    }
    findings
}

/// Reports the path manager and the scheduler that the kernel uses.
fn manager(facts: &Facts) -> Option<Finding> {
    let scheduler = facts.sysctl("net.mptcp.scheduler").unwrap_or("default");
    let schedulers = facts.sysctl(SCHEDULERS).unwrap_or(scheduler);
    let manager = match (facts.sysctl(PATH_MANAGER), facts.sysctl(PM_TYPE)) {
        (Some(name), _) => name,
        (None, Some("1")) => "userspace",
        (None, _) => "kernel",
    };
    if manager == "kernel" {
        let what = format!("MPTCP: scheduler {scheduler} (of {schedulers}), path manager kernel");
        return Some(Finding::ok(NAME, what));
    }
    let why = "endpoints and limits apply only to the kernel's own path manager: new connections get no further path \
               from them";
    let (key, value) =
        if facts.sysctl(PATH_MANAGER).is_some() { (PATH_MANAGER, "kernel") } else { (PM_TYPE, "0") };
    let finding = Finding::new(Level::Warning, NAME, format!("MPTCP: path manager {manager}"), why);
    Some(finding.fix(format!("sysctl -w {key}={value}")))
}

fn without_leg(config: &Config) -> Option<Finding> {
    let (mut announced, mut joined) = (false, false);
    for path in &config.mptcp.paths {
        if path.announce.is_some() { announced = true } else { joined = true }
    }
    let legs = [
        (
            joined && !config.server.leg.mptcp,
            "server",
            "connections are dialled with plain TCP, which has one path",
        ),
        (
            announced && !config.client.leg.mptcp,
            "client",
            "the near box's connections are accepted as plain TCP",
        ),
    ];
    let (_, leg, why) = legs.into_iter().find(|(wrong, ..)| *wrong)?;
    let what = format!("mptcp.path is set, and {leg}.mptcp = false");
    Some(Finding::new(Level::Warning, NAME, what, format!("{why}: set {leg}.mptcp = true")))
}

/// Reports that MPTCP is configured, but nothing creates a second path.
fn without_path(config: &Config, seen: &Seen) -> Option<Finding> {
    if !config.mptcp.paths.is_empty() {
        return None;
    }
    let (what, why) = match (config.server.leg.mptcp, config.client.leg.mptcp) {
        (true, _) if seen.limits.add_addr_accepted == 0 && seen.endpoints.is_empty() => (
            "server.mptcp = true, no mptcp.path, no MPTCP endpoint, and the limit add_addr_accepted is 0",
            "connections have one path, as without MPTCP: name the others in [[mptcp.path]]",
        ),
        (_, true) if seen.endpoints.is_empty() => (
            "client.mptcp = true, no mptcp.path, and no MPTCP endpoint",
            "no address is announced, so that connections have one path: set one in [[mptcp.path]] with announce = true",
        ),
        _ => return None,
    };
    Some(Finding::new(Level::Note, NAME, what, why))
}

/// Reports the paths that cannot be used now. Existing endpoints are not reported: they may be those of a running
/// daemon.
fn standing(config: &Config, seen: &Seen) -> Vec<Finding> {
    let told = |Standing { path, state }: &Standing| match state {
        State::NoDevice | State::NoAddress | State::Nowhere => {
            let why = "connections do without this path until then";
            Some(Finding::new(Level::Note, NAME, format!("{path}: {state}"), why))
        }
        State::DoesNotFit(_) => {
            let why = "the near box receives no address, and connections do without this path";
            Some(Finding::new(Level::Warning, NAME, format!("{path}: {state}"), why))
        }
        State::Twice(_) | State::Operators(_) | State::Lingers(_) | State::Announced(_) | State::Joins(_) => {
            None
        }
    };
    plan::plan(&config.mptcp, seen).standing.iter().filter_map(told).collect()
}

fn steering_rules(path: &str, endpoint: &Endpoint, way: Way) -> Option<Finding> {
    let address = endpoint.place.address;
    let (level, what) = match way {
        Way::Out => return None,
        Way::ByAnother => {
            (Level::Warning, format!("{path}: what is sent from {address} leaves by another device"))
        }
        Way::None => {
            (Level::Note, format!("{path}: from {address} only hosts of its own network can be reached"))
        }
    };
    let why = format!(
        "the path leads to the other box only if that is in the same network; else {address} needs a routing table of its own: \
         ip rule add from {address} lookup 101; ip route add default via GATEWAY dev DEVICE table 101"
    );
    Some(Finding::new(level, NAME, what, why))
}

/// Reports that MPTCP clients may join at the address that they dialled: behind a far box, that is the server's
/// address.
fn strangers(config: &Config, facts: &Facts) -> Option<Finding> {
    const KEY: &str = "net.mptcp.allow_join_initial_addr_port";
    facts.number(KEY).filter(|allowed| *allowed == 1 && config.client.leg.mptcp)?;
    let why = "a client that speaks MPTCP itself and has several addresses sends joins to the server's address, which \
               the server refuses; 0 tells clients not to. Connections through a near box with tcp-intercept are not \
               affected";
    Some(Finding::new(Level::Note, NAME, format!("{KEY} = 1"), why).fix(format!("sysctl -w {KEY}=0")))
}

/// Reports a long maximum of the retransmission timer. The kernel tries an interrupted path again when this timer
/// fires; the timer doubles each time, up to the maximum.
fn recovery(config: &Config, facts: &Facts) -> Option<Finding> {
    let now = facts.number(RTO_MAX).filter(|most| *most > RTO_MOST && !config.mptcp.paths.is_empty())?;
    let why = "after an interruption, the kernel uses a path again only after as long as the interruption took, up to \
               two minutes; with 2000, after two seconds. The timer applies to every connection of this host. \
               tcp_retries2 counts retransmissions: without 255, the kernel would give up a connection after half a \
               minute; with both settings, after eight minutes. Do not set them where a round trip takes a second or \
               more";
    let finding = Finding::new(Level::Note, NAME, format!("{RTO_MAX} = {now}"), why);
    // The order matters: with the second setting alone, the kernel gives up connections early.
    Some(finding.fix(format!("sysctl -w {RETRIES}=255")).fix(format!("sysctl -w {RTO_MAX}={RTO_MOST}")))
}

/// Reports small receive buffers. Out-of-order data of several paths can fill a buffer, which grows only as data is
/// read.
fn room(config: &Config, facts: &Facts) -> Option<Finding> {
    let [least, first, most] =
        three(facts, RMEM).filter(|[_, first, _]| *first < ROOM && !config.mptcp.paths.is_empty())?;
    let why = "when the queues of several paths overflow, out-of-order data can fill the buffer, so that the missing \
               segment finds no room. Such a connection stalls forever: this happened to two of 45,000";
    let what = format!("{RMEM} = {least} {first} {most}: a connection begins with room for {first} bytes");
    let fix = set(RMEM, [least, ROOM, most.max(ROOM)]);
    Some(Finding::new(Level::Warning, NAME, what, why).fix(fix))
}

/// Reports failures that the kernel's counters since its start show: attempts without any success.
fn experience(config: &Config, survey: &Survey) -> Vec<Finding> {
    let counter = |name| survey.counter(name);
    let mut findings = Vec::new();
    let mut none = |tried: u64, came: u64, what: String, why: &str| {
        if tried >= SOME && came == 0 {
            findings.push(Finding::new(Level::Warning, NAME, what, why));
        }
    };
    if config.server.leg.mptcp {
        let (dialled, answered) = (counter("MPCapableSYNTX"), counter("MPCapableSYNACKRX"));
        let what = format!("{dialled} connections were dialled with MPTCP, none was answered with it");
        let why = "the servers do not speak it and no far box is in the way (client.mptcp = true there?), or something on the way \
                   strips the option";
        none(dialled, answered, what, why);
        let what =
            format!("{answered} connections were answered with MPTCP, and no address was announced on any");
        let why = "the far box announces none ([[mptcp.path]] with announce = true there?), or something on the way strips the option";
        none(answered, counter("AddAddr"), what, why);
        let joins = counter("MPJoinSynTx");
        let what = format!("{joins} subflows were dialled on other paths, none was answered");
        let why = "the announced address and port cannot be reached from the paths' addresses: a firewall before the far box, or a \
                   route (ip route get ADDRESS from ADDRESS)";
        none(joins, counter("MPJoinSynAckRx"), what, why);
    }
    if config.client.leg.mptcp && config.mptcp.paths.iter().any(|path| path.announce.is_some()) {
        let announced = counter("AddAddrTx");
        let what =
            format!("{announced} times an address was announced, and no peer has opened a subflow to it");
        let why = "the near box accepts no announcements (ip mptcp limits there), or cannot reach that address and port";
        none(announced, counter("MPJoinSynRx"), what, why);
    }
    findings
}

#[cfg(test)]
mod tests;
