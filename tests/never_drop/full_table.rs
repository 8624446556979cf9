//! The worker dies, and the daemon is upgraded and stopped, while it has no free descriptor.
use lab::full_table::FullTable;
use lab::peers::expect_reset;
use lab::{Daemon, Ip, Lab, netns, netns_as_user, reachable, wait_until};

use crate::support::{
    BIN, MANY, SOME, SOON, command, counter, descriptors, echoing, kill_worker, said, speaks, traffic,
    went_well,
};

fn killed_ten_times_with_a_full_table() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
    let before = descriptors(&daemon);
    let traffic = traffic(&lab, SOME);
    let echo = lab.server_at(Ip::V4, 9001);
    let mut table = FullTable::new(&lab.gateway, daemon.guardian(), lab.client(), echo).unwrap();
    for time in 1..=10 {
        let killed = table.kill_worker(&traffic);
        killed.unwrap_or_else(|err| panic!("time {time}: {err}\n{}", said(&daemon)));
    }
    table.recovers(&traffic).unwrap();
    assert_eq!(table.failures(), Vec::<String>::new(), "{}", said(&daemon));
    went_well(traffic, 20, &daemon);
    drop(table);
    wait_until("every session's descriptors are closed", SOON, || descriptors(&daemon) <= before);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert_eq!((counter(&log, "crashes"), counter(&log, "not-taken-up")), (10, 0), "{log}");
    assert!(counter(&log, "taken-up") >= 10 * 175, "{log}");
}

#[test]
fn ten_kills_with_a_full_descriptor_table_lose_no_session_and_no_byte() {
    netns(killed_ten_times_with_a_full_table);
}

#[test]
fn ten_kills_with_a_full_descriptor_table_lose_nothing_in_a_user_namespace() {
    netns_as_user(killed_ten_times_with_a_full_table);
}

#[test]
fn with_a_full_descriptor_table_commands_are_heard_and_the_program_can_be_replaced() {
    netns(|| {
        let lab = Lab::new();
        let mut daemon = Daemon::start(&lab.gateway, reachable(BIN.as_ref()), &[MANY]);
        let (_servers, streams) = echoing(&lab);
        for pid in [daemon.guardian(), daemon.worker()] {
            lab::descriptors::forbid_new(pid, 0).unwrap();
        }
        // Workers inherit the guardian's limit.
        for _ in 0..3 {
            let answer = command(&lab.gateway, "upgrade");
            assert!(answer.contains("exit=0"), "{answer}{}", said(&daemon));
            streams.iter().for_each(speaks);
            kill_worker(&daemon);
            streams.iter().for_each(speaks);
        }
        let answer = command(&lab.gateway, "upgrade /run/none");
        assert!(answer.contains("No such file") && answer.contains("exit=69"), "{answer}");
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| command(&lab.gateway, "drain"));
            wait_until("it drains", SOON, || said(&daemon).contains("draining: new connections are routed"));
            streams.iter().for_each(speaks);
            let answer = command(&lab.gateway, "stop");
            assert!(answer.contains("stopped\nexit=0"), "{answer}{}", said(&daemon));
            drain.join().unwrap();
        });
        assert!(daemon.process().wait(SOON).success());
        streams.iter().for_each(expect_reset);
        let log = daemon.log();
        assert_eq!((counter(&log, "upgrades"), counter(&log, "not-taken-up")), (3, 0), "{log}");
        assert_eq!(lab.gateway.run("nft list tables"), "");
    });
}
