//! The end of the daemon: workers that hang or crash too often, a guardian that dies, draining, stopping.
use std::time::{Duration, Instant};

use lab::{Daemon, Ip, Lab, netns, peers, wait_until};
use rustix::process::Signal;

use crate::support::{BIN, MANY, SOON, command, counter, echoing, kill_worker, said, speaks, takeovers};

const STOP: Duration = Duration::from_secs(20);

#[test]
fn a_worker_that_hangs_is_replaced_and_its_sessions_go_on() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let (_servers, streams) = echoing(&lab);
        daemon.signal_worker(Signal::STOP);
        wait_until("another worker", SOON, || takeovers(&daemon) == 1);
        streams.iter().for_each(speaks);
        let log = daemon.stop().1;
        assert!(log.contains("a worker hung, and was killed: resumed 2 sessions in"), "{log}");
    });
}

#[test]
fn when_workers_die_too_often_it_lets_go_and_connections_are_routed() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &["limits.crashes=2"]);
        let (servers, streams) = echoing(&lab);
        (0..2).for_each(|_| kill_worker(&daemon));
        streams.iter().for_each(speaks);
        daemon.signal_worker(Signal::KILL);
        let status = daemon.process().wait(STOP);
        assert_eq!(status.code(), Some(70), "{}", daemon.log());
        assert!(daemon.log().contains("more than 2 workers have died within a minute (limits.crashes)"));
        streams.iter().for_each(peers::expect_reset);
        assert_eq!(lab.gateway.run("nft list tables"), "");
        servers.iter().for_each(|server| speaks(&lab.client().connect(server.address).unwrap()));
    });
}

#[test]
fn a_worker_without_a_guardian_serves_its_sessions_to_their_end_and_cleans_up() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let (servers, streams) = echoing(&lab);
        let worker = daemon.worker();
        daemon.signal(Signal::KILL);
        daemon.process().wait(SOON);
        wait_until("it drains", SOON, || said(&daemon).contains("the guardian is gone: draining"));
        let routed: Vec<_> =
            servers.iter().map(|server| lab.client().connect(server.address).unwrap()).collect();
        routed.iter().chain(&streams).for_each(speaks);
        assert_eq!(lab.gateway.ss("-tn state established").lines().count(), 4, "the new ones are routed");
        let answer = command(&lab.gateway, "stop");
        assert!(answer.contains("the daemon does not answer") && answer.contains("exit=69"), "{answer}");
        drop(streams);
        // A zombie counts as ended, because no parent may be left to reap it.
        let status = || std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
        let gone = || status().is_empty() || status().contains("State:\tZ");
        wait_until("the worker's end", SOON, gone);
        assert_eq!(lab.gateway.run("nft list tables"), "");
        routed.iter().for_each(speaks);
    });
}

fn drained_by(settings: &[&str], drain: impl FnOnce(&Lab, &Daemon) -> String + Send) {
    let lab = Lab::new();
    let mut daemon = Daemon::start(&lab.gateway, BIN, settings);
    let (servers, mut streams) = echoing(&lab);
    let said_by_command = std::thread::scope(|scope| {
        let drain = scope.spawn(|| drain(&lab, &daemon));
        wait_until("it drains", SOON, || said(&daemon).contains("draining: new connections are routed"));
        wait_until("the gate is closed", SOON, || {
            lab.gateway.run("nft list chain inet tcp_intercept gate").contains("goto full")
        });
        let routed = lab.client().connect(servers[0].address).unwrap();
        speaks(&routed);
        assert_eq!(lab.gateway.legs(&routed), 0, "routed past it");
        // The next worker drains too.
        kill_worker(&daemon);
        streams.iter().for_each(speaks);
        streams.pop();
        speaks(&streams[0]);
        drop(streams.pop());
        drain.join().unwrap()
    });
    let status = daemon.process().wait(STOP);
    assert!(status.success(), "{}", daemon.log());
    assert!(said_by_command.is_empty() || said_by_command.contains("exit=0"), "{said_by_command}");
    assert_eq!(counter(&daemon.log(), "ended-in-order"), 2, "{}", daemon.log());
    assert_eq!(lab.gateway.run("nft list tables"), "");
}

#[test]
fn drain_lets_new_connections_be_routed_and_ends_with_the_last_session() {
    netns(|| drained_by(&[], |lab, _| command(&lab.gateway, "drain")));
}

#[test]
fn sigterm_drains_where_it_is_to() {
    netns(|| {
        drained_by(&["stop.sigterm=\"drain\""], |_, daemon| {
            daemon.signal(Signal::TERM);
            String::new()
        });
    });
}

#[test]
fn a_drain_ends_at_its_deadline_and_at_a_second_sigterm() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &["stop.drain-deadline=\"2s\""]);
        let (_servers, streams) = echoing(&lab);
        let since = Instant::now();
        let answer = command(&lab.gateway, "drain");
        assert!(answer.contains("2 sessions are left") && answer.contains("exit=0"), "{answer}");
        assert!(since.elapsed() >= Duration::from_secs(2));
        daemon.process().wait(STOP);
        streams.iter().for_each(peers::expect_reset);

        let mut daemon = Daemon::start(&lab.gateway, BIN, &["stop.sigterm=\"drain\""]);
        let stream = lab.client().connect(_servers[0].address).unwrap();
        speaks(&stream);
        daemon.signal(Signal::TERM);
        wait_until("it drains", SOON, || said(&daemon).contains("draining"));
        daemon.signal(Signal::TERM);
        assert!(daemon.process().wait(STOP).success());
        peers::expect_reset(&stream);
    });
}

#[test]
fn stop_resets_both_ends_at_once() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let (near, far, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 81));
        let answer = command(&lab.gateway, "stop");
        assert!(answer.contains("stopped\nexit=0"), "{answer}");
        assert!(daemon.process().wait(STOP).success());
        [near, far].iter().for_each(peers::expect_reset);
        let answer = command(&lab.gateway, "stop");
        assert!(answer.contains("no tcp-intercept runs") && answer.contains("exit=69"), "{answer}");
    });
}

#[test]
fn only_root_and_the_daemons_own_user_are_heard() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        // A copy of the program that other users may execute.
        lab.gateway.run(&format!("mkdir -m 755 /run/open; install -m 755 {BIN} /run/open/ti"));
        let asked = "setpriv --reuid=65534 --clear-groups /run/open/ti stop 2>&1 || echo exit=$?";
        let answer = lab.gateway.run(asked);
        assert!(
            answer.contains("only root and the user that it runs as") && answer.contains("exit=77"),
            "{answer}"
        );
        assert_eq!(daemon.process().try_wait(), None);
        let answer = command(&lab.gateway, "nonsense");
        assert!(answer.contains("exit=64"), "{answer}");
    });
}
