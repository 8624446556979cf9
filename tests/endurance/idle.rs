//! The cost of idle sessions.
use std::io::Write;
use std::time::Duration;

use lab::peers::{Server, deaf};
use lab::{Ip, becomes, netns};

use crate::bench::{Bench, SOON, speaks};

/// Returns how often the threads of `pid` have gone to sleep, which equals how often they have woken up.
fn wakings(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    tasks.map(|task| of(task.unwrap())).sum()
}

#[test]
fn a_thousand_idle_sessions_and_fifty_that_are_stuck_wake_nobody() {
    // Each thread increments its heartbeat once a second, which may take three timer wake-ups.
    const BEATS: u64 = 15;
    netns(|| {
        let mut bench = Bench::new(&[]);
        let deaf = Server::start(&bench.lab.server, bench.lab.server_at(Ip::V6, 81), deaf);
        let idle: Vec<_> = (0..1000).map(|_| bench.connect()).collect();
        idle.iter().for_each(|stream| speaks(stream).unwrap());
        let mut stuck: Vec<_> = (0..50).map(|_| bench.lab.client().connect(deaf.address).unwrap()).collect();
        for stream in &mut stuck {
            stream.set_nonblocking(true).unwrap();
            while stream.write(&[1; 1 << 16]).is_ok() {}
        }
        let pid = bench.pid();
        // Data in transit arrives first, however loaded the machine is.
        let mut seen = 0;
        let slept = becomes(SOON, || {
            let before = wakings(pid);
            std::thread::sleep(Duration::from_secs(5));
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() as u64;
            seen = wakings(pid) - before;
            seen <= threads * BEATS
        });
        assert!(slept, "{seen} wake-ups in five seconds, more than the heartbeat needs");
        assert_eq!(bench.lab.gateway.ss("-tn state established").lines().count(), 2 * 1050);
    });
}
