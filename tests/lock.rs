//! The name of the control socket excludes other instances and lets commands find the daemon. Any local user may bind
//! it first.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::time::Duration;

use lab::{Daemon, Host, Lab, Proc, netns, wait_until};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
const SOON: Duration = Duration::from_secs(30);
const NAME: &str = "tcp-intercept";

/// Binds an abstract name and then runs `then`.
fn holder(host: &Host, uid: &str, name: &str, then: &str) -> Proc {
    let program = format!(
        "use Socket; $| = 1; my $name = pack_sockaddr_un(\"\\0{name}\"); \
         sub unix {{ socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die $!; $s }} \
         my $s = unix(); bind($s, $name) or die \"bind: $!\"; {then}; print \"held\\n\"; sleep"
    );
    let (reuid, arguments) = (format!("--reuid={uid}"), ["perl", "-e", program.as_str()]);
    let mut holder = host.spawn("setpriv", &[&[reuid.as_str(), "--clear-groups"], &arguments[..]].concat());
    holder.wait_for("held", SOON);
    holder
}

fn stranger(host: &Host, name: &str, then: &str) -> Proc {
    holder(host, "65534", name, then)
}

/// Answers every command with success, like a daemon that has executed it.
const ANSWERS: &str =
    "listen($s, 16) or die; fork or do { while (accept(my $c, $s)) { print $c \"ok fooled\\n\"; close $c } }";
/// Listens without accepting; two connections of its own fill the queue.
const FULL: &str = "listen($s, 0) or die; connect($own = unix(), $name) or die $!";
/// Only binds the name.
const SILENT: &str = "1";

/// Runs the program on `host` and returns its output and exit status. A command that hangs ends with 124.
fn command(host: &Host, arguments: &str) -> String {
    host.run(&format!("timeout 20 {BIN} {arguments} 2>&1 && echo exit=0 || echo exit=$?"))
}

/// Checks that a second instance is refused and names the process of the first.
fn second_is_refused(lab: &Lab, first: &Daemon) {
    let said = command(&lab.gateway, "run --set listen.port=5001");
    let another = format!("another tcp-intercept (pid {}) runs", first.guardian());
    assert!(said.contains(&another) && said.contains("exit=69"), "{said}");
}

fn starts_beside(then: &str) {
    let lab = Lab::new();
    let mut stranger = stranger(&lab.gateway, NAME, then);
    let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
    let log = daemon.log();
    let who = format!("process {} of uid 65534 holds the abstract socket @tcp-intercept: ", stranger.pid());
    assert!(log.contains("\"WARN\"") && log.contains(&who), "{log}");
    second_is_refused(&lab, &daemon);
    let answer = command(&lab.gateway, "upgrade");
    assert!(answer.contains("upgraded from") && answer.contains("exit=0"), "{answer}");
    // The preferred name is free now, but the daemon uses another one.
    stranger.kill();
    wait_until("the name is free", SOON, || {
        !lab.gateway.run("cat /proc/net/unix").contains("@tcp-intercept\n")
    });
    second_is_refused(&lab, &daemon);
    let answer = command(&lab.gateway, "stop");
    assert!(answer.contains("stopped\nexit=0"), "{answer}");
    assert!(daemon.process().wait(SOON).success());
}

#[test]
fn a_stranger_that_answers_under_the_name_keeps_no_daemon_from_starting() {
    netns(|| starts_beside(ANSWERS));
}

#[test]
fn a_stranger_that_takes_no_connection_keeps_no_daemon_from_starting() {
    netns(|| starts_beside(FULL));
}

#[test]
fn a_stranger_that_does_not_listen_keeps_no_daemon_from_starting() {
    netns(|| starts_beside(SILENT));
}

#[test]
fn strangers_with_names_like_a_daemons_neither_answer_for_it_nor_hold_a_command_up() {
    netns(|| {
        let lab = Lab::new();
        let names = [
            (NAME, ANSWERS),
            ("tcp-intercept-0000000000000000", FULL),
            ("tcp-intercept-0000000000000001", ANSWERS),
            ("tcp-intercept-ffffffffffffffff", FULL),
        ];
        let _strangers = names.map(|(name, then)| stranger(&lab.gateway, name, then));
        for asked in ["stop", "drain", "upgrade"] {
            let answer = command(&lab.gateway, asked);
            assert!(answer.contains("no tcp-intercept runs in this network namespace"), "{asked}: {answer}");
            assert!(answer.contains("of uid 65534 holds its name") && answer.contains("exit=69"), "{answer}");
        }
        let mut daemon = Daemon::start(&lab.gateway, BIN, &[]);
        let answer = command(&lab.gateway, "stop");
        assert!(answer.contains("stopped\nexit=0"), "{answer}");
        assert!(daemon.process().wait(SOON).success());
    });
}

#[test]
fn a_trusted_process_that_takes_no_connection_counts_as_another_instance() {
    netns(|| {
        let lab = Lab::new();
        let holder = holder(&lab.gateway, "0", NAME, FULL);
        let said = command(&lab.gateway, "run");
        let another = format!("another tcp-intercept (pid {}) runs", holder.pid());
        assert!(said.contains(&another) && said.contains("exit=69"), "{said}");
        let answer = command(&lab.gateway, "stop");
        assert!(answer.contains("the daemon cannot be reached") && answer.contains("exit=69"), "{answer}");
    });
}
