//! A worker fails during its start, at each step that can fail. The sessions wait for the next worker.
use lab::{Daemon, Fault, Lab, netns, wait_until};
use rustix::process::Signal;
use tcp_intercept::state::crash::Point;

use crate::support::{
    BIN, CRASH_AT, FEW, MANY, SOON, command, counter, echoing, kill_worker, said, speaks, takeovers, traffic,
    tries_to_speak, went_well,
};

/// Returns the names of the points, as in the environment variable.
fn names(points: &[Point]) -> impl Iterator<Item = &'static str> {
    Point::ALL.iter().filter(|(_, point)| points.contains(point)).map(|(name, _)| *name)
}

fn failing(lab: &Lab, at: &str) -> Daemon {
    Daemon::start_with(&lab.gateway, BIN, &[MANY], &[(CRASH_AT, at)])
}

#[test]
fn each_step_of_a_start_that_fails_once_is_tried_again_and_loses_nothing() {
    netns(|| {
        let lab = Lab::new();
        for name in names(&Point::START) {
            let daemon = failing(&lab, &format!("fail:{name}"));
            let traffic = traffic(&lab, FEW);
            kill_worker(&daemon);
            went_well(traffic, 1, &daemon);
            let log = daemon.stop().1;
            assert_eq!(log.matches("a worker cannot start").count(), 1, "{name}: {log}");
            assert_eq!((counter(&log, "crashes"), counter(&log, "not-taken-up")), (1, 0), "{name}: {log}");
        }
    });
}

#[test]
fn a_worker_that_dies_at_its_start_or_in_any_step_of_it_loses_nothing() {
    netns(|| {
        let lab = Lab::new();
        for name in names(&[&Point::START[..], &[Point::Start]].concat()) {
            let daemon = failing(&lab, &format!("kill:{name}"));
            let traffic = traffic(&lab, FEW);
            kill_worker(&daemon);
            went_well(traffic, 1, &daemon);
            let log = daemon.stop().1;
            assert_eq!((counter(&log, "not-taken-up"), counter(&log, "given-up")), (0, 0), "{name}: {log}");
        }
    });
}

#[test]
fn a_process_that_the_kernel_refuses_is_tried_again() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
        let traffic = traffic(&lab, FEW);
        let fault = Fault::inject(&lab.gateway, daemon.guardian(), "clone:error=EAGAIN:when=1..3");
        daemon.signal_worker(Signal::KILL);
        wait_until("the kernel has refused", SOON, || fault.count() == 3);
        wait_until("another worker", SOON, || takeovers(&daemon) == 1);
        fault.end();
        went_well(traffic, 1, &daemon);
        let log = daemon.stop().1;
        assert_eq!(log.matches("another worker cannot be started").count(), 3, "{log}");
        assert_eq!(counter(&log, "not-taken-up"), 0, "{log}");
    });
}

#[test]
fn while_no_worker_starts_new_connections_are_routed() {
    netns(|| {
        let lab = Lab::new();
        let daemon = failing(&lab, "abort:start");
        let (servers, streams) = echoing(&lab);
        daemon.signal_worker(Signal::KILL);
        for server in &servers {
            // Before that, the connection waits for a worker, or is reset when the listener is shut down.
            wait_until("a connection is routed", SOON, || {
                lab.client()
                    .connect(server.address)
                    .is_ok_and(|stream| lab.gateway.legs(&stream) == 0 && tries_to_speak(&stream).is_ok())
            });
        }
        drop(streams);
        daemon.kill9();
    });
}

#[test]
fn a_control_thread_that_hangs_is_noticed_and_the_sessions_go_on() {
    netns(|| {
        let lab = Lab::new();
        let daemon = failing(&lab, "hang:control");
        let (_servers, streams) = echoing(&lab);
        wait_until("another worker", SOON, || takeovers(&daemon) == 1);
        streams.iter().for_each(speaks);
        let log = daemon.stop().1;
        assert!(log.contains("a worker hung, and was killed: resumed 2 sessions"), "{log}");
    });
}

#[test]
fn a_hung_nft_keeps_neither_drain_nor_stop_from_being_heard() {
    netns(|| {
        let lab = Lab::new();
        let real = lab.gateway.run("command -v nft");
        lab.gateway.run(&format!("mkdir /run/bin && ln -s {} /run/bin/nft", real.trim()));
        let path = format!("/run/bin:{}", std::env::var("PATH").unwrap());
        let mut daemon = Daemon::start_with(&lab.gateway, BIN, &[MANY], &[("PATH", &path)]);
        let (_servers, streams) = echoing(&lab);
        lab.gateway.run("printf '#!/bin/sh\\nexec sleep 1004\\n' >/run/bin/hung && chmod 755 /run/bin/hung");
        lab.gateway.run("mv /run/bin/hung /run/bin/nft");
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| command(&lab.gateway, "drain"));
            wait_until("it drains", SOON, || said(&daemon).contains("draining: new connections are routed"));
            streams.iter().for_each(speaks);
            let stop = command(&lab.gateway, "stop");
            assert!(stop.contains("stopping, with "), "{stop}");
            // The rules stay, because nft cannot remove them; the operator is told.
            assert!(
                stop.contains("nft did not end in time (20s) and was killed") && stop.contains("exit="),
                "{stop}"
            );
            assert!(drain.join().unwrap().contains("sessions are left"));
        });
        daemon.process().wait(SOON);
        streams.iter().for_each(lab::peers::expect_reset);
        assert_eq!(takeovers(&daemon), 0, "{}", said(&daemon));
        let left = |entry: std::io::Result<std::fs::DirEntry>| {
            let line = entry.unwrap().path().join("cmdline");
            std::fs::read(line).is_ok_and(|line| line == b"sleep\x001004\0")
        };
        assert!(!std::fs::read_dir("/proc").unwrap().any(left), "an nft that hung is still there");
    });
}
