//! The log: a separate process writes it, and nothing else waits for its target.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use lab::peers::{self, Server, echo, expect_reset};
use lab::{Daemon, Ip, Lab, Proc, find_log_writer, find_worker, netns, wait_until};
use rustix::fs::OFlags;
use rustix::process::Signal;

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(20);
const FIFO: &str = "/run/fifo";

fn make_fifo(lab: &Lab) {
    lab.gateway.run(&format!("mkfifo {FIFO}"));
}

/// Opens the FIFO for reading without reading a byte.
fn open_fifo() -> File {
    // An open for reading only would wait for a writer.
    File::options().read(true).write(true).open(FIFO).unwrap()
}

/// Writes to the FIFO until it is full.
fn fill_fifo() {
    let mut fifo = OpenOptions::new();
    let fifo = fifo.write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let mut fifo = fifo.open(FIFO).unwrap();
    for len in [4096, 1] {
        let full = loop {
            if let Err(err) = fifo.write(&vec![b'\n'; len]) {
                break err;
            }
        };
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
    }
}

/// Returns a function that gives the lines that arrive in the FIFO from now on.
fn read_fifo(mut fifo: File) -> impl Fn() -> String {
    let text = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let copy = text.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = fifo.read(&mut bytes) {
            copy.lock().unwrap().extend_from_slice(&bytes[..len]);
        }
    });
    move || String::from_utf8_lossy(&text.lock().unwrap()).into_owned()
}

/// Waits until the daemon intercepts connections; it may be unable to log that it is ready.
fn wait_until_ready(lab: &Lab, daemon: &Proc) {
    wait_until("a worker", SOON, || find_worker(daemon.pid()).is_some());
    let server = Server::start(&lab.server, lab.server_at(Ip::V4, 7), echo);
    wait_until("an intercepted connection", SOON, || {
        let stream = lab.client().connect(server.address).unwrap();
        lab.gateway.legs(&stream) == 2
    });
}

/// Starts the daemon with `command`, whose log goes to the FIFO, and stops the daemon when the FIFO is full.
fn stops_in_time(lab: &Lab, command: &str) {
    let mut daemon = lab.gateway.spawn("sh", &["-c", command]);
    wait_until_ready(lab, &daemon);
    fill_fifo();
    let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V6, 80));
    // The output of `stop` itself goes elsewhere.
    let said = lab.gateway.run(&format!("{BIN} stop"));
    assert!(said.contains("stopped"), "{said}");
    assert!(daemon.wait(SOON).success());
    assert_eq!(lab.gateway.run("nft list tables"), "");
    [near, far].iter().for_each(expect_reset);
    // A killed orphan stays a zombie, because the test does not reap it.
    let running = || lab.gateway.run("ps -eo stat=,comm= | grep -v ^Z");
    wait_until("no process of it is left", SOON, || !running().contains("tcp-int"));
}

#[test]
fn it_stops_in_time_beside_a_standard_error_that_is_full() {
    netns(|| {
        let lab = Lab::new();
        make_fifo(&lab);
        let _unread = open_fifo();
        stops_in_time(&lab, &format!("exec {BIN} run 2>{FIFO}"));
    });
}

#[test]
fn it_starts_and_stops_in_time_with_a_fifo_that_nobody_reads_as_its_log() {
    netns(|| {
        let lab = Lab::new();
        make_fifo(&lab);
        stops_in_time(&lab, &format!("exec {BIN} run --set log.target={FIFO}"));
    });
}

#[test]
fn lines_of_a_worker_that_is_killed_while_the_target_is_full_are_written_later() {
    const CONNECTIONS: usize = 30;
    netns(|| {
        let lab = Lab::new();
        make_fifo(&lab);
        let fifo = open_fifo();
        let daemon = lab.gateway.spawn(BIN, &["run", "--set", &format!("log.target={FIFO}")]);
        wait_until_ready(&lab, &daemon);
        fill_fifo();
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), echo);
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|_| {
                let mut stream = lab.client().connect(server.address).unwrap();
                stream.write_all(b"x").unwrap();
                stream.read_exact(&mut [0]).unwrap();
                stream.local_addr().unwrap()
            })
            .collect();
        wait_until("they have ended", SOON, || lab.gateway.ss("-tn state established").is_empty());
        let worker = find_worker(daemon.pid()).unwrap();
        lab.gateway.run(&format!("kill -9 {worker}"));
        wait_until("another worker", SOON, || find_worker(daemon.pid()).is_some_and(|pid| pid != worker));
        let log = read_fifo(fifo);
        wait_until("the next worker's line", SOON, || log().contains(": resumed "));
        let log = log();
        for client in clients {
            assert_eq!(log.matches(&format!(" closed client={client} ")).count(), 1, "{client}: {log}");
        }
    });
}

