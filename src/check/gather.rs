//! Collects the facts about this host. EFFECT: reads /proc and /sys, opens sockets without connecting them, runs nft.
use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::facts::{Congestion, Degraded, Errno, Facts, Interface, LegacyInput, Privileges, Rules};
use super::{paths, sysctls, wan};
use crate::config::{self, Config, Leg};
use crate::host::kernel::Kernel;
use crate::host::rules::{self, Verdict};

mod programs;

/// The congestion control that is tried first if `congestion-control` is not set.
const PREFERRED: &str = "bbr";

/// Collects all facts about this host, in the network namespace of the calling thread. Trying a congestion control can
/// load its module, as `run` does.
pub fn facts(config: &Config) -> Facts {
    let interfaces = interfaces();
    let keys = sysctls::KEYS.into_iter().chain(wan::KEYS).chain(paths::KEYS);
    Facts {
        privileges: privileges(config.rules.own_mark.server()),
        sysctls: keys.filter_map(|key| Some((key, sysctl(key)?))).collect(),
        bridges: bridges(&interfaces),
        interfaces,
        nft: programs::nft(config),
        legacy_input: legacy_input(),
        mptcp: errno(socket(true).map(drop)),
        client: congestion(&config.client.leg),
        server: congestion(&config.server.leg),
        degraded: degraded(config),
        rules: installed(config),
        wan_obstacle: crate::host::wan::obstacle(config),
        paths: paths::asked_for(config)
            .then(|| crate::host::paths::survey(config).map_err(|err| err.to_string())),
        descriptors: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
    }
}

fn sysctl(key: &str) -> Option<String> {
    read(Path::new("/proc/sys").join(key.replace('.', "/")))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn privileges(own_mark: u32) -> Privileges {
    const BIND_SERVICE: u32 = 10;
    const NET_ADMIN: u32 = 12;
    const NET_RAW: u32 = 13;
    const SYS_ADMIN: u32 = 21;
    const SYS_RESOURCE: u32 = 24;
    let status = read("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let has = |capability: u32| effective & (1 << capability) != 0;
    // Only the initial user namespace maps the whole range of user ids to itself.
    let ids = read("/proc/self/uid_map").unwrap_or_default();
    let initial = ids.split_whitespace().eq(["0", "0", "4294967295"]);
    let tried = socket(false);
    let refused = |set: fn(&Socket, u32) -> io::Result<()>| match &tried {
        Ok(socket) => errno(set(socket, own_mark)),
        Err(err) => err.raw_os_error().map(Errno),
    };
    Privileges {
        net_admin: has(NET_ADMIN),
        net_raw: has(NET_RAW),
        bind_service: has(BIND_SERVICE),
        pipes_unlimited: initial && (has(SYS_RESOURCE) || has(SYS_ADMIN)),
        transparent: refused(|socket, _| socket.set_ip_transparent_v4(true)),
        mark: refused(Socket::set_mark),
    }
}

fn interfaces() -> Vec<Interface> {
    let conf = Path::new("/proc/sys/net/ipv4/conf");
    let names = names_in(conf).into_iter().filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"));
    let interface = |name: String| {
        let own =
            |key| read(conf.join(&name).join(key)).and_then(|text| text.parse::<u8>().ok()).unwrap_or(0);
        let (rp_filter, src_valid_mark) = (own("rp_filter"), own("src_valid_mark") == 1);
        Interface { name, rp_filter, src_valid_mark }
    };
    names.map(interface).collect()
}

/// Returns the bridges with two or more ports. `/sys` may show another network namespace, so that only interfaces of
/// this one are considered.
fn bridges(interfaces: &[Interface]) -> Vec<String> {
    let ports = |name: &str| names_in(&Path::new("/sys/class/net").join(name).join("brif")).len();
    interfaces.iter().map(|found| found.name.clone()).filter(|name| ports(name) > 1).collect()
}

/// Lists the INPUT chains of the legacy iptables. These programs create the table that they list, so that they run only
/// if the table exists. Where the process may not read whether it exists, a new table does no harm.
fn legacy_input() -> Vec<LegacyInput> {
    let tables = [("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy")];
    let found = tables.into_iter().filter_map(|(file, program)| {
        match fs::read_to_string(Path::new("/proc/thread-self/net").join(file)) {
            Ok(names) if names.lines().any(|name| name == "filter") => {
                Some(LegacyInput { program, rules: programs::legacy_input(program) })
            }
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                programs::legacy_input(program).map(|rules| LegacyInput { program, rules: Some(rules) })
            }
            _ => None,
        }
    });
    found.collect()
}

/// Returns the names in a directory, sorted; none if the directory does not exist.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn socket(mptcp: bool) -> io::Result<Socket> {
    let protocol = if mptcp { Protocol::MPTCP } else { Protocol::TCP };
    Socket::new(Domain::IPV4, Type::STREAM, Some(protocol))
}

fn congestion(leg: &Leg) -> Congestion {
    let name = match &leg.congestion_control {
        config::Congestion::Named(name) => name.as_str().to_owned(),
        config::Congestion::Preferred | config::Congestion::Host => PREFERRED.to_owned(),
    };
    let refused = errno(socket(false).and_then(|socket| socket.set_tcp_congestion(name.as_bytes())));
    Congestion { name, refused }
}

/// Returns the options that `run` would leave out. Congestion control is checked separately for each leg: the probe
/// ends at the first refused one, and would report nothing else.
fn degraded(config: &Config) -> Vec<Degraded> {
    let mut config = config.clone();
    for leg in [&mut config.client.leg, &mut config.server.leg] {
        leg.congestion_control = config::Congestion::Host;
    }
    let found = Kernel::probe(&config).map(|kernel| kernel.degraded).unwrap_or_default();
    let found = found.into_iter().filter_map(|left_out| {
        let errno = Errno(left_out.err.raw_os_error()?);
        Some(Degraded { key: left_out.key, kind: left_out.kind.to_string(), errno })
    });
    found.collect()
}

fn installed(config: &Config) -> Rules {
    match rules::status(config) {
        Err(err) => Rules::Unknown(err.to_string()),
        Ok(status) => match status.verdict {
            Verdict::Absent => Rules::Absent,
            Verdict::Installed => Rules::Installed,
            Verdict::Partly | Verdict::Differ => Rules::Differ(status.differences),
        },
    }
}

fn errno(done: io::Result<()>) -> Option<Errno> {
    done.err().and_then(|err| err.raw_os_error()).map(Errno)
}
