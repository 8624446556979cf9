//! The lab controls the daemon as the other tests expect: it waits until the daemon is ready, captures its log, and
//! ends it on drop.
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Lab, peers};

const BINARY: &str = env!("CARGO_BIN_EXE_tcp-intercept");

#[test]
fn a_connection_through_the_box_leaves_its_record() {
    lab::netns(connections_are_recorded);
}

#[test]
fn an_ordinary_user_runs_the_daemon_in_a_namespace_of_his_own() {
    lab::netns_as_user(connections_are_recorded);
}

#[test]
fn a_daemon_that_does_not_start_is_shown_with_what_it_said() {
    lab::netns(|| {
        let lab = Lab::new();
        let start = || Daemon::start(&lab.gateway, BINARY, &["no.such-key=1"]);
        let failure = std::panic::catch_unwind(std::panic::AssertUnwindSafe(start)).unwrap_err();
        let message = failure.downcast_ref::<String>().expect("a formatted panic");
        assert!(message.contains("no.such-key"), "{message}");
    });
}

#[test]
fn a_dropped_daemon_is_gone() {
    lab::netns(|| {
        let lab = Lab::new();
        let listens = || lab.gateway.ss("-tln").contains(":5000");
        let daemon = Daemon::start(&lab.gateway, BINARY, &[]);
        assert!(listens());
        drop(daemon);
        assert!(!listens());
    });
}

fn connections_are_recorded() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab.gateway, BINARY, &[]);
    for (n, ip) in BOTH.into_iter().enumerate() {
        let (client, server, peer) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
        stream::exchange(&client, &server, 1 << 20, Pace::UNEVEN);
        let records = daemon.wait_for_records(n + 1);
        assert_eq!(records[n]["client"], peer.to_string());
        assert_eq!(records[n]["server"], lab.server_at(ip, 7).to_string());
        assert_eq!(
            (&records[n]["to_server"], &records[n]["to_client"]),
            (&(1 << 20).into(), &(1 << 20).into())
        );
    }
    let (status, log) = daemon.stop();
    assert!(status.success(), "{log}");
}
