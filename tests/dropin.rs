//! The drop-in: 1.1.0's options, row by row.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use lab::peers::{Server, whoami};
use lab::{BOTH, Ip, Lab, netns, wait_until};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(20);

/// What the server at `to` says whom it sees.
fn seen_by(lab: &Lab, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let mut stream = lab.client().connect(to).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    (stream.local_addr().unwrap(), said.parse().unwrap())
}

fn start(lab: &Lab, options: &str) -> String {
    lab.gateway.run(&format!("{BIN} rules install"));
    lab.gateway.run(&format!("{BIN} -p /run/ti.pid -l /run/ti.log {options}"));
    fs::read_to_string("/run/ti.pid").unwrap().trim().to_owned()
}

fn log() -> String {
    fs::read_to_string("/run/ti.log").unwrap_or_default()
}

#[test]
fn it_goes_into_the_background_when_it_listens_logs_a_line_a_connection_and_ends_by_sigterm() {
    netns(|| {
        let lab = Lab::new();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), whoami);
        let pid = start(&lab, "");
        // The command has come back: so it listens.
        assert!(lab.gateway.ss("-tln").contains("0.0.0.0:5000"));
        assert_eq!(lab.gateway.run(&format!("readlink /proc/{pid}/cwd")).trim(), "/");
        assert_eq!(
            lab.gateway.run(&format!("readlink /proc/{pid}/fd/0 /proc/{pid}/fd/2")),
            "/dev/null\n/dev/null\n"
        );
        let (_, seen) = seen_by(&lab, server.address);
        assert_eq!(seen.ip().to_string(), "10.2.0.1", "the box's own address, as 1.1.0");
        wait_until("its line is there", SOON, || log().matches(" closed client=10.1.0.2:").count() == 1);
        fs::rename("/run/ti.log", "/run/ti.log.1").unwrap();
        lab.gateway.run(&format!("kill -HUP {pid}"));
        wait_until("SIGHUP opens it again", SOON, || fs::exists("/run/ti.log").unwrap());
        seen_by(&lab, server.address);
        wait_until("the line is in the new one", SOON, || log().matches(" closed client=").count() == 1);
        lab.gateway.run(&format!("kill -TERM {pid}"));
        wait_until("the pid file is gone", SOON, || !fs::exists("/run/ti.pid").unwrap());
        assert!(lab.gateway.run("nft list tables").contains("tcp_intercept"), "the rules are the operator's");
    });
}

#[test]
fn with_b_client_the_server_sees_the_clients_address_and_port_over_both_protocols() {
    netns(|| {
        let lab = Lab::new();
        start(&lab, "-k -n -B client -b [::]:[5000]");
        for ip in BOTH {
            let server = Server::start(&lab.server, lab.server_at(ip, 80), whoami);
            let (client, seen) = seen_by(&lab, server.address);
            assert_eq!(seen, client);
            wait_until("it was relayed", SOON, || log().contains(&format!(" closed client={client} ")));
        }
    });
}

#[test]
fn a_connection_to_the_listener_itself_is_dropped_with_a_warning_and_no_rules_are_installed() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.run(&format!("{BIN} -l /run/ti.log"));
        assert_eq!(lab.gateway.run("nft list ruleset"), "");
        // The reset may come before connect() has looked.
        if let Ok(mut stream) = lab.client().connect(lab.gateway_at(Ip::V4, 5000)) {
            assert!(stream.write_all(b"hello").is_err() || stream.read(&mut [0; 1]).is_err(), "reset");
        }
        wait_until("the warning is there", SOON, || log().contains("to the listener itself"));
    });
}

#[test]
fn a_second_instance_and_a_stale_pid_file_are_told_apart() {
    netns(|| {
        let lab = Lab::new();
        fs::write("/run/ti.pid", "999999\n").unwrap();
        let pid = start(&lab, "");
        let again = lab
            .gateway
            .cmd(BIN)
            .args(["-f", "-p", "/run/ti.pid", "-b", "[0.0.0.0]:[5001]"])
            .output()
            .unwrap();
        assert_eq!(again.status.code(), Some(69));
        assert!(String::from_utf8_lossy(&again.stderr).contains(&format!("pid {pid}")), "{again:?}");
    });
}

#[test]
fn wrong_options_end_with_their_code_and_a_message_and_leave_nothing() {
    netns(|| {
        let lab = Lab::new();
        fs::write("/run/hosts", "192.0.2.1 two\n192.0.2.2 two\n").unwrap();
        for (options, code, word) in [
            (&["-x"][..], 64, "-x"),
            (&["-p", "run/ti.pid"], 64, "absolute"),
            (&["-b", "5000"], 65, "no ':'"),
            (&["-b", "[0.0.0.0:5000"], 65, "brackets"),
            (&["-b", "[0.0.0.0]:[5000"], 65, "brackets"),
            (&["-b", "[localhost]:[5000]"], 65, "localhost"),
            (&["-b", "no-such-host.invalid:5000"], 65, "no-such-host.invalid"),
            (&["-b", "[0.0.0.0]:no-such-service"], 65, "no-such-service"),
            (&["-B", "client:5"], 65, "client"),
            (&["-l", "/run/none/log"], 73, "/run/none/log"),
        ] {
            for foreground in [true, false] {
                let foreground = if foreground { &["-f"][..] } else { &[] };
                let output = lab.gateway.cmd(BIN).args(options).args(foreground).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.status.code(), Some(code), "{options:?}: {said}");
                assert!(said.contains(word), "{options:?}: no {word:?} in {said}");
            }
        }
        assert_eq!(lab.gateway.ss("-tln"), "");
        for (option, word) in [("-h", "--bind-listen"), ("--help", "--pid-file"), ("-V", "tcp-intercept")] {
            let output = lab.gateway.cmd(BIN).arg(option).output().unwrap();
            assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(word));
        }
    });
}
