//! The lab's commands reject invalid words before they do anything.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::process::Command;
use std::time::Duration;

use lab::Proc;

/// Returns the exit status of the lab with these words, and its standard error. A command that accepts them runs for
/// much longer.
fn refused(words: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args(words.split(' '));
    let mut process = Proc::start("lab", command);
    let status = process.wait(Duration::from_secs(30));
    assert_eq!(process.stdout(), "", "{words}");
    (status.code(), process.stderr())
}

#[test]
fn an_unknown_word_is_reported_with_the_allowed_ones() {
    const SCENES: &str = "even even-loss bonded bonded-loss cuts outage short fallback";
    for (command, word, may_be) in [
        ("paths", "evven", SCENES),
        ("paths even", "bondet", SCENES),
        ("paths", "IPV6", "ipv6"),
        ("paths", "PROFILE=clean", SCENES),
        ("bench", "ONLY=bulk9", "bulk1, bulk8, rtt, conn, idle"),
        ("bench", "ROUNDS=many", "from 1 to 1000"),
        ("bench", "ROUND=", "ROUNDS="),
        ("bench ROUNDS=1", "quick", "ROUNDS="),
        ("demo", "PROFILE=lunar", "transatlantic, clean, satellite, lte, bonded"),
        ("demo", "PROFIL=", "PROFILE="),
        ("lab", "PROFILE=clean,lunar", "transatlantic, clean, satellite, lte, bonded"),
        ("lab OUT=/tmp", "5", "PROFILE="),
        ("soak", "MINUTES=1h", "a number from 0.1 to 100000"),
        ("soak", "MINUTES=0", "a number from 0.1 to 100000"),
        ("soak", "TIMES=3", "MINUTES="),
        ("never-drop", "TIMES=ten", "a number from 1 to 100000"),
        ("never-drop", "TIMES=0", "a number from 1 to 100000"),
        ("never-drop TIMES=1", "TIME=3", "TIMES="),
    ] {
        let (code, said) = refused(&format!("{command} {word}"));
        assert_eq!(code, Some(64), "{command} {word}: {said}");
        assert!(said.starts_with(&format!("{word}: ")) && said.contains(may_be), "{command} {word}: {said}");
    }
}

#[test]
fn an_unknown_command_is_answered_with_the_usage() {
    for word in ["", "path", "soak=1"] {
        let (code, said) = refused(word);
        assert_eq!(code, Some(64), "{said}");
        assert!(
            said.starts_with("usage: lab bench ") && said.contains("lab never-drop [TIMES=100]"),
            "{said}"
        );
    }
}
