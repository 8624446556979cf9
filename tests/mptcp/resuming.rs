//! A worker takes over after the previous worker of the same daemon has crashed: no connection loses a path. `Paths`
//! works without a daemon here; dropping it stands for the crash.
use std::net::SocketAddr;

use lab::{BOTH, Host, Pair, becomes, netns};
use socket2::{Domain, Protocol, Socket, Type};
use tcp_intercept::config::Config;
use tcp_intercept::host::paths::sync::{Paths, clear};

use crate::support::{FAR, NEAR, SOON, limits};

const RAISED: &str = "add_addr_accepted 8 subflows 8";
const KERNELS: &str = "add_addr_accepted 0 subflows 2";

fn config(settings: &[&str]) -> Config {
    Config::parse(&settings.join("\n"), &[]).unwrap()
}

/// Starts or resumes as a worker, and crashes.
fn worker(host: &Host, settings: &[&str], first: bool) {
    let config = config(settings);
    let begin = if first { Paths::start } else { Paths::resume };
    assert_eq!(host.enter(|| begin(&config).is_some()), !config.mptcp.paths.is_empty());
}

/// Lists the endpoints with their numbers: one that is deleted and added again has another number.
fn numbered(host: &Host) -> String {
    host.ip("mptcp endpoint show")
}

fn ends(host: &Host, settings: &[&str]) {
    host.enter(|| clear(&config(settings)));
    assert_eq!((numbered(host), limits(host)), (String::new(), KERNELS.to_owned()));
    assert_eq!(host.run("nft list tables"), "");
}

fn mptcp(host: &Host) -> Socket {
    host.enter(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap())
}

#[test]
fn what_is_wanted_stays_with_its_connections_and_goes_at_the_end() {
    netns(|| {
        let pair = Pair::plain(2);
        let both: [(&Host, &[&str]); 2] = [(&pair.near, &NEAR), (&pair.far, &FAR)];
        for (host, settings) in both {
            worker(host, settings, true);
        }
        let to: SocketAddr = pair.far_at(0, BOTH[0], 7000);
        let (listener, client) = (mptcp(&pair.far), mptcp(&pair.near));
        listener.bind(&to.into()).unwrap();
        listener.listen(1).unwrap();
        client.connect(&to.into()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.send(b"first bytes").unwrap();
        server.recv(&mut [std::mem::MaybeUninit::uninit(); 100]).unwrap();
        server.send(b"and back").unwrap();
        let path = || pair.near.ss("-tne state established dst 10.3.1.2 dport 5001");
        assert!(becomes(SOON, || !path().is_empty()), "no second path");
        let (subflow, before) = (path(), both.map(|(host, _)| (numbered(host), limits(host))));
        for (host, settings) in both {
            worker(host, settings, false);
            worker(host, settings, false);
        }
        assert_eq!(both.map(|(host, _)| (numbered(host), limits(host))), before);
        let socket = |text: &str| {
            text.split_ascii_whitespace().find(|word| word.starts_with("sk:")).map(str::to_owned)
        };
        assert!(socket(&subflow).is_some() && socket(&path()) == socket(&subflow), "{subflow}{}", path());
        assert_eq!(pair.near.counter("MPTcpExtMPJoinSynTx"), 1);
        drop((client, server));
        both.into_iter().for_each(|(host, settings)| ends(host, settings));
    });
}

#[test]
fn an_address_that_has_gone_just_now_is_waited_for() {
    netns(|| {
        let near = &Pair::plain(2).near;
        worker(near, &NEAR, true);
        let before = numbered(near);
        near.ip("link set wan1 down");
        assert!(!near.ip("address show dev wan1").contains("fd03"), "IPv6 addresses go with the link");
        worker(near, &NEAR, false);
        assert_eq!(numbered(near), before);
        near.ip("link set wan1 up");
        near.ip("address add fd03:0:0:1::1/64 dev wan1 nodad");
        worker(near, &NEAR, false);
        assert_eq!(numbered(near), before);
        // Another address has replaced it.
        near.ip("address delete 10.3.1.1/24 dev wan1");
        near.ip("address add 10.3.1.77/24 dev wan1");
        worker(near, &NEAR, false);
        let after = numbered(near);
        assert!(after.contains("10.3.1.77") && !after.contains("10.3.1.1 "), "{after}");
        ends(near, &NEAR);
    });
}

#[test]
fn what_was_interrupted_is_made_whole_and_what_an_operator_did_meanwhile_stays() {
    netns(|| {
        let near = &Pair::plain(2).near;
        worker(near, &NEAR, true);
        // The state after a crash directly after the record was written.
        near.ip("mptcp endpoint flush");
        near.ip("mptcp limits set subflows 2");
        worker(near, &NEAR, false);
        assert!(numbered(near).contains("10.3.1.1 "), "{}", numbered(near));
        assert_eq!(limits(near), RAISED);
        near.ip("mptcp endpoint add 10.3.0.1 dev wan0 subflow");
        near.ip("mptcp limits set subflows 5");
        worker(near, &NEAR, false);
        assert_eq!(limits(near), "add_addr_accepted 8 subflows 5");
        // Endpoints of paths that are no longer configured are removed.
        worker(near, &["server.mptcp=true"], false);
        assert_eq!(limits(near), "add_addr_accepted 0 subflows 5");
        let left = numbered(near);
        assert!(left.lines().count() == 1 && left.contains("10.3.0.1 "), "{left}");
        assert_eq!(near.run("nft list tables"), "");
    });
}
