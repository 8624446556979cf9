//! Shared parts of the tests with one box in the path: its daemon, and traffic through it.
#![allow(dead_code, reason = "each of the test files uses its part")]
use lab::peers;
use lab::stream::{self, Pace};
use lab::{BOTH, Daemon, Ip, Lab};

pub const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");
/// The settings of the daemon: none, and the clients' interface.
pub const WHERE: [&[&str]; 2] = [&[], &["rules.interfaces=[\"lan0\"]"]];
const BYTES: u64 = 1 << 20;

/// Runs `test` for each protocol, under a daemon with each of [`WHERE`], which must exit successfully.
pub fn intercepting(lab: &Lab, settings: &[&str], test: impl Fn(Ip, &Daemon)) {
    for place in WHERE {
        let daemon = Daemon::start(&lab.gateway, BIN, &[place, settings].concat());
        BOTH.into_iter().for_each(|ip| test(ip, &daemon));
        let (status, log) = daemon.stop();
        assert!(status.success(), "{log}");
    }
}

/// Sends a megabyte each way at the same time through a new connection from the client to the server. Returns how many
/// legs the box has for it: none if it is routed, two if it is intercepted.
pub fn legs_of_a_new_connection(lab: &Lab, ip: Ip) -> usize {
    let (near, far, peer) = peers::pair(lab.client(), &lab.server, lab.server_at(ip, 7));
    assert_eq!(peer.ip(), lab.client_at(0, ip, 0).ip());
    let legs = lab.legs(&near);
    stream::exchange(&near, &far, BYTES, Pace::FULL);
    legs
}
