//! The test peers behave as their names say, so other tests can rely on them.
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::panic::catch_unwind;
use std::time::Duration;

use lab::peers::{self, Server};
use lab::stream::{self, Pace};
use lab::{Ip, Lab, wait_until};

#[test]
fn a_changed_byte_is_noticed() {
    lab::netns(|| {
        let lab = Lab::new();
        let (client, server, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V4, 9));
        (&client).write_all(b"one too many").unwrap();
        catch_unwind(|| stream::exchange(&client, &server, 1 << 16, Pace::FULL)).unwrap_err();
    });
}

#[test]
fn a_reset_is_not_seen_as_an_orderly_end() {
    lab::netns(|| {
        let lab = Lab::new();
        let (client, mut server, _) = peers::pair(lab.client(), &lab.server, lab.server_at(Ip::V6, 9));
        peers::reset(client);
        let err = server.read(&mut [0]).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn echo_whoami_and_banner_answer_and_a_dropped_server_refuses() {
    lab::netns(|| {
        let lab = Lab::new();
        let said = |port| {
            let mut stream = lab.client().connect(lab.server_at(Ip::V4, port)).unwrap();
            stream.write_all(b"hello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        };
        let echo = Server::start(&lab.server, lab.server_at(Ip::V4, 7), peers::echo);
        let _whoami = Server::start(&lab.server, lab.server_at(Ip::V4, 8), peers::whoami);
        let _banner = Server::start(&lab.server, lab.server_at(Ip::V4, 9), peers::banner);
        assert_eq!(said(7), "hello");
        assert!(said(8).starts_with("10.1.0.2:"));
        assert!(said(9).starts_with("220"));
        drop(echo);
        let refused = lab.client().connect(lab.server_at(Ip::V4, 7)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_deaf_server_stops_the_sender() {
    lab::netns(|| {
        let lab = Lab::new();
        let _deaf = Server::start(&lab.server, lab.server_at(Ip::V4, 7), peers::deaf);
        let mut stream = lab.client().connect(lab.server_at(Ip::V4, 7)).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut full = || stream.write(&[0; 65536]).is_err_and(|err| err.kind() == ErrorKind::WouldBlock);
        wait_until("a full window", Duration::from_secs(10), || full() && full() && full());
        assert!(lab.client().ss("-tan state established").contains(":7"));
    });
}
