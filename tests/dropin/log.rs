//! `-l` and SIGHUP.
use std::fs;

use lab::peers::{Server, whoami};
use lab::{Ip, Lab, Proc, netns, wait_until};
use rustix::process::Signal;

use crate::support::{
    BIN, Daemon, LOG, PID_FILE, SOON, call, foreground, install_rules, log, refused, seen_by,
};

/// Returns how many connections have a line in the log `text`.
fn connections(text: &str) -> usize {
    text.matches(" closed client=").count()
}

fn connect(lab: &Lab) {
    let server = Server::start(&lab.server, lab.server_at(Ip::V4, 80), whoami);
    seen_by(&lab.client().connect(server.address).unwrap());
}

#[test]
fn it_is_appended_to_with_one_line_for_each_connection() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        fs::write(LOG, "what was there before\n").unwrap();
        let daemon = Daemon::start(&lab, "");
        for n in 1..=3 {
            connect(&lab);
            wait_until("its line", SOON, || connections(&log()) == n);
        }
        assert_eq!(daemon.stop(), Some(0));
        let log = log();
        assert!(log.starts_with("what was there before\n"), "{log}");
        assert_eq!(log.matches("10.1.0.2").count(), 3, "each connection is on one line only: {log}");
    });
}

#[test]
fn sighup_has_it_closed_and_opened_again() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let daemon = Daemon::start(&lab, "");
        connect(&lab);
        wait_until("the first line", SOON, || connections(&log()) == 1);
        fs::rename(LOG, "/run/old").unwrap();
        daemon.signal(Signal::HUP);
        wait_until("the new one", SOON, || fs::exists(LOG).unwrap());
        connect(&lab);
        wait_until("the second line", SOON, || connections(&log()) == 1);
        assert_eq!(connections(&fs::read_to_string("/run/old").unwrap()), 1);
        let open = |pid: u32| lab.gateway.run(&format!("readlink /proc/{pid}/fd/*"));
        let guardian = daemon.pid().cast_unsigned();
        let writer = open(lab::find_log_writer(guardian).unwrap());
        assert!(writer.contains(LOG) && !writer.contains("/run/old"), "{writer}");
        assert!(!open(guardian).contains("/run/old"), "{}", open(guardian));
    });
}

#[test]
fn one_that_sighup_cannot_open_again_stays_in_use() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let daemon = Daemon::start(&lab, "");
        fs::rename(LOG, "/run/old").unwrap();
        fs::create_dir(LOG).unwrap();
        daemon.signal(Signal::HUP);
        let old = || fs::read_to_string("/run/old").unwrap();
        wait_until("it is said", SOON, || old().contains("the old one stays in use"));
        connect(&lab);
        wait_until("the line", SOON, || connections(&old()) == 1);
        assert_eq!(daemon.stop(), Some(0));
    });
}

/// Checks that the process still runs after SIGHUP: it ends in order at SIGTERM.
fn ends_by_sigterm(mut process: Proc) {
    process.signal(Signal::HUP);
    process.signal(Signal::TERM);
    assert_eq!(process.wait(SOON).code(), Some(0), "{}", process.stderr());
}

#[test]
fn without_a_log_sighup_changes_nothing() {
    netns(|| {
        let lab = Lab::new();
        ends_by_sigterm(foreground(&lab, &[]));
        call(&lab.gateway, &["-p", PID_FILE]);
        let daemon = Daemon::in_pid_file();
        daemon.signal(Signal::HUP);
        assert_eq!(daemon.stop(), Some(0));
    });
}

#[test]
fn in_the_background_nothing_of_it_has_the_terminal_open() {
    netns(|| {
        let lab = Lab::new();
        // The call returns when all processes that had its output open have closed it.
        call(&lab.gateway, &["-p", PID_FILE]);
        let guardian = Daemon::in_pid_file().pid().cast_unsigned();
        let writer = lab::find_log_writer(guardian).unwrap();
        for pid in [guardian, lab::find_worker(guardian).unwrap(), writer] {
            let links = lab.gateway.run(&format!("cd /proc/{pid}/fd; readlink 0 1 2"));
            assert_eq!(links, "/dev/null\n/dev/null\n/dev/null\n");
        }
    });
}

#[test]
fn a_relative_path_is_one_of_the_directory_that_it_was_called_in() {
    netns(|| {
        let lab = Lab::new();
        fs::create_dir("/run/here").unwrap();
        lab.gateway.run(&format!("cd /run/here; {BIN} -p {PID_FILE} -l ti.log"));
        let daemon = Daemon::in_pid_file();
        fs::remove_file("/run/here/ti.log").unwrap();
        daemon.signal(Signal::HUP);
        wait_until("the new one", SOON, || fs::exists("/run/here/ti.log").unwrap());
    });
}

#[test]
fn one_that_cannot_be_written_is_refused() {
    netns(|| {
        let lab = Lab::new();
        refused(&lab, &["-p", PID_FILE, "-l", "/run/none/log"], 73, &["/run/none/log", "No such file", "-l"]);
        refused(&lab, &["-p", PID_FILE, "-l", "/run"], 73, &["\"/run\"", "Is a directory"]);
    });
}
