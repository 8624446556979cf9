//! `-p`: the file with the daemon's process ID, which exists as long as the daemon runs.
use std::fs;

use lab::{Lab, netns};
use rustix::process::Signal;

use crate::support::{Daemon, PID_FILE, mount, refused};

#[test]
fn it_holds_the_daemons_number_and_goes_with_it() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab, "");
        assert_eq!(fs::read_to_string(PID_FILE).unwrap(), format!("{}\n", daemon.pid()));
        assert_eq!(lab.gateway.run(&format!("stat -c %a {PID_FILE}")), "644\n");
        assert_eq!(daemon.stop(), Some(0));
        assert!(!fs::exists(PID_FILE).unwrap());
    });
}

#[test]
fn what_a_killed_daemon_left_is_replaced() {
    netns(|| {
        let lab = Lab::new();
        let killed = Daemon::start(&lab, "");
        killed.signal(Signal::KILL);
        assert_eq!(killed.wait(), None);
        assert_eq!(fs::read_to_string(PID_FILE).unwrap(), format!("{}\n", killed.pid()));
        assert_eq!(Daemon::start(&lab, "").stop(), Some(0));
        // Another program may have that process ID by now, or a daemon was killed before it had written its own.
        for stale in [format!("{}\n", std::process::id()), String::new()] {
            fs::write(PID_FILE, stale).unwrap();
            assert_eq!(Daemon::start(&lab, "").stop(), Some(0));
        }
    });
}

#[test]
fn the_one_of_a_living_instance_is_refused_and_left() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab, "");
        let pid = format!("(pid {})", daemon.pid());
        refused(&lab, &["-p", PID_FILE, "-b", "[0.0.0.0]:[5001]"], 69, &[PID_FILE, "another", &pid]);
        assert_eq!(daemon.stop(), Some(0));
    });
}

#[test]
fn one_that_somebody_else_has_put_in_its_place_is_left() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab, "");
        fs::write(PID_FILE, "1\n").unwrap();
        assert_eq!(daemon.stop(), Some(0));
        assert_eq!(fs::read_to_string(PID_FILE).unwrap(), "1\n");
    });
}

#[test]
fn a_relative_path_is_refused() {
    netns(|| refused(&Lab::new(), &["-p", "run/ti.pid"], 64, &["-p run/ti.pid", "absolute"]));
}

#[test]
fn a_place_that_cannot_be_written_is_refused() {
    netns(|| {
        let lab = Lab::new();
        mount(&["-t", "tmpfs", "-o", "ro", "tmpfs", "/mnt"]);
        refused(&lab, &["-p", "/run/none/ti.pid"], 73, &["/run/none/ti.pid", "No such file", "directory"]);
        refused(&lab, &["-p", "/mnt/ti.pid"], 73, &["/mnt/ti.pid", "Read-only"]);
        refused(&lab, &["-p", "/run"], 73, &["-p /run", "Is a directory"]);
    });
}

#[test]
fn a_file_that_is_no_pid_file_is_refused_and_left() {
    netns(|| {
        let lab = Lab::new();
        fs::write("/run/precious", "not a number\n").unwrap();
        refused(&lab, &["-p", "/run/precious"], 73, &["/run/precious", "is it a pid file?"]);
        assert_eq!(fs::read_to_string("/run/precious").unwrap(), "not a number\n");
    });
}
