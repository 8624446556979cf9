//! Namespaces are entered, private, and gone afterwards; a test that cannot enter fails.
use std::process::Command;

#[test]
fn a_test_has_a_network_of_its_own() {
    let outside = std::fs::read_link("/proc/self/ns/net").unwrap();
    lab::netns(|| {
        let links = Command::new("ip").args(["-br", "link"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&links.stdout).lines().count(), 1, "loopback and nothing else");
        assert_eq!(std::process::id(), 1, "the first process of its namespace: everything ends with it");
    });
    assert_eq!(outside, std::fs::read_link("/proc/self/ns/net").unwrap());
}

#[test]
fn an_ordinary_user_can_make_networks_too() {
    lab::netns_as_user(|| {
        let made = Command::new("ip").args(["netns", "add", "other"]).status().unwrap();
        assert!(made.success());
        eprintln!("user {}", rustix::process::getuid().as_raw());
    });
}

#[test]
fn a_failure_inside_is_a_failure_with_its_output() {
    let failure = std::panic::catch_unwind(|| lab::netns(|| panic!("what went wrong inside"))).unwrap_err();
    let message = failure.downcast_ref::<String>().expect("a formatted panic");
    assert!(message.contains("what went wrong inside"), "{message}");
}
