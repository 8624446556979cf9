//! A kernel without free descriptors, files or memory: existing sessions continue, new connections are routed, and no
//! connection hangs. strace injects the errors that would otherwise harm the machine.
use std::time::Duration;

use lab::stream::{self, Pace};
use lab::{Fault, Ip, descriptors, netns, peers, wait_until};

use crate::bench::{Bench, Fate, SOON, Work, counter, speaks};

fn newcomers_are_routed_without_descriptors(free: u64) {
    let mut bench = Bench::new(&[]);
    let mut held = bench.sessions(20);
    descriptors::forbid_new(bench.pid(), free).unwrap();
    // This one is intercepted: it is reset in the end instead of hanging, unless it gets a descriptor reserved for nft.
    assert_ne!(bench.newcomer(), Fate::Routed);
    wait_until("the gate is closed", SOON, || bench.gate_is_closed());
    (0..20).for_each(|_| assert_eq!(bench.newcomer(), Fate::Routed));
    held.iter().for_each(|stream| speaks(stream).unwrap());
    held.truncate(10);
    wait_until("connections are taken again", SOON, || bench.newcomer() == Fate::Served);
    let log = bench.daemon.stop().1;
    assert_eq!(counter(&log, "gate-closed"), 1, "{log}");
}

#[test]
fn without_descriptors_new_connections_are_routed_and_taken_again_when_there_are_some() {
    netns(|| newcomers_are_routed_without_descriptors(0));
}

#[test]
fn with_a_descriptor_to_accept_and_none_to_dial_new_connections_are_routed_too() {
    netns(|| newcomers_are_routed_without_descriptors(1));
}

/// Makes a system call fail and checks the daemon: existing sessions are intact, the first new connection is reset, and
/// the others have one of the fates `then`. The daemon neither spins nor floods its log. Afterwards new connections are
/// served. Returns the daemon's log.
fn newcomers_while(what: &str, then: &[Fate]) -> String {
    let mut bench = Bench::new(&[]);
    let pid = bench.pid();
    let held = bench.sessions(10);
    let (near, far, _) = peers::pair(bench.lab.client(), &bench.lab.server, bench.lab.server_at(Ip::V4, 81));
    let work = Work::of(pid);
    let fault = Fault::inject(&bench.lab.gateway, pid, what);
    assert_eq!(bench.newcomer(), Fate::Reset);
    wait_until("the gate is closed", SOON, || bench.gate_is_closed());
    std::thread::scope(|scope| {
        scope.spawn(|| stream::exchange(&near, &far, 8 << 20, Pace::UNEVEN));
        let fates: Vec<_> = (0..20).map(|_| bench.newcomer()).collect();
        assert!(fates.contains(&Fate::Routed) && fates.iter().all(|fate| then.contains(fate)), "{fates:?}");
        held.iter().for_each(|stream| speaks(stream).unwrap());
    });
    // The daemon probes the kernel every five seconds. It admits no connection that it would have to reset.
    std::thread::sleep(Duration::from_secs(6));
    assert!(then.contains(&bench.newcomer()));
    work.is_little();
    assert!(fault.end() > 0, "{what} was never called");
    wait_until("newcomers are served again", SOON, || bench.newcomer() == Fate::Served);
    let log = bench.daemon.stop().1;
    assert!(counter(&log, "exhausted") > 0, "{log}");
    assert!(log.matches("out of descriptors or memory for a connection").count() <= 4, "{log}");
    log
}

fn waits_in_vain(errno: &str) {
    netns(|| {
        // Only a connection can show whether accept works again: the daemon tries one every five seconds.
        let log = newcomers_while(&format!("accept4:error={errno}"), &[Fate::Routed, Fate::Reset]);
        assert!(counter(&log, "shed") > 0, "{log}");
    });
}

#[test]
fn without_files_what_waits_to_be_accepted_is_reset_and_the_others_are_routed() {
    waits_in_vain("ENFILE");
}

#[test]
fn without_memory_what_waits_to_be_accepted_is_reset_and_the_others_are_routed() {
    waits_in_vain("ENOMEM");
}

#[test]
fn where_accepting_is_forbidden_what_waits_is_reset_and_the_others_are_routed() {
    waits_in_vain("EPERM");
}

#[test]
fn without_memory_to_watch_a_socket_it_is_reset_after_a_second_and_the_others_are_routed() {
    netns(|| {
        let log = newcomers_while("epoll_ctl:error=ENOSPC", &[Fate::Routed]);
        assert!(counter(&log, "shed") > 0, "{log}");
    });
}

