//! The worker dies while the daemon has no descriptor left.
use lab::full_table::FullTable;
use lab::{Daemon, Ip, Lab, netns, netns_as_user, wait_until};

use crate::support::{BIN, MANY, SOME, SOON, counter, descriptors, said, traffic, went_well};

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
