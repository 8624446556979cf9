//! `limits.connections`: near the limit new connections are routed, and no connection fails because of it.
use lab::{netns, wait_until};

use crate::bench::{Bench, Fate, SOON, counter, speaks};

#[test]
fn at_95_per_cent_of_the_limit_new_connections_are_routed_and_at_90_they_are_taken_again() {
    netns(|| {
        let bench = Bench::new(&["limits.connections=100"]);
        let mut held = bench.sessions(94);
        assert!(!bench.gate_is_closed());
        held.extend(bench.sessions(1));
        wait_until("the gate is closed", SOON, || bench.gate_is_closed());
        (0..10).for_each(|_| assert_eq!(bench.newcomer(), Fate::Routed));
        let shrink = |held: &mut Vec<_>, to: usize| {
            held.truncate(to);
            let legs = || bench.lab.gateway.ss("-tn state established").lines().count();
            wait_until("sessions have ended", SOON, || legs() == 2 * to);
        };
        shrink(&mut held, 91);
        assert_eq!(bench.newcomer(), Fate::Routed);
        shrink(&mut held, 90);
        wait_until("the gate is open", SOON, || !bench.gate_is_closed());
        (0..4).for_each(|_| held.extend(bench.sessions(1)));
        held.iter().for_each(|stream| speaks(stream).unwrap());
        let log = bench.daemon.stop().1;
        assert_eq!((counter(&log, "gate-closed"), counter(&log, "shed")), (1, 0), "{log}");
        assert!(log.contains("95 of 100 sessions: new connections are routed past us"), "{log}");
        assert!(log.contains("90 of 100 sessions: new connections are intercepted again"), "{log}");
    });
}

#[test]
fn a_rush_beyond_the_limit_fails_nobody() {
    netns(|| {
        let bench = Bench::new(&["limits.connections=20"]);
        bench.lab.client().enter(|| {
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        let connect = |_| std::net::TcpStream::connect(bench.server.address).unwrap();
                        let held: Vec<_> = (0..25).map(connect).collect();
                        held.iter().for_each(|stream| speaks(stream).unwrap());
                    });
                }
            });
        });
        wait_until("it is over, and connections are taken again", SOON, || bench.newcomer() == Fate::Served);
        let log = bench.daemon.stop().1;
        assert!(counter(&log, "gate-closed") > 0 && counter(&log, "shed") == 0, "{log}");
    });
}