/// Lets some calls of epoll_ctl() fail in each thread. A new connection then waits, and is served.
fn served_after(faults: &str) {
    netns(|| {
        let mut bench = Bench::new(&[]);
        let pid = bench.pid();
        let fault = Fault::inject(&bench.lab.gateway, pid, &format!("epoll_ctl:error={faults}"));
        let before = bench.lab.server.counter("TcpPassiveOpens");
        assert_eq!(bench.newcomer(), Fate::Served);
        assert_eq!(bench.lab.server.counter("TcpPassiveOpens"), before + 1, "the server is dialled once");
        let failed = fault.end();
        let log = bench.daemon.stop().1;
        assert!(failed > 0 && counter(&log, "exhausted") == failed, "{failed} failed\n{log}");
        assert_eq!((counter(&log, "shed"), counter(&log, "dial-failed")), (0, 0), "{log}");
    });
}

#[test]
fn a_connection_waits_while_there_is_no_memory_to_watch_the_client() {
    served_after("ENOSPC:when=1..3");
}

#[test]
fn a_connection_waits_while_there_is_no_memory_to_watch_the_server() {
    // The first call registers the client leg.
    served_after("ENOMEM:when=2..4");
}

#[test]
fn sessions_of_a_dead_worker_wait_while_there_is_no_memory_to_watch_them() {
    netns(|| {
        let bench = Bench::new(&["limits.crashes=100"]);
        let held = bench.sessions(20);
        // A worker thread first registers its runtime and two listeners. The main thread registers two runtimes and two
        // descriptors. These must not fail here; otherwise the guardian would start another worker.
        let faults = "epoll_ctl:error=ENOMEM:when=6..11";
        let fault = Fault::inject_into_children(&bench.lab.gateway, bench.daemon.guardian(), faults);
        bench.daemon.signal_worker(rustix::process::Signal::KILL);
        held.iter().for_each(|stream| speaks(stream).unwrap());
        let log = bench.daemon.stop().1;
        // Keep strace attached until the end: if it detaches from a thread that is starting processes, it may leave the
        // thread stopped.
        assert!(fault.count() > 0, "{log}");
        assert_eq!((counter(&log, "crashes"), counter(&log, "taken-up")), (1, 20), "{log}");
        assert_eq!(counter(&log, "not-taken-up"), 0, "{log}");
    });
}

#[test]
fn without_files_to_dial_with_the_client_is_reset_and_the_others_are_routed() {
    netns(|| {
        let log = newcomers_while("socket:error=ENFILE", &[Fate::Routed]);
        assert!(counter(&log, "dial-failed") > 0 && log.contains("out-of-descriptors"), "{log}");
    });
}

#[test]
fn without_memory_to_dial_with_the_client_is_reset_and_the_others_are_routed() {
    netns(|| {
        // Only a dial can show whether there is memory for a SYN: the daemon tries one every five seconds.
        let log = newcomers_while("connect:error=ENOBUFS", &[Fate::Routed, Fate::Reset]);
        assert!(counter(&log, "dial-failed") > 0 && log.contains("out-of-buffers"), "{log}");
    });
}

#[test]
fn a_connection_that_is_over_before_it_is_accepted_is_counted_and_holds_up_nobody() {
    netns(|| {
        let mut bench = Bench::new(&[]);
        let pid = bench.pid();
        let held = bench.sessions(10);
        let mut failed = 0;
        // Errors of a single connection that accept(2) documents.
        for errno in
            ["ECONNABORTED", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP", "ENETDOWN", "EHOSTUNREACH", "EINTR"]
        {
            let fault = Fault::inject(&bench.lab.gateway, pid, &format!("accept4:error={errno}:when=1+2"));
            (0..5).for_each(|_| assert_eq!(bench.newcomer(), Fate::Served, "{errno}"));
            failed += fault.end();
        }
        held.iter().for_each(|stream| speaks(stream).unwrap());
        let log = bench.daemon.stop().1;
        assert!(failed > 0 && counter(&log, "aborted") == failed, "{failed} failed\n{log}");
        assert_eq!((counter(&log, "gate-closed"), counter(&log, "shed")), (0, 0), "{log}");
        assert!(log.matches("before it could be accepted").count() <= 3, "{log}");
    });
}

#[test]
fn a_failure_that_goes_on_is_no_reason_to_spin() {
    netns(|| {
        let mut bench = Bench::new(&[]);
        let pid = bench.pid();
        let work = Work::of(pid);
        let fault = Fault::inject(&bench.lab.gateway, pid, "accept4:error=ECONNABORTED");
        assert_eq!(bench.newcomer(), Fate::Reset);
        work.is_little();
        fault.end();
        assert_eq!(bench.newcomer(), Fate::Served);
    });
}

#[test]
fn an_option_that_is_refused_since_the_start_is_left_out_and_said_once() {
    netns(|| {
        let mut bench = Bench::new(&[]);
        let pid = bench.pid();
        // The first option that a worker sets on a socket is its congestion control.
        let fault = Fault::inject(&bench.lab.gateway, pid, "setsockopt:error=EPERM:when=1");
        (0..20).for_each(|_| assert_eq!(bench.newcomer(), Fate::Served));
        assert!(fault.end() > 0);
        let log = bench.daemon.stop().1;
        assert_eq!(log.matches("no longer granted: server.congestion-control").count(), 1, "{log}");
    });
}
