//! The program is replaced while it runs. If the upgrade is refused, nothing changes.
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use lab::stream::{self, Pace, Random};
use lab::{Daemon, Ip, Lab, netns, netns_as_user, peers, reachable, wait_until};
use rustix::process::Signal;

use crate::support::{
    BIN, MANY, SOME, SOON, command, counter, descriptors, kill_worker, said, takeovers, traffic, went_well,
};

fn upgraded_ten_times() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.gateway, reachable(BIN.as_ref()), &[MANY]);
    let before = descriptors(&daemon);
    let traffic = traffic(&lab, SOME);
    let mut random = Random::new(8);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(random.below(300) as u64));
        let answer = command(&lab.gateway, "upgrade");
        assert!(answer.contains("upgraded from ") && answer.contains("exit=0"), "{answer}{}", said(&daemon));
    }
    went_well(traffic, 20, &daemon);
    wait_until("every session's descriptors are closed", SOON, || descriptors(&daemon) <= before + 1);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert_eq!((counter(&log, "upgrades"), counter(&log, "not-taken-up")), (10, 0), "{log}");
    assert_eq!(lab.gateway.run("nft list tables"), "");
}

#[test]
fn ten_upgrades_under_load_lose_no_session_and_no_byte() {
    netns(upgraded_ten_times);
}

#[test]
fn ten_upgrades_under_load_lose_nothing_in_a_user_namespace() {
    netns_as_user(upgraded_ten_times);
}

#[test]
fn a_program_that_cannot_go_on_is_told_and_the_running_one_stays() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 81));
        let worker = daemon.worker();
        let script = |name: &str, text: &str| {
            let path = format!("/run/{name}");
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        fs::write("/run/plain", "text").unwrap();
        for (binary, why) in [
            ("/run/none".to_owned(), "No such file"),
            ("/run/plain".to_owned(), "Permission denied"),
            ("/bin/true".to_owned(), "it said nothing"),
            (script("fails", "#!/bin/sh\necho I am broken >&2; exit 3\n"), "I am broken"),
            (script("crashes", "#!/bin/sh\nkill -SEGV $$\n"), "signal: 11"),
            (script("hangs", "#!/bin/sh\nexec sleep 1000\n"), "not ready after 5s"),
            (script("lies", "#!/bin/sh\necho fit to go on; exit 0\n"), "fit to go on"),
        ] {
            let answer = command(&lab.gateway, &format!("upgrade {binary}"));
            assert!(answer.contains("nothing has changed") && answer.contains(why), "{binary}: {answer}");
            assert!(answer.contains(&binary) && answer.contains("exit=69"), "{binary}: {answer}");
        }
        assert_eq!((daemon.worker(), takeovers(&daemon)), (worker, 0));
        stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        assert_eq!(counter(&daemon.stop().1, "upgrades"), 0);
    });
}

#[test]
fn a_table_of_another_layout_keeps_the_running_program() {
    use std::os::unix::fs::FileExt;
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let of = format!("/proc/{}/fd", daemon.worker());
        let mut entries = fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path());
        let is_table = |path: &std::path::PathBuf| {
            fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("tcp-intercept-sessions"))
        };
        let table = fs::OpenOptions::new().write(true).open(entries.find(is_table).unwrap()).unwrap();
        // Makes the running program look like another version than the one on disk.
        table.write_all_at(&99_u64.to_ne_bytes(), 8).unwrap();
        let answer = command(&lab.gateway, "upgrade");
        assert!(answer.contains("layout 99, and this program knows layout 1"), "{answer}");
        table.write_all_at(&1_u64.to_ne_bytes(), 8).unwrap();
        let answer = command(&lab.gateway, "upgrade");
        assert!(answer.contains("exit=0"), "{answer}");
    });
}

