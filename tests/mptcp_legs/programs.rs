//! Programs without Multipath TCP support that `mptcpize run` makes use it: the client of a box, and the server behind
//! it.
use lab::servers::Nginx;
use lab::{BOTH, Daemon, Host, Ip, Pair, becomes, netns, wait_until, words};
use serde_json::Value;

use crate::support::{BIN, FAR, NEAR, SOON};

/// More than the buffers hold, at a rate that leaves time for inspection during the transfer.
const BODY: &str = "head -c 32000000 /dev/urandom";
const CURL: &str = "curl -sS --fail --max-time 60 --limit-rate 16M";

/// Makes nginx serve the body, and returns its `sha256sum`.
fn serve(host: &Host, nginx: &Nginx) -> String {
    let body = nginx.files().join("body");
    host.run(&format!("{BODY} > {0} && sha256sum < {0}", body.display()))
}

/// Downloads the body with `curl` (plain or under `mptcpize`) through `near`, and returns the record. `meanwhile` is
/// how many Multipath TCP connections the near box must have during the transfer.
fn get(pair: &Pair, near: &Daemon, (ip, curl): (Ip, &str), sum: &str, meanwhile: usize) -> Value {
    let (to, before) = (pair.server_at(ip, 80), near.close_records().len());
    let text = format!("set -o pipefail; {curl} http://{to}/body | sha256sum");
    let mut client = pair.client.spawn("bash", &["-ec", &text]);
    let there = || !pair.near.ss(&format!("-tn state established dst {to}")).is_empty();
    wait_until("the connection", SOON, there);
    let sockets = || pair.near.ss("-Mn state established");
    let came = becomes(SOON, || sockets().lines().count() == meanwhile);
    assert!(came, "not {meanwhile}: {}", sockets());
    let status = client.wait(SOON);
    assert!(status.success() && client.stdout() == sum, "{}{}", client.stdout(), client.stderr());
    near.wait_for_records(before + 1).remove(before)
}

#[test]
fn a_client_that_speaks_it_is_answered_with_it_and_one_that_does_not_with_tcp() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[FAR]);
        let nginx = Nginx::start(&pair.server);
        let sum = serve(&pair.server, &nginx);
        for (n, ip) in (1..).zip(BOTH) {
            let record = get(&pair, &near, (ip, &format!("mptcpize run {CURL}")), &sum, 1);
            assert_eq!(words(&record, "cause client_mptcp client_subflows server_mptcp"), "eof yes 1 off");
            let record = get(&pair, &near, (ip, CURL), &sum, 0);
            assert_eq!(words(&record, "cause client_mptcp"), "eof fallback", "{record}");
            assert_eq!(pair.client.counter("MPTcpExtMPCapableSYNACKRX"), n, "{ip:?}");
            assert_eq!(pair.near.counter("MPTcpExtMPCapableACKRX"), n, "{ip:?}");
        }
        assert_eq!(pair.server.counter("MPTcpExtMPCapableSYNRX"), 0);
    });
}

#[test]
fn a_server_that_speaks_it_is_dialled_with_it() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[NEAR]);
        let nginx = Nginx::start_with_mptcp(&pair.server);
        let sum = serve(&pair.server, &nginx);
        for (n, ip) in (1..).zip(BOTH) {
            let record = get(&pair, &near, (ip, CURL), &sum, 1);
            assert_eq!(words(&record, "cause client_mptcp server_mptcp server_subflows"), "eof off yes 1");
            assert_eq!(pair.near.counter("MPTcpExtMPCapableSYNACKRX"), n, "{ip:?}");
            assert_eq!(pair.server.counter("MPTcpExtMPCapableACKRX"), n, "{ip:?}");
        }
        assert_eq!(pair.client.counter("MPTcpExtMPCapableSYNTX"), 0);
    });
}

#[test]
fn a_client_and_a_server_that_speak_it_do_so_with_the_box_between_them() {
    netns(|| {
        let pair = Pair::plain(1);
        let near = Daemon::start(&pair.near, BIN, &[FAR, NEAR]);
        let nginx = Nginx::start_with_mptcp(&pair.server);
        let sum = serve(&pair.server, &nginx);
        for ip in BOTH {
            let record = get(&pair, &near, (ip, &format!("mptcpize run {CURL}")), &sum, 2);
            assert_eq!(words(&record, "cause client_mptcp server_mptcp"), "eof yes yes", "{record}");
        }
    });
}
