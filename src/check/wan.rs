//! The WAN: settings that slow down connections over a slow, long or lossy link. PURE.
use super::facts::{Congestion, Facts};
use super::{Finding, Level};
use crate::config::Config;
use crate::exit::Exit;

/// The sysctls that [`judge`] reads; [`super::gather`] collects them.
pub const KEYS: [&str; 3] = [RMEM, WMEM, SLOW_START];

pub(super) const RMEM: &str = "net.ipv4.tcp_rmem";
const WMEM: &str = "net.ipv4.tcp_wmem";
const SLOW_START: &str = "net.ipv4.tcp_slow_start_after_idle";

/// The payload of a segment on Ethernet, in bytes.
const SEGMENT: u64 = 1460;
/// The ratio of buffer to window: the kernel reserves half of a buffer for its own structures.
const OVERHEAD: u64 = 2;
/// The bandwidth-delay product of a satellite link of 20 Mbit/s and 600 ms, in bytes.
const IN_FLIGHT: u64 = 1_500_000;

/// Returns the findings about buffers, and about `[wan]` if it names devices.
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let legs = [&config.client.leg, &config.server.leg];
    let ours =
        legs.iter().all(|leg| leg.send_buffer.bytes(&config.wan).is_some() && leg.notsent_lowat.is_some());
    let keys = if ours { &[RMEM][..] } else { &[RMEM, WMEM] };
    let mut findings: Vec<Finding> = keys.iter().filter_map(|key| buffers(facts, key)).collect();
    if config.wan.devices.is_empty() {
        return findings;
    }
    if !config.rules.manage {
        let why = "the daemon then does not maintain the routes that it needs, so there are none";
        let what = "wan.devices has no effect with rules.manage = false";
        findings.push(Finding::new(Level::Warning, "wan", what, why));
        return findings;
    }
    findings.extend(facts.wan_obstacle.as_deref().map(obstacle));
    findings.extend(absent(config, facts));
    findings.extend(receive_window(config, facts));
    findings.extend(slow_start(config, facts));
    if findings.is_empty() {
        let segments = config.wan.initial_window;
        findings.push(Finding::ok("wan", format!("initial window: {segments} segments, both ways")));
    }
    findings
}

/// Returns the three values of `tcp_rmem` or `tcp_wmem`: minimum, initial value, maximum.
pub(super) fn three(facts: &Facts, key: &str) -> Option<[u64; 3]> {
    let numbers = facts.sysctl(key)?.split_ascii_whitespace().map(|number| number.parse().ok());
    numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()
}

pub(super) fn set(key: &str, [least, first, most]: [u64; 3]) -> String {
    format!("sysctl -w {key}=\"{least} {first} {most}\"")
}

fn buffers(facts: &Facts, key: &str) -> Option<Finding> {
    const ENOUGH: u64 = IN_FLIGHT * OVERHEAD;
    let [least, first, most] = three(facts, key).filter(|[_, _, most]| *most < ENOUGH)?;
    let what = format!("{key} = {least} {first} {most}: no buffer grows beyond {most} bytes");
    let why = "a link of 20 Mbit/s and 600 ms holds 1.5 MB, and the kernel needs twice that: over such links connections \
               are slower than the link";
    Some(Finding::new(Level::Note, "buffers", what, why).fix(set(key, [least, first, ENOUGH])))
}

fn obstacle(why: &str) -> Finding {
    let what = "wan.devices: the routes for the initial window cannot be made";
    Finding::new(Level::Error(Exit::Unavailable), "wan", what, why)
}

fn absent(config: &Config, facts: &Facts) -> Vec<Finding> {
    let there = |name: &str| facts.interfaces.iter().any(|found| found.name == name);
    let absent = config.wan.devices.iter().map(|device| device.as_str()).filter(|name| !there(name));
    let why = "wan.devices names it: as soon as it exists, its connections get their initial window";
    absent
        .map(|name| Finding::new(Level::Note, "wan", format!("there is no device {name} yet"), why))
        .collect()
}

/// Reports a receive window smaller than the initial window, which the listeners request from the kernel as well. The
/// kernel grants at most half of its largest buffer.
fn receive_window(config: &Config, facts: &Facts) -> Option<Finding> {
    let wanted = config.wan.initial_window;
    let needed = u64::from(wanted) * SEGMENT * OVERHEAD;
    let [least, first, most] = three(facts, RMEM).filter(|[_, _, most]| *most < needed)?;
    let segments = most / OVERHEAD / SEGMENT;
    let what =
        format!("{RMEM} = {least} {first} {most}: servers send {segments} segments at first, not {wanted}");
    let why = "half of the third number is the largest window that this host can offer; wan.initial-window is the \
               number of segments wanted in both directions";
    Some(Finding::new(Level::Warning, "wan", what, why).fix(set(RMEM, [least, first, needed])))
}