/// Returns the names of the log writer's open files.
fn open_in_writer(guardian: u32) -> Vec<String> {
    let writer = find_log_writer(guardian).unwrap();
    let open = fs::read_dir(format!("/proc/{writer}/fd")).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
    let mut names: Vec<_> = open.filter_map(name).map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_one_pipe_and_standard_error(open: &[String]) -> bool {
    let pipes = open.iter().filter(|name| name.starts_with("pipe:")).count();
    open.len() == 4 && pipes == 2 && open[..2] == ["/dev/null", "/dev/null"]
}

/// Opens and ends a session, and checks its close record.
fn records_a_session(lab: &Lab, daemon: &Daemon) {
    let to = lab.server_at(Ip::V6, 81);
    let (near, far, from) = peers::pair(lab.client(), &lab.server, to);
    drop((near, far));
    daemon.record_of(from, to);
}

fn children_named(guardian: u32, name: &str) -> usize {
    let status =
        |entry: std::io::Result<fs::DirEntry>| fs::read_to_string(entry.ok()?.path().join("status")).ok();
    let (name, parent) = (format!("Name:\t{name}\n"), format!("PPid:\t{guardian}\n"));
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(status)
        .filter(|text| text.contains(&name) && text.contains(&parent))
        .count()
}

#[test]
fn a_log_writer_that_is_killed_is_replaced_and_no_log_writer_has_a_session_open() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let _sessions = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 80));
        let guardian = daemon.guardian();
        let first = find_log_writer(guardian).unwrap();
        assert!(is_one_pipe_and_standard_error(&open_in_writer(guardian)), "{:?}", open_in_writer(guardian));
        // Signals that end a daemon in a terminal or a service do not end its log writer.
        [Signal::INT, Signal::TERM, Signal::HUP]
            .iter()
            .for_each(|&signal| daemon.signal_process(first, signal));
        records_a_session(&lab, &daemon);
        assert_eq!(find_log_writer(guardian), Some(first));

        daemon.signal_process(first, Signal::KILL);
        records_a_session(&lab, &daemon);
        let second = find_log_writer(guardian).unwrap();
        assert_ne!(second, first);
        assert!(is_one_pipe_and_standard_error(&open_in_writer(guardian)), "{:?}", open_in_writer(guardian));
        wait_until("it is said", SOON, || {
            daemon.log().contains(&format!("the log writer (pid {first}) died of signal 9"))
        });
        assert_eq!(children_named(guardian, "tcp-int-log"), 1, "the killed one was reaped");
    });
}

#[test]
fn a_program_that_replaces_another_has_a_log_writer_of_its_own_and_the_last_one_ends() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let _sessions = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 80));
        let guardian = daemon.guardian();
        let first = find_log_writer(guardian).unwrap();
        daemon.signal(Signal::USR2);
        daemon.process().wait_for("upgraded from", SOON);
        wait_until("the first one is gone", SOON, || !fs::exists(format!("/proc/{first}")).unwrap());
        assert_eq!(children_named(guardian, "tcp-int-log"), 1);
        assert!(is_one_pipe_and_standard_error(&open_in_writer(guardian)), "{:?}", open_in_writer(guardian));
        records_a_session(&lab, &daemon);
        let (status, log) = daemon.stop();
        assert!(status.success() && log.contains("stopped: "), "{log}");
    });
}

/// Parses the fields of an entry in the journal's native protocol, which systemd documents: either `FIELD=value`, or
/// the field's name, a line feed, the value's length as a 64-bit little-endian number, and the value.
fn journal_fields(mut entry: &[u8]) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = Vec::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|&byte| byte == b'\n').unwrap();
        let (line, rest) = (&entry[..end], &entry[end + 1..]);
        let (name, value, rest) = match line.iter().position(|&byte| byte == b'=') {
            Some(equals) => (&line[..equals], &line[equals + 1..], rest),
            None => {
                let (len, rest) = rest.split_first_chunk().unwrap();
                let (value, rest) = rest.split_at(usize::try_from(u64::from_le_bytes(*len)).unwrap());
                (line, value, rest.strip_prefix(b"\n").unwrap())
            }
        };
        fields.push((text(name), text(value)));
        entry = rest;
    }
    fields
}

#[test]
fn the_journal_is_sent_a_message_of_several_lines_whole() {
    netns(|| {
        let lab = Lab::new();
        fs::create_dir_all("/run/systemd/journal").unwrap();
        let journal = UnixDatagram::bind("/run/systemd/journal/socket").unwrap();
        journal.set_read_timeout(Some(SOON)).unwrap();
        // An nft that prints a two-line error once a certain file exists.
        fs::create_dir("/run/bin").unwrap();
        let nft = "#!/bin/sh\n[ -e /run/broken ] || exec /usr/sbin/nft \"$@\"\nprintf 'first line\\nPRIORITY=0\\n' >&2\nexit 1\n";
        fs::write("/run/bin/nft", nft).unwrap();
        fs::set_permissions("/run/bin/nft", fs::Permissions::from_mode(0o755)).unwrap();
        let settings = ["--set", "log.target=journal", "--set", "log.level=debug"];
        let run = [&["PATH=/run/bin:/usr/sbin:/usr/bin:/sbin:/bin", BIN, "run"], &settings[..]].concat();
        let daemon = lab.gateway.spawn("env", &run);
        let hear = |what: &str| loop {
            let mut entry = [0; 8192];
            let len = journal.recv(&mut entry).unwrap_or_else(|err| panic!("{what}: {err}"));
            let fields = journal_fields(&entry[..len]);
            if fields.iter().any(|(_, value)| value.contains(what)) {
                break fields;
            }
        };
        let ready = hear("ready: ");
        assert_eq!(
            ready[..2],
            [("PRIORITY", "6"), ("SYSLOG_IDENTIFIER", "tcp-intercept")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        fs::write("/run/broken", "").unwrap();
        daemon.signal(Signal::TERM);
        let fields = hear("first line");
        let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE"]);
        assert!(fields[2].1.contains("first line\nPRIORITY=0"), "{fields:?}");
    });
}
