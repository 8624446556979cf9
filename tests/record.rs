//! The close record: one line per connection, at its end, in each format and at each target, and no line before that.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use lab::peers::{Server, echo};
use lab::{BOTH, Daemon, Ip, Lab, Proc, netns, wait_until};
use rustix::process::Signal;

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(20);

fn run(lab: &Lab, target: &str) -> Proc {
    let target = format!("log.target={target}");
    lab.gateway.spawn(BIN, &["run", "--set", &target])
}

/// Sends five bytes each way.
fn asks(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn a_json_record_says_who_ended_it_why_and_what_was_carried() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &["client.congestion-control=reno"]);
        for (n, ip) in BOTH.into_iter().enumerate() {
            let server = Server::start(&lab.server, lab.server_at(ip, 80), echo);
            let stream = lab.client().connect(server.address).unwrap();
            asks(&stream);
            stream.shutdown(Shutdown::Write).unwrap();
            let records = daemon.wait_for_records(n + 1);
            let says = |key: &str| records[n][key].to_string().trim_matches('"').to_owned();
            let client = stream.local_addr().unwrap().to_string();
            assert_eq!((says("client"), says("source")), (client.clone(), client));
            assert_eq!(says("server"), server.address.to_string());
            assert_eq!(["by", "phase", "cause"].map(says), ["client", "relay", "eof"]);
            assert_eq!(["to_server", "to_client", "dialled"].map(says), ["5", "5", "first"]);
            assert_eq!(["client_cc", "client_mptcp", "server_mptcp"].map(says), ["reno", "off", "off"]);
            assert!(records[n]["connect_ms"].as_f64() <= records[n]["duration_ms"].as_f64());
            assert!(!says("server_cc").is_empty());
        }
        let (status, log) = daemon.stop();
        assert!(status.success());
        assert_eq!(log.matches("\"closed\"").count(), 2, "one line a connection\n{log}");
    });
}

#[test]
fn a_file_gets_one_line_a_connection_at_its_end_and_keeps_what_was_in_it() {
    netns(|| {
        let lab = Lab::new();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        fs::write("/run/tcp-intercept.log", "from before\n").unwrap();
        let log = || fs::read_to_string("/run/tcp-intercept.log").unwrap();
        for n in 1..=2 {
            let mut daemon = run(&lab, "/run/tcp-intercept.log");
            wait_until("it is ready", SOON, || log().matches("ready: ").count() == n);
            let stream = lab.client().connect(server.address).unwrap();
            asks(&stream);
            assert!(log().lines().last().unwrap().contains("ready: "), "nothing is said on the way");
            drop(stream);
            wait_until("the record is there", SOON, || {
                log().matches(" closed client=10.1.0.2:").count() == n
            });
            daemon.signal(Signal::TERM);
            assert!(daemon.wait(SOON).success());
        }
        assert!(log().starts_with("from before\n"));
        assert_eq!(
            log().lines().filter(|line| line.contains("by=\"client\" phase=\"relay\" cause=eof")).count(),
            2
        );
    });
}

#[test]
fn the_journal_gets_each_line_with_its_priority() {
    netns(|| {
        let lab = Lab::new();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        fs::create_dir_all("/run/systemd/journal").unwrap();
        let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
        journal.set_read_timeout(Some(SOON)).unwrap();
        let entry = |what: &str| loop {
            let mut bytes = [0; 4096];
            let len = journal.recv(&mut bytes).unwrap();
            let entry = String::from_utf8_lossy(&bytes[..len]).into_owned();
            if entry.contains(what) {
                return entry;
            }
        };
        let _daemon = run(&lab, "journal");
        entry("ready: ");
        drop(lab.client().connect(server.address).unwrap());
        let record = entry("closed client=10.1.0.2:");
        assert!(record.starts_with("PRIORITY=6\nSYSLOG_IDENTIFIER=tcp-intercept\nMESSAGE="), "{record}");
        assert!(record.ends_with('\n') && record.lines().count() == 3, "{record}");
    });
}
