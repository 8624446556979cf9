//! Conditions that prevent a start: one clear message, the right exit code, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::fs;
use std::process::{Command, Stdio};

use lab::{Daemon, Lab, netns};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");

/// Runs `command`, which must exit by itself with `code`, print all of `words` in its message, and change nothing.
fn refused(lab: &Lab, command: &[&str], code: i32, words: &[&str]) {
    let before = host(lab);
    let output = lab.gateway.cmd(command[0]).args(&command[1..]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{command:?}: no {word:?} in {said}");
    }
    assert_eq!(host(lab), before, "{command:?}");
}

fn run_refused(lab: &Lab, arguments: &[&str], code: i32, words: &[&str]) {
    refused(lab, &[&[BIN, "run"], arguments].concat(), code, words);
}

/// Returns the state that a successful start changes.
fn host(lab: &Lab) -> String {
    lab.gateway.run(
        "nft -st list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; \
         cat /proc/sys/net/ipv4/tcp_early_demux /proc/sys/net/ipv4/tcp_fastopen; ss -Htan",
    )
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    netns(|| {
        let lab = Lab::new();
        run_refused(&lab, &["--frobnicate"], 64, &["--frobnicate", "Usage"]);
        refused(&lab, &[BIN, "frobnicate"], 64, &["frobnicate"]);
        refused(&lab, &[BIN, "rules", "print", "--format", "ipchains"], 64, &["ipchains", "iptables"]);
    });
}

#[test]
fn a_reader_may_stop_and_a_full_disk_is_reported() {
    let print = |to: Stdio| {
        let output = Command::new(BIN).args(["rules", "print"]).stdout(to).stderr(Stdio::piped()).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(print(writer.into()), (Some(0), String::new()));
    let (code, said) = print(fs::File::options().write(true).open("/dev/full").unwrap().into());
    assert_eq!(code, Some(71), "{said}");
    assert!(said.contains("standard output") && said.contains("No space left"), "{said}");
}

#[test]
fn a_wrong_configuration_ends_with_78_and_names_line_key_and_what_is_allowed() {
    netns(|| {
        let lab = Lab::new();
        fs::write("/run/bad.toml", "[listen]\nprot = 5000\n[server]\nmptcp = 7\n").unwrap();
        let faults =
            ["/run/bad.toml:2: listen.prot", "listen.port", "/run/bad.toml:4: server.mptcp = 7", "true"];
        run_refused(&lab, &["--config", "/run/bad.toml"], 78, &faults);
        refused(&lab, &[BIN, "rules", "install", "--config", "/run/bad.toml"], 78, &faults);
        run_refused(&lab, &["--set", "listen.port=70000"], 78, &["listen.port = 70000", "65535"]);
        run_refused(&lab, &["--config", "/run/none.toml"], 78, &["/run/none.toml", "No such file"]);
    });
}

#[test]
fn a_log_that_cannot_be_opened_ends_with_73_and_a_missing_journal_with_69() {
    netns(|| {
        let lab = Lab::new();
        run_refused(&lab, &["--set", "log.target=/run/none/log"], 73, &["/run/none/log", "No such file"]);
        run_refused(&lab, &["--set", "log.target=journal"], 69, &["journal", "systemd-journald"]);
    });
}

#[test]
fn a_port_that_is_taken_ends_with_69_and_names_the_port() {
    netns(|| {
        let lab = Lab::new();
        let _other = lab.gateway.listen("127.0.0.1:5000".parse().unwrap());
        run_refused(&lab, &[], 69, &["127.0.0.1:5000 is taken", "ss -tlnp", "listen.port"]);
        let _daemon = Daemon::start(&lab.gateway, BIN, &["listen.port=5001"]);
    });
}

#[test]
fn a_second_instance_ends_with_69_and_names_the_first() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let first = format!("pid {}", daemon.process().pid());
        run_refused(&lab, &["--set", "listen.port=5001"], 69, &["another tcp-intercept", &first]);
        // Another instance can run in another network namespace.
        let _other = Daemon::start(&lab.server, BIN, &[]);
    });
}

#[test]
fn a_missing_capability_ends_with_77_and_is_named() {
    netns(|| {
        let lab = Lab::new();
        let without = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all"];
        refused(&lab, &[&without[..], &[BIN, "run"]].concat(), 77, &["CAP_NET_ADMIN"]);
        let without =
            ["setpriv", "--ambient-caps=-net_admin", "--inh-caps=-net_admin", "--bounding-set=-net_admin"];
        refused(&lab, &[&without[..], &[BIN, "run"]].concat(), 77, &["CAP_NET_ADMIN"]);
    });
}

#[test]
fn without_nft_it_ends_with_69_and_names_the_package() {
    netns(|| {
        let lab = Lab::new();
        refused(&lab, &["env", "PATH=/run/empty", BIN, "run"], 69, &["nft", "nftables"]);
    });
}
