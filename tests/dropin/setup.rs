//! The daemon with each host set-up that a user of 1.1.0 has or will migrate to.
use std::fs;
use std::os::unix::fs::symlink;

use lab::stream::{self, Pace};
use lab::{BOTH, Ip, Lab, netns, peers};

use crate::support::{BIN, Daemon, install_rules};

const PAGE: &str = include_str!("../../docs/migrate.md");

/// Checks that a megabyte passes each way through the box over each of `protocols`, with a server that sees the client
/// and one that sees the box.
fn traffic_passes(lab: &Lab, protocols: &[Ip], listen: &str) {
    for outgoing in ["client", "[0.0.0.0]:[0]"] {
        let daemon = Daemon::start(lab, &format!("-k -n -b {listen} -B {outgoing}"));
        for &ip in protocols {
            passes(lab, ip, outgoing == "client");
        }
        assert_eq!(daemon.stop(), Some(0));
    }
}

fn passes(lab: &Lab, ip: Ip, as_client: bool) {
    let (near, far, seen) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
    assert_eq!(seen == near.local_addr().unwrap(), as_client, "{seen}");
    let legs = lab.gateway.ss("-tn state established '( sport = :7 or dport = :7 )'");
    assert_eq!(legs.lines().count(), 2, "{ip:?}: {legs}");
    stream::exchange(&near, &far, 1 << 20, Pace::FULL);
}

/// Shows everything that any of the set-ups may leave on the box.
const HOST: &str = "ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
    nft list tables | grep tcp_intercept || true";

#[test]
fn rules_install_leads_connections_to_it_and_rules_remove_takes_all_away() {
    netns(|| {
        let lab = Lab::new();
        let before = lab.gateway.run(HOST);
        install_rules(&lab);
        traffic_passes(&lab, &BOTH, "[::]:[5000]");
        lab.gateway.run(&format!("{BIN} rules remove"));
        assert_eq!(lab.gateway.run(HOST), before);
    });
}

/// Runs a shell script on the box with `iptables` of this kind: `nft` or `legacy`.
fn with_iptables(lab: &Lab, kind: &str, text: &str) -> String {
    lab.gateway.run(&format!(
        "mkdir -p /run/{kind}; for name in iptables ip6tables; do
           ln -sf \"$(command -v $name-{kind})\" /run/{kind}/$name
         done; export PATH=/run/{kind}:$PATH; {text}"
    ))
}

fn printed_commands_lead_connections_to_it(kind: &str) {
    let lab = Lab::new();
    let before = lab.gateway.run(HOST);
    lab.gateway.run(&format!("{BIN} rules print --format iptables > /run/commands"));
    with_iptables(&lab, kind, "sh -e /run/commands");
    traffic_passes(&lab, &BOTH, "[::]:[5000]");
    let undo =
        "sed -n '/^# To remove them/,$ s/^# \\(i.*\\)/\\1/p' /run/commands > /run/undo; sh -e /run/undo";
    with_iptables(&lab, kind, undo);
    assert_eq!(lab.gateway.run(HOST), before);
}

#[test]
fn the_printed_commands_lead_connections_to_it_with_iptables_nft() {
    netns(|| printed_commands_lead_connections_to_it("nft"));
}

#[test]
fn the_printed_commands_lead_connections_to_it_with_iptables_legacy() {
    netns(|| printed_commands_lead_connections_to_it("legacy"));
}

/// The rules and routes from 1.1.0's README and init script, for IPv4, without an address of a listener.
const OLD: &str = "
    ip rule add fwmark 0x1/0x1 table 5
    ip route add local 0.0.0.0/0 dev lo table 5
    iptables -t mangle -N tproxy
    iptables -t mangle -A PREROUTING -j tproxy
    for rule in '-m socket -j MARK --set-mark 0x1/0x1' '-m socket -j RETURN' '-m addrtype --dst-type LOCAL -j RETURN' \
                '-j TPROXY --on-port 5000 --tproxy-mark 0x1/0x1'; do
        iptables -t mangle -A tproxy -p tcp $rule
    done";

fn old_rules_lead_connections_to_it(kind: &str) {
    let lab = Lab::new();
    with_iptables(&lab, kind, OLD);
    traffic_passes(&lab, &[Ip::V4], "[0.0.0.0]:[5000]");
}

#[test]
fn what_1_1_0_set_up_still_leads_connections_to_it_with_iptables_nft() {
    netns(|| old_rules_lead_connections_to_it("nft"));
}

#[test]
fn what_1_1_0_set_up_still_leads_connections_to_it_with_iptables_legacy() {
    netns(|| old_rules_lead_connections_to_it("legacy"));
}

/// Returns the commands of the migration page for users of 1.1.0: to set up the program, and to remove the old set-up.
fn shell_of_the_page() -> Vec<&'static str> {
    PAGE.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn the_page_for_1_1_0s_users_takes_the_old_set_up_away() {
    netns(|| {
        let lab = Lab::new();
        for kind in ["nft", "legacy"] {
            let before = lab.gateway.run(HOST);
            with_iptables(&lab, kind, OLD);
            with_iptables(&lab, kind, shell_of_the_page()[1]);
            assert_eq!(lab.gateway.run(HOST), before);
            assert!(!with_iptables(&lab, kind, "iptables -t mangle -S").contains("tproxy"));
        }
    });
}

#[test]
fn the_page_for_1_1_0s_users_sets_it_up() {
    netns(|| {
        let lab = Lab::new();
        fs::create_dir_all("/run/bin").unwrap();
        symlink(BIN, "/run/bin/tcp-intercept").unwrap();
        // The page's paths are those of a host; the test replaces them by paths in the lab's own /run.
        let commands = shell_of_the_page()[0].replace("/var/log/", "/run/");
        lab.gateway.run(&format!("export PATH=/run/bin:$PATH; {commands}"));
        passes(&lab, Ip::V4, true);
        let log = fs::read_to_string("/run/tcp-intercept.log").unwrap();
        assert!(log.contains("ready"), "{log}");
        lab.gateway.run("kill $(cat /run/tcp-intercept.pid)");
    });
}
