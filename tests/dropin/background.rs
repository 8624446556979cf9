//! Running in the background, and the end: which process waits for which, the open descriptors, and the exit statuses.
use std::fs::{self, Permissions};
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use lab::peers::{self, expect_reset};
use lab::{Ip, Lab, Proc, netns, wait_until};
use rustix::process::Signal;

use crate::support::{BIN, Daemon, LOG, PID_FILE, SOON, call, closed, foreground, install_rules, refused};

#[test]
fn it_is_a_process_of_its_own_that_holds_nothing_of_its_callers() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab, "");
        // The command has returned, so the daemon listens.
        assert!(lab.gateway.ss("-tln").contains("0.0.0.0:5000"));
        let pid = daemon.pid();
        let links = format!("cd /proc/{pid}; readlink cwd fd/0 fd/1 fd/2");
        assert_eq!(lab.gateway.run(&links), "/\n/dev/null\n/dev/null\n/dev/null\n");
        // The session and its controlling terminal: proc_pid_stat(5).
        assert_eq!(lab.gateway.run(&format!("cut -d' ' -f6,7 /proc/{pid}/stat")), format!("{pid} 0\n"));
        assert!(lab.gateway.run(&format!("cat /proc/{pid}/status")).contains("Umask:\t0022\n"));
    });
}

/// Starts the program with a fake `nft`, for which its start waits. The fake runs until the file /run/go exists.
fn starting(lab: &Lab) -> Proc {
    fs::create_dir("/run/slow").unwrap();
    fs::write("/run/slow/nft", "#!/bin/sh\nuntil [ -e /run/go ]; do sleep 0.02; done\nexit 1\n").unwrap();
    fs::set_permissions("/run/slow/nft", Permissions::from_mode(0o755)).unwrap();
    let path = "PATH=/run/slow:/usr/bin:/bin";
    let caller = lab.gateway.spawn("env", &[path, BIN, "-p", PID_FILE, "-l", LOG]);
    wait_until("the listener", SOON, || lab.gateway.ss("-tln").contains(":5000"));
    caller
}

#[test]
fn the_command_waits_until_the_daemon_has_started() {
    netns(|| {
        let lab = Lab::new();
        let mut caller = starting(&lab);
        assert_eq!(caller.try_wait(), None);
        fs::write("/run/go", "").unwrap();
        assert_eq!(caller.wait(SOON).code(), Some(0));
        assert_eq!(Daemon::in_pid_file().stop(), Some(0));
    });
}

#[test]
fn the_command_says_that_the_daemon_was_killed_while_it_started() {
    netns(|| {
        let lab = Lab::new();
        let mut caller = starting(&lab);
        Daemon::in_pid_file().signal(Signal::KILL);
        assert_eq!(caller.wait(SOON).code(), Some(70));
        assert!(caller.stderr().contains("the daemon ended while it started"), "{}", caller.stderr());
    });
}

#[test]
fn a_port_that_is_taken_is_told_on_the_terminal_and_by_the_status() {
    netns(|| {
        let lab = Lab::new();
        let _other = lab.gateway.listen("0.0.0.0:5000".parse().unwrap());
        refused(&lab, &["-p", PID_FILE], 69, &["0.0.0.0:5000 is taken", "ss -tlnp", "-b"]);
    });
}

#[test]
fn a_second_instance_is_told_the_number_of_the_first_and_leaves_no_pid_file() {
    netns(|| {
        let lab = Lab::new();
        let first = foreground(&lab, &[]);
        let pid = format!("(pid {})", first.pid());
        refused(&lab, &["-p", PID_FILE, "-b", "[0.0.0.0]:[5001]"], 69, &["another tcp-intercept", &pid]);
        assert!(!Path::new(PID_FILE).exists());
    });
}

