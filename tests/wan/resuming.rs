//! A worker takes over after the previous worker of the same daemon has crashed. `Mirror` works without a daemon here;
//! dropping it stands for the crash.
use lab::{Host, netns};
use tcp_intercept::config::Config;
use tcp_intercept::host::wan::sync::{Mirror, clear};

use crate::support::{SOON, everything, mirror, window};

fn config() -> Config {
    Config::parse("wan.devices=[\"wan0\"]", &[]).unwrap()
}

/// Resumes as a worker, and crashes.
fn worker(host: &Host, managed: bool) {
    assert_eq!(host.enter(|| Mirror::resume(&config(), managed).is_some()), managed);
}

#[test]
fn routes_and_rules_that_are_as_they_should_be_are_not_touched_and_the_others_are_mended() {
    netns(|| {
        let host = Host::new("box");
        host.ip("link add wan0 type veth peer name end0");
        host.ip("link set end0 up");
        host.ip("link set wan0 up");
        host.ip("address add 10.2.0.1/24 dev wan0");
        host.ip("address add fd02::1/64 dev wan0 nodad");
        host.ip("route add default via 10.2.0.2");
        host.ip("-6 route add default via fd02::2");
        let before = everything(&host);
        assert!(host.enter(|| Mirror::start(&config(), true).is_some()));
        let whole = mirror(&host);
        assert!(whole.len() > 4, "{whole:#?}");

        let mut events = host.spawn("ip", &["monitor", "route", "rule"]);
        // Markers delimit the observed events: if only the markers appear, nothing else was changed.
        let mark = |n: u8| format!("203.0.113.{n} via 10.2.0.2");
        let listens = || {
            let _ = host.run(&format!("ip route replace {0} && ip route delete {0}", mark(1)));
            events.stdout().contains("203.0.113.1")
        };
        assert!(lab::becomes(SOON, listens), "{}", events.stderr());
        worker(&host, true);
        worker(&host, true);
        host.ip(&format!("route add {}", mark(2)));
        events.wait_for("203.0.113.2", SOON);
        let heard = events.stdout();
        let ours: Vec<&str> = heard.lines().filter(|line| line.contains("156")).collect();
        assert!(ours.is_empty(), "{ours:#?}");
        assert_eq!(mirror(&host), whole);

        // A route was added while no worker was running.
        worker(&host, true);
        assert_eq!(mirror(&host).len(), whole.len() + 1);
        assert_eq!(window(&host, "203.0.113.2"), Some(100));
        events.wait_for("proto 156", SOON);
        host.ip("route delete 203.0.113.2");
        worker(&host, true);
        assert_eq!(mirror(&host), whole);
        worker(&host, false);
        assert_eq!(everything(&host), before);
        host.enter(|| clear(config().rules.own_mark));
        assert_eq!(everything(&host), before);
    });
}
