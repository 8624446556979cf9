//! Namespaces are entered, private, and gone afterwards. A test that cannot enter them fails.
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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

#[test]
fn nothing_inside_outlives_a_test_that_is_killed() {
    let sleeper = Sleeper::start("nothing_inside_outlives_a_test_that_is_killed", "120");
    let Some(mut sleeper) = sleeper else { return };
    sleeper.test.kill().unwrap();
    lab::wait_until("the end of what ran inside", Duration::from_secs(5), || !sleeper.runs());
}

#[test]
fn a_test_that_takes_too_long_is_ended_with_all_that_it_started() {
    let sleeper = Sleeper::start("a_test_that_takes_too_long_is_ended_with_all_that_it_started", "1");
    let Some(sleeper) = sleeper else { return };
    assert!(sleeper.runs());
    let runs = format!("sleep\0{}", sleeper.seconds);
    let output = sleeper.test.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("was ended after 1 s"), "{output:?}");
    assert!(!is_running(&runs));
}

/// A test of this file that runs again as a separate program. In it runs a `sleep` whose command line is unique.
struct Sleeper {
    test: Child,
    seconds: String,
}

impl Sleeper {
    /// Returns `None` in the separate program, after the sleep.
    fn start(test: &str, timeout: &str) -> Option<Self> {
        if let Ok(seconds) = std::env::var("SLEEPER") {
            lab::netns(|| drop(Command::new("sleep").arg(&seconds).status()));
            return None;
        }
        let seconds = format!("{}{}", 1000 + timeout.len(), std::process::id());
        let mut command = Command::new(std::env::current_exe().expect("this test's program"));
        command.args(["--exact", test]).env("SLEEPER", &seconds).env("LAB_TIMEOUT", timeout);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let sleeper = Self { test: command.spawn().expect("it runs already"), seconds };
        lab::wait_until("a start inside", Duration::from_secs(10), || sleeper.runs());
        Some(sleeper)
    }

    fn runs(&self) -> bool {
        is_running(&format!("sleep\0{}", self.seconds))
    }
}

fn is_running(command: &str) -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut lines =
        processes.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
    lines.any(|line| line.trim_end_matches('\0') == command)
}
