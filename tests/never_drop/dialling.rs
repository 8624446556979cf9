//! The connect timeout of a session that is taken over during the dial.
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::peers::{Server, echo, expect_reset};
use lab::{BOTH, Daemon, Ip, Lab, netns, wait_until, words};

use crate::support::speaks;
use crate::support::{BIN, MANY, SOON, kill_worker, takeovers};

const PORT: u16 = 7;

/// Makes the server ignore every SYN.
fn silence(lab: &Lab) {
    lab.server.nft(&format!(
        "table inet silence {{\n chain input {{\n type filter hook input priority 0; tcp dport {PORT} drop\n }}\n}}"
    ));
}

/// Opens a connection that the box has accepted and whose server is being dialled.
fn dialling(lab: &Lab, server: &Server) -> TcpStream {
    let stream = lab.client().connect(server.address).unwrap();
    wait_until("the server is dialled", SOON, || {
        !lab.gateway.ss(&format!("-tn state syn-sent dport = :{PORT}")).is_empty()
    });
    stream
}

#[test]
fn the_connect_timeout_runs_on_when_workers_die() {
    netns(|| {
        let lab = Lab::new();
        silence(&lab);
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY, "server.connect-timeout=3s"]);
        for (n, ip) in BOTH.into_iter().enumerate() {
            let server = Server::start(&lab.server, lab.server_at(ip, PORT), echo);
            let stream = dialling(&lab, &server);
            // No worker lives as long as the timeout.
            let since = Instant::now();
            while daemon.close_records().len() == n {
                assert!(since.elapsed() < SOON, "the timeout begins anew with each worker");
                kill_worker(&daemon);
                sleep(Duration::from_millis(500));
            }
            expect_reset(&stream);
            let record = daemon.record_of(stream.local_addr().unwrap(), server.address);
            assert_eq!(words(&record, "by phase cause"), "us connect connect-timeout");
        }
    });
}

#[test]
fn a_server_that_answers_while_there_is_no_worker_is_not_late() {
    netns(|| {
        let lab = Lab::new();
        let daemon = Daemon::start(&lab.gateway, BIN, &[MANY, "server.connect-timeout=2s"]);
        let server = Server::start(&lab.server, lab.server_at(Ip::V4, PORT), echo);
        silence(&lab);
        let stream = dialling(&lab, &server);
        daemon.pause_worker();
        lab.server.nft("delete table inet silence");
        wait_until("the server has answered", SOON, || lab.gateway.legs(&stream) == 2);
        sleep(Duration::from_secs(3));
        assert_eq!(takeovers(&daemon), 0, "the worker has not been replaced yet");
        kill_worker(&daemon);
        speaks(&stream);
    });
}
