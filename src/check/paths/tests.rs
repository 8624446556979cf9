//! Tests of the findings about paths, with facts as data.
use std::net::IpAddr;

use super::*;
use crate::config::Interface;
use crate::host::paths::plan::Address;

const NEAR: &str = "server.mptcp = true\nmptcp.path = [{device = 'wan1'}]";
const FAR: &str = "client.mptcp = true\nmptcp.path = [{device = 'wan1', announce = true}]";

fn facts(sysctls: &[(&'static str, &str)], change: impl FnOnce(&mut Survey)) -> Facts {
    let fine = [
        ("net.mptcp.scheduler", "default"),
        (SCHEDULERS, "default"),
        (PATH_MANAGER, "kernel"),
        (RTO_MAX, "2000"),
        (RMEM, "4096 1048576 33554432"),
        ("net.mptcp.allow_join_initial_addr_port", "0"),
    ];
    let mut survey = Survey::default();
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    survey.seen.devices.insert(Interface::new("wan1").unwrap(), Some(1));
    survey.seen.addresses.push(Address { ip, device: 1, ready: true, lasting: true });
    survey.seen.timestamps = true;
    change(&mut survey);
    Facts {
        sysctls: fine.iter().chain(sysctls).map(|(key, value)| (*key, (*value).to_owned())).collect(),
        paths: Some(Ok(survey)),
        ..Facts::default()
    }
}

fn told(config: &str, facts: &Facts) -> Vec<String> {
    let config = Config::parse(config, &[]).unwrap();
    let line = |Finding { level, what, fix, .. }: &Finding| format!("{level:?}: {what} [{}]", fix.join("; "));
    judge(&config, facts).iter().map(line).collect()
}

/// Returns the findings except those at the level `Ok`.
fn wrong(config: &str, facts: &Facts) -> Vec<String> {
    told(config, facts).into_iter().filter(|line| !line.starts_with("Ok")).collect()
}

#[test]
fn a_box_with_sufficient_settings_is_ok() {
    let well = facts(&[], |_| ());
    let manager = "Ok: MPTCP: scheduler default (of default), path manager kernel []";
    for config in [NEAR, FAR] {
        assert_eq!(told(config, &well), [manager, "Ok: paths: wan1 []"]);
    }
    assert!(!asked_for(&Config::default()));
}

#[test]
fn each_missing_requirement_is_reported() {
    let other = facts(&[(PATH_MANAGER, "userspace")], |_| ());
    assert_eq!(
        wrong(NEAR, &other),
        ["Warning: MPTCP: path manager userspace [sysctl -w net.mptcp.path_manager=kernel]"]
    );
    let well = facts(&[], |_| ());
    let no_leg = |config: &str| wrong(config.split_once('\n').unwrap().1, &well);
    assert_eq!(no_leg(NEAR), ["Warning: mptcp.path is set, and server.mptcp = false []"]);
    assert_eq!(no_leg(FAR), ["Warning: mptcp.path is set, and client.mptcp = false []"]);
    assert!(wrong("server.mptcp = true", &well)[0].contains("the limit add_addr_accepted is 0"));
    assert!(wrong("client.mptcp = true", &well)[0].contains("no MPTCP endpoint"));
    let absent = facts(&[], |survey| survey.seen.devices.clear());
    assert!(wrong(NEAR, &absent)[0].starts_with("Note: wan1: there is no such device yet"));
    let v6 = facts(&[], |survey| survey.seen.addresses[0].ip = "2001:db8::1".parse().unwrap());
    assert!(wrong(FAR, &v6)[0].starts_with("Warning: wan1: 2001:db8::1 cannot be announced while"));
    assert_eq!(wrong(NEAR, &v6), [""; 0]);
    let narrow = facts(&[(RMEM, "4096 131072 6291456")], |_| ());
    assert_eq!(
        wrong(FAR, &narrow),
        [
            "Warning: net.ipv4.tcp_rmem = 4096 131072 6291456: a connection begins with room for 131072 bytes [sysctl -w net.ipv4.tcp_rmem=\"4096 1048576 6291456\"]"
        ]
    );
    let slow = facts(&[(RTO_MAX, "120000")], |_| ());
    assert_eq!(
        wrong(FAR, &slow),
        [
            "Note: net.ipv4.tcp_rto_max_ms = 120000 [sysctl -w net.ipv4.tcp_retries2=255; sysctl -w net.ipv4.tcp_rto_max_ms=2000]"
        ]
    );
    let joins = facts(&[("net.mptcp.allow_join_initial_addr_port", "1")], |_| ());
    assert_eq!((wrong(FAR, &joins).len(), wrong(NEAR, &joins).len()), (1, 0));
    let none = Facts { paths: Some(Err("this kernel has none".to_owned())), ..facts(&[], |_| ()) };
    assert!(wrong(NEAR, &none)[0].starts_with("Error(Unavailable)"));
}

#[test]
fn a_path_that_leaves_by_another_device_or_has_no_route_is_reported() {
    for (way, level) in [(Way::ByAnother, "Warning"), (Way::None, "Note"), (Way::Out, "")] {
        let facts = facts(&[], |survey| {
            let (endpoint, path) =
                plan::plan(&Config::parse(NEAR, &[]).unwrap().mptcp, &survey.seen).add[0].clone();
            survey.ways.push((path, endpoint, way));
        });
        let lines = wrong(NEAR, &facts);
        assert_eq!(lines.len(), usize::from(way != Way::Out), "{lines:?}");
        assert!(lines.iter().all(|line| line.starts_with(level) && line.contains("192.0.2.1")), "{lines:?}");
    }
}

#[test]
fn repeated_attempts_without_any_success_are_reported() {
    let counted = |counters: &[(&str, u64)]| {
        facts(&[], |survey| {
            survey.counters = counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        })
    };
    let one = |config, counters: &[(&str, u64)]| {
        let lines = wrong(config, &counted(counters));
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    assert!(one(NEAR, &[("MPCapableSYNTX", 3)]).contains("none was answered with it"));
    assert!(
        one(NEAR, &[("MPCapableSYNTX", 9), ("MPCapableSYNACKRX", 9)]).contains("no address was announced")
    );
    assert!(
        one(NEAR, &[("AddAddr", 9), ("MPJoinSynTx", 9)]).contains("subflows were dialled on other paths")
    );
    assert!(one(FAR, &[("AddAddrTx", 9)]).contains("no peer has opened a subflow to it"));
    assert_eq!(wrong(NEAR, &counted(&[("MPCapableSYNTX", 2)])), [""; 0]);
    let well = [
        ("MPCapableSYNTX", 9),
        ("MPCapableSYNACKRX", 9),
        ("AddAddr", 9),
        ("MPJoinSynTx", 9),
        ("MPJoinSynAckRx", 1),
    ];
    assert_eq!(wrong(NEAR, &counted(&well)), [""; 0]);
}