#[test]
fn missing_privileges_are_told_on_the_terminal_and_by_the_status() {
    netns(|| {
        let lab = Lab::new();
        let without = format!("setpriv --ambient-caps=-all --inh-caps=-all --bounding-set=-all {BIN}");
        for foreground in ["-f", ""] {
            let said = lab.gateway.run(&format!("{without} {foreground} 2>&1 || echo exit=$?"));
            assert!(said.contains("CAP_NET_ADMIN is missing") && said.contains("exit=77"), "{said}");
        }
    });
}

/// Checks that `end` cuts off a session, which shows at both ends, in the log and by the missing pid file.
fn ends_well(lab: &Lab, end: impl FnOnce() -> Option<i32>) {
    let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 7));
    wait_until("it is intercepted", SOON, || lab.gateway.ss("-tn state established").lines().count() == 2);
    assert_eq!(end(), Some(0));
    expect_reset(&near);
    expect_reset(&far);
    assert_eq!(closed(near.local_addr().unwrap(), "by cause"), "admin stopped");
    assert!(!Path::new(PID_FILE).exists());
}

#[test]
fn sigint_and_sigterm_end_it_well_in_the_background_and_in_the_foreground() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        for signal in [Signal::INT, Signal::TERM] {
            let background = Daemon::start(&lab, "");
            ends_well(&lab, || {
                background.signal(signal);
                background.wait()
            });
            let mut process = lab.gateway.spawn(BIN, &["-f", "-p", PID_FILE, "-l", LOG]);
            wait_until("it listens", SOON, || lab.gateway.ss("-tln").contains(":5000"));
            wait_until("it has begun", SOON, || crate::support::log().matches("ready").count() > 1);
            ends_well(&lab, || {
                process.signal(signal);
                process.wait(SOON).code()
            });
            fs::remove_file(LOG).unwrap();
        }
    });
}

#[test]
fn in_the_foreground_it_stays_and_says_on_the_terminal_what_it_does() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let mut daemon = foreground(&lab, &["-p", PID_FILE]);
        assert_eq!(fs::read_to_string(PID_FILE).unwrap(), format!("{}\n", daemon.pid()));
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 7));
        let flow =
            format!("closed client={} server={}", near.local_addr().unwrap(), near.peer_addr().unwrap());
        drop((near, far));
        daemon.wait_for(&flow, SOON);
    });
}

#[test]
fn in_the_background_without_a_log_it_says_that_nothing_is_logged() {
    netns(|| {
        let lab = Lab::new();
        let (exit, said) = call(&lab.gateway, &["-p", PID_FILE]);
        assert!(exit == 0 && said.contains("no -l FILE"), "{said}");
        assert_eq!(Daemon::in_pid_file().stop(), Some(0));
    });
}

#[test]
fn in_the_foreground_it_tells_a_service_manager_when_it_is_ready() {
    netns(|| {
        let lab = Lab::new();
        let manager = UnixDatagram::bind("/run/notify").unwrap();
        manager.set_read_timeout(Some(SOON)).unwrap();
        let _daemon = lab.gateway.spawn("env", &["NOTIFY_SOCKET=/run/notify", BIN, "-f"]);
        let mut message = [0; 256];
        let len = manager.recv(&mut message).unwrap();
        assert_eq!(message[..len].trim_ascii(), b"READY=1");
    });
}

#[test]
fn without_the_right_to_destroy_sockets_it_still_ends_well_and_says_so() {
    netns(|| {
        let lab = Lab::new();
        install_rules(&lab);
        let net_raw = ["--ambient-caps=-net_admin", "--inh-caps=-net_admin", "--bounding-set=-net_admin"];
        let mut daemon = lab.gateway.spawn("setpriv", &[&net_raw[..], &[BIN, "-f", "-B", "client"]].concat());
        daemon.wait_for("ready", SOON);
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 7));
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&far).read(&mut [0]).unwrap(), 0);
        drop((far, near));
        wait_until("TIME_WAIT", SOON, || !lab.gateway.ss("-tan state time-wait").is_empty());
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait(SOON).code(), Some(0), "{}", daemon.stderr());
        assert!(daemon.stderr().contains("leftover sockets stay"), "{}", daemon.stderr());
    });
}
