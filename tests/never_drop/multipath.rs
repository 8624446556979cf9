//! Both boxes of a pair lose their workers and are upgraded, with Multipath TCP between them.
use std::time::Duration;

use lab::stream::Random;
use lab::traffic::{Amount, Traffic};
use lab::{BOTH, Daemon, Pair, netns, wait_until};

use crate::support::{BIN, MANY, SOON, command, counter, descriptors, kill_worker, said, went_well};

const NEAR: [&str; 3] = [MANY, "server.mptcp=true", "mptcp.path=[{device=\"wan1\"}]"];
const FAR: [&str; 3] =
    [MANY, "client.mptcp=true", "mptcp.path=[{device=\"wan1\", announce=true, port=5001}]"];
const FEW: Amount = Amount { bulk: 8, interactive: 40, connecting: 1, pulses: 2 };

#[test]
fn kills_and_upgrades_of_both_boxes_of_a_pair_lose_nothing_and_the_paths_stay() {
    netns(|| {
        let pair = Pair::plain(2);
        let far = Daemon::start(&pair.far, BIN, &FAR);
        let near = Daemon::start(&pair.near, BIN, &NEAR);
        let endpoint = |host: &lab::Host| host.run("ip mptcp endpoint");
        wait_until("both have their paths", SOON, || {
            [&pair.near, &pair.far].iter().all(|host| endpoint(host).contains("dev wan1"))
        });
        let endpoints = [endpoint(&pair.near), endpoint(&pair.far)];
        let before = [descriptors(&near), descriptors(&far)];
        let at = BOTH.map(|ip| pair.server_at(ip, 9000));
        let traffic = Traffic::start(&pair.client, &pair.server, &at, FEW);
        let joined = || pair.near.counter("MPTcpExtMPJoinSynAckRx");
        wait_until("the second path is used", SOON, || joined() > 0);
        let mut random = Random::new(10);
        for n in 0..10 {
            std::thread::sleep(Duration::from_millis(random.below(300) as u64));
            let (daemon, host) = if n % 2 == 0 { (&near, &pair.near) } else { (&far, &pair.far) };
            if n % 4 < 2 {
                kill_worker(daemon);
            } else {
                let answer = command(host, "upgrade");
                assert!(answer.contains("exit=0"), "{answer}{}", said(daemon));
            }
        }
        assert_eq!([endpoint(&pair.near), endpoint(&pair.far)], endpoints, "none was made again");
        went_well(traffic, 5, &near);
        wait_until("every session's descriptors are closed", SOON, || {
            descriptors(&near) <= before[0] + 1 && descriptors(&far) <= before[1] + 1
        });
        for (daemon, host) in [(near, &pair.near), (far, &pair.far)] {
            let log = daemon.stop().1;
            assert_eq!((counter(&log, "not-taken-up"), counter(&log, "given-up")), (0, 0), "{log}");
            assert_eq!(endpoint(host), "", "removed at the end");
        }
    });
}