#[test]
fn a_signal_upgrades_to_what_is_now_where_it_was_started_from_with_the_configuration_of_then() {
    netns(|| {
        let lab = Lab::new();
        fs::copy(BIN, "/run/ti").unwrap();
        fs::write("/run/ti.toml", "[limits]\nconnections = 123\n").unwrap();
        let mut daemon = lab.gateway.spawn("/run/ti", &["run", "--config", "/run/ti.toml"]);
        daemon.wait_for("ready", SOON);
        let guardian = daemon.pid();
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 81));
        fs::copy(BIN, "/run/ti.new").unwrap();
        fs::rename("/run/ti.new", "/run/ti").unwrap();
        fs::write("/run/ti.toml", "this is no configuration").unwrap();
        daemon.signal(Signal::USR2);
        daemon.wait_for("upgraded from", SOON);
        assert_eq!(daemon.pid(), guardian);
        let runs = fs::read_link(format!("/proc/{guardian}/exe")).unwrap();
        assert_eq!(runs.to_str(), Some("/run/ti"), "not the one that was deleted");
        stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        daemon.signal(Signal::TERM);
        assert!(daemon.wait(SOON).success());
    });
}

#[test]
fn kills_while_it_is_upgraded_lose_nothing() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let traffic = traffic(&lab, SOME);
        let mut random = Random::new(9);
        for _ in 0..10 {
            let upgrade = std::thread::scope(|scope| {
                let upgrade = scope.spawn(|| command(&lab.gateway, "upgrade"));
                std::thread::sleep(Duration::from_millis(random.below(60) as u64));
                daemon.signal_worker(Signal::KILL);
                // Also kill the next worker, which may be about to take over.
                std::thread::sleep(Duration::from_millis(random.below(20) as u64));
                daemon.signal_worker(Signal::KILL);
                upgrade.join().unwrap()
            });
            assert!(upgrade.contains("exit="), "{upgrade}");
        }
        kill_worker(&daemon);
        went_well(traffic, 10, &daemon);
        let log = daemon.stop().1;
        assert_eq!((counter(&log, "not-taken-up"), counter(&log, "given-up")), (0, 0), "{log}");
    });
}

#[test]
fn a_daemon_of_the_old_options_keeps_its_pid_file_and_its_log() {
    netns(|| {
        let lab = Lab::new();
        lab.gateway.run(&format!("{BIN} rules install"));
        lab.gateway.run(&format!("{BIN} -b [::]:[5000] -B client -p /run/ti.pid -l /run/ti.log"));
        let pid = fs::read_to_string("/run/ti.pid").unwrap();
        let (near, far, peer) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 81));
        for _ in 0..2 {
            let answer = command(&lab.gateway, "upgrade");
            assert!(answer.contains("exit=0"), "{answer}");
            assert_eq!(fs::read_to_string("/run/ti.pid").unwrap(), pid);
        }
        fs::rename("/run/ti.log", "/run/ti.log.1").unwrap();
        lab.gateway.run(&format!("kill -HUP {pid}"));
        wait_until("the log is opened again", SOON, || fs::exists("/run/ti.log").unwrap());
        stream::exchange(&near, &far, 1 << 20, Pace::FULL);
        drop((near, far));
        let line = format!("closed client={peer}");
        wait_until(&line, SOON, || fs::read_to_string("/run/ti.log").unwrap().contains(&line));
        assert!(fs::read_to_string("/run/ti.log.1").unwrap().contains("upgraded from"));
        assert!(command(&lab.gateway, "stop").contains("exit=0"));
        wait_until("the pid file is gone", SOON, || !fs::exists("/run/ti.pid").unwrap());
    });
}

#[test]
fn a_stop_while_a_program_is_tried_ends_that_too() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 81));
        fs::write("/run/hangs", "#!/bin/sh\nexec sleep 1003\n").unwrap();
        fs::set_permissions("/run/hangs", fs::Permissions::from_mode(0o755)).unwrap();
        let tried = || {
            fs::read_dir("/proc").unwrap().any(|entry| {
                let line = entry.unwrap().path().join("cmdline");
                fs::read(line).is_ok_and(|line| line == b"sleep\x001003\0")
            })
        };
        std::thread::scope(|scope| {
            let upgrade = scope.spawn(|| command(&lab.gateway, "upgrade /run/hangs"));
            wait_until("it is tried", SOON, tried);
            daemon.signal(Signal::TERM);
            assert!(upgrade.join().unwrap().contains("the daemon stops"));
        });
        assert!(daemon.process().wait(SOON).success());
        assert!(!tried());
        [near, far].iter().for_each(peers::expect_reset);
    });
}
