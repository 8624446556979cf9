//! The syntax of `-b` and `-B`: numbers in brackets, names that are resolved, and invalid values.
use std::fs;

use lab::{Host, Lab, netns};

use crate::support::{PID_FILE, call, foreground, mount, refused};

const HOSTS: &str = "\
127.0.0.1 localhost
::1 localhost6
10.1.0.1 dup
10.1.0.1 dup
10.1.0.1 two
10.2.0.1 two
127.0.0.1 both
::1 both
";

/// Replaces the host's resolver files by these, so that names are resolved from files only.
fn resolve_by_files() {
    for (name, text) in [
        ("hosts", HOSTS),
        ("services", "intercept 5000/tcp\n"),
        ("nsswitch.conf", "hosts: files\nservices: files\n"),
    ] {
        fs::write(format!("/run/{name}"), text).unwrap();
        mount(&["--bind", &format!("/run/{name}"), &format!("/etc/{name}")]);
    }
}

fn listens(lab: &Lab, written: &str, bound: &str) {
    let _daemon = foreground(lab, &["-b", written]);
    let listeners = lab.gateway.ss("-tln");
    assert!(listeners.contains(&format!(" {bound} ")), "{written}: {listeners}");
}

#[test]
fn names_of_hosts_and_ports_are_looked_up() {
    netns(|| {
        resolve_by_files();
        let lab = Lab::new();
        listens(&lab, "localhost:intercept", "127.0.0.1:5000");
        listens(&lab, "[127.0.0.1]:intercept", "127.0.0.1:5000");
        listens(&lab, "localhost:[5000]", "127.0.0.1:5000");
        listens(&lab, "localhost6:5000", "[::1]:5000");
        listens(&lab, "dup:5000", "10.1.0.1:5000");
        drop(foreground(&lab, &["-B", "dup:[0]"]));
    });
}

#[test]
fn in_brackets_nothing_is_looked_up() {
    netns(|| {
        resolve_by_files();
        let lab = Lab::new();
        for option in ["-b", "-B"] {
            refused(&lab, &[option, "[localhost]:[5000]"], 65, &[option, "[localhost]:[5000]", "IP address"]);
            refused(&lab, &[option, "[0.0.0.0]:[intercept]"], 65, &[option, "[intercept]", "a number"]);
        }
    });
}

#[test]
fn what_does_not_resolve_is_refused() {
    netns(|| {
        resolve_by_files();
        let lab = Lab::new();
        for option in ["-b", "-B"] {
            for (written, word) in [
                ("nobody:5000", "getent ahosts"),
                ("[0.0.0.0]:nothing", "/etc/services"),
                ("clients:0", "getent"),
            ] {
                let words = [option, written, "does not resolve", word];
                refused(&lab, &["-p", PID_FILE, option, written], 65, &words);
            }
        }
    });
}

#[test]
fn what_resolves_to_several_addresses_is_refused_with_a_list_of_them() {
    netns(|| {
        resolve_by_files();
        let lab = Lab::new();
        for option in ["-b", "-B"] {
            let listed = ["10.1.0.1", "10.2.0.1"].map(|ip| format!("\n  {option} [{ip}]:[5000]"));
            refused(&lab, &[option, "two:intercept"], 65, &["several addresses", &listed[0], &listed[1]]);
            let listed = ["127.0.0.1", "::1"].map(|ip| format!("\n  {option} [{ip}]:[5000]"));
            refused(&lab, &[option, "both:5000"], 65, &["several addresses", &listed[0], &listed[1]]);
        }
    });
}

#[test]
fn a_name_has_no_address_of_a_protocol_that_the_machine_has_not() {
    netns(|| {
        resolve_by_files();
        let host = Host::new("router");
        host.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        host.ip("link add name lan0 type veth peer name lan1");
        host.ip("address add 10.1.0.1/24 dev lan0");
        let mut daemon = host.spawn(crate::support::BIN, &["-f", "-b", "both:5000"]);
        daemon.wait_for("listening on 127.0.0.1:5000", crate::support::SOON);
    });
}

#[test]
fn what_is_cut_short_or_no_address_is_refused() {
    netns(|| {
        resolve_by_files();
        let lab = Lab::new();
        for (written, word) in [
            ("", "no ':'"),
            ("5000", "no ':'"),
            ("[0.0.0.0]", "no ':'"),
            ("[::]", "brackets"),
            ("[0.0.0.0:5000", "brackets"),
            ("[0.0.0.0]:[5000", "brackets"),
            ("[0.0.0.0]:5000]", "brackets"),
            ("0.0.0.0]:[5000]", "brackets"),
            ("[]:[5000]", "host is empty"),
            (":5000", "host is empty"),
            ("[0.0.0.0]:", "port is empty"),
            ("[0.0.0.0]:[]", "port is empty"),
            ("[0.0.0.0]:[65536]", "65535"),
            ("[0.0.0.0]:-1", "does not resolve"),
            ("[0.0.0]:[x]", "does not resolve"),
        ] {
            for option in ["-b", "-B"] {
                refused(&lab, &[option, written], 65, &[option, written, word]);
            }
        }
        refused(&lab, &["-b", "[0.0.0.0]:[0]"], 65, &["port 0"]);
        refused(&lab, &["-b", "client"], 65, &["no ':'"]);
        assert_eq!(call(&lab.gateway, &["-f", "-B", "client:5"]).0, 65, "it is a name here");
    });
}
