//! The worker dies repeatedly.
use std::time::Duration;

use lab::stream::Random;
use lab::{Daemon, Lab, netns, netns_as_user, wait_until};

use crate::support::{BIN, MANY, SOME, SOON, counter, descriptors, kill_worker, traffic, went_well};

fn killed_ten_times() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.gateway, BIN, &[MANY]);
    let before = descriptors(&daemon);
    let traffic = traffic(&lab, SOME);
    let mut random = Random::new(7);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(random.below(400) as u64));
        kill_worker(&daemon);
    }
    went_well(traffic, 20, &daemon);
    wait_until("every session's descriptors are closed", SOON, || descriptors(&daemon) <= before);
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
    assert_eq!((counter(&log, "crashes"), counter(&log, "not-taken-up")), (10, 0), "{log}");
    assert!(counter(&log, "taken-up") >= 10 * 174, "{log}");
}

#[test]
fn ten_kills_under_load_lose_no_session_and_no_byte() {
    netns(killed_ten_times);
}

#[test]
fn ten_kills_under_load_lose_nothing_in_a_user_namespace() {
    netns_as_user(killed_ten_times);
}
