//! What sessions cost in which nothing happens.
use std::io::Write;
use std::time::Duration;

use lab::peers::{Server, deaf};
use lab::{Ip, becomes, netns};

use crate::bench::{Bench, SOON, speaks};

/// How often the threads of `pid` have gone to sleep, which is how often they were awake.
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
    // Each thread reports once a second that it goes on, for which a timer may wake it three times.
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
        // What is on its way arrives first, be the machine as loaded as it may.
        let mut seen = 0;
        let slept = becomes(SOON, || {
            let before = wakings(pid);
            std::thread::sleep(Duration::from_secs(5));
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() as u64;
            seen = wakings(pid) - before;
            seen <= threads * BEATS
        });
        assert!(slept, "{seen} wakings in five seconds, which is more than it takes to say so");
        assert_eq!(bench.lab.gateway.ss("-tn state established").lines().count(), 2 * 1050);
    });
}