/// Reports slow start after idle. BBR is not affected: tcp_slow_start_after_idle_check() in include/net/tcp.h.
fn slow_start(config: &Config, facts: &Facts) -> Option<Finding> {
    let host = facts.sysctl("net.ipv4.tcp_congestion_control").unwrap_or_default();
    let name = |leg: &Congestion| if leg.refused.is_some() { host.to_owned() } else { leg.name.clone() };
    let legs = [("client", &facts.client), ("server", &facts.server)];
    let other = legs.into_iter().find(|(_, leg)| name(leg) != "bbr")?;
    facts.number(SLOW_START).filter(|on| *on == 1)?;
    let what = format!("{SLOW_START} = 1, and {}.congestion-control is {}", other.0, name(other.1));
    let why = format!(
        "with any congestion control except bbr, a connection that was idle for a moment restarts with {} segments",
        config.wan.initial_window
    );
    Some(Finding::new(Level::Note, "wan", what, why).fix(format!("sysctl -w {SLOW_START}=0")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::{Errno, Interface};

    const WAN: &str = "wan.devices = ['wan0']";

    fn facts(sysctls: &[(&'static str, &str)]) -> Facts {
        let fine = [(RMEM, "4096 131072 6291456"), (WMEM, "4096 16384 4194304"), (SLOW_START, "1")];
        let bbr = Congestion { name: "bbr".to_owned(), refused: None };
        Facts {
            sysctls: fine.iter().chain(sysctls).map(|(key, value)| (*key, (*value).to_owned())).collect(),
            interfaces: vec![Interface { name: "wan0".to_owned(), ..Interface::default() }],
            client: bbr.clone(),
            server: bbr,
            ..Facts::default()
        }
    }

    /// Returns the level, the observation and the fix of each finding.
    fn told(config: &str, facts: &Facts) -> Vec<String> {
        let config = Config::parse(config, &[]).unwrap();
        let line =
            |Finding { level, what, fix, .. }: &Finding| format!("{level:?}: {what} [{}]", fix.join("; "));
        judge(&config, facts).iter().map(line).collect()
    }

    #[test]
    fn a_link_with_sufficient_settings_is_ok() {
        assert_eq!(told(WAN, &facts(&[])), ["Ok: initial window: 100 segments, both ways []"]);
        assert_eq!(told("", &facts(&[])), [""; 0], "no [wan] is configured");
    }

    #[test]
    fn receive_buffers_smaller_than_the_window_are_reported_with_the_required_size() {
        let small = facts(&[(RMEM, "4096 131072 3000000")]);
        let more = "wan.devices = ['wan0']\nwan.initial-window = 1000";
        assert_eq!(told(more, &small), ["Ok: initial window: 1000 segments, both ways []"]);
        let smaller = facts(&[(RMEM, "4096 131072 146000")]);
        let warning = told(WAN, &smaller).remove(1);
        let what = "net.ipv4.tcp_rmem = 4096 131072 146000: servers send 50 segments at first, not 100";
        let fix = "sysctl -w net.ipv4.tcp_rmem=\"4096 131072 292000\"";
        assert_eq!(warning, format!("Warning: {what} [{fix}]"));
    }

    #[test]
    fn buffers_too_small_for_a_long_link_are_reported_with_any_configuration() {
        let small = facts(&[(RMEM, "4096 131072 2999999"), (WMEM, "4096\t16384\t1000000")]);
        let long = facts(&[(WMEM, "4096 16384 1000000")]);
        assert_eq!(
            told(WAN, &long),
            ["Ok: initial window: 100 segments, both ways []"],
            "the program sets the size of send buffers"
        );
        let told = told("", &small);
        assert!(
            told[0].starts_with("Note: net.ipv4.tcp_rmem = 4096 131072 2999999: no buffer grows"),
            "{told:?}"
        );
        assert!(told[0].ends_with("[sysctl -w net.ipv4.tcp_rmem=\"4096 131072 3000000\"]"), "{told:?}");
        assert!(told[1].ends_with("[sysctl -w net.ipv4.tcp_wmem=\"4096 16384 3000000\"]"), "{told:?}");
    }

    #[test]
    fn slow_start_after_idle_is_reported_if_a_leg_does_not_use_bbr() {
        let mut host = facts(&[("net.ipv4.tcp_congestion_control", "cubic")]);
        host.server.refused = Some(Errno::EPERM);
        let what = "net.ipv4.tcp_slow_start_after_idle = 1, and server.congestion-control is cubic";
        let expected = [format!("Note: {what} [sysctl -w net.ipv4.tcp_slow_start_after_idle=0]")];
        assert_eq!(told(WAN, &host), expected);
        host.sysctls.insert(SLOW_START, "0".to_owned());
        assert_eq!(told(WAN, &host).len(), 1);
        assert!(told(WAN, &host)[0].starts_with("Ok"));
    }

    #[test]
    fn obstacles_to_the_initial_window_are_reported() {
        let mut host = facts(&[]);
        host.interfaces.clear();
        host.wan_obstacle = Some("table 6 is taken".to_owned());
        let all = told(WAN, &host);
        assert!(all[0].starts_with("Error(Unavailable): wan.devices: the routes"), "{all:?}");
        assert_eq!(all[1], "Note: there is no device wan0 yet []");
        let unmanaged = told("rules.manage = false\nwan.devices = ['wan0']", &host);
        assert_eq!(unmanaged, ["Warning: wan.devices has no effect with rules.manage = false []"]);
    }
}
