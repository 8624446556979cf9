//! The WAN meets its conditions, as ping and iperf3 measure it, and disappears with its program.
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::servers::Iperf;
use lab::stream::{self, Pace};
use lab::wan::{Conditions, Link, Loss, Profile, Rate};
use lab::{BOTH, Host, Ip, Line, Pair, becomes, peers, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SLOW: Link = Link::even(Duration::from_millis(20), Rate::mbit(20), Loss::None);

#[test]
fn a_round_trip_takes_what_the_profile_says() {
    lab::netns(|| {
        for (profile, millis) in [(Profile::clean(), 100.0), (Profile::satellite(), 600.0)] {
            let line = Line::new(&profile);
            for ip in BOTH {
                takes(millis, line.lab.client(), "", line.lab.server_at(ip, 0).ip());
            }
        }
    });
}

#[test]
fn each_path_of_a_pair_has_a_round_trip_of_its_own() {
    lab::netns(|| {
        let pair = Pair::new(&Profile::bonded());
        for (n, millis) in [(0, 20.0), (1, 50.0)] {
            for ip in BOTH {
                let from = format!("-I {}", pair.near_at(n, ip, 0).ip());
                takes(millis, &pair.near, &from, pair.server_at(ip, 0).ip());
            }
        }
    });
}

#[test]
fn each_direction_has_a_delay_of_its_own() {
    lab::netns(|| {
        let slow = Conditions { delay: Duration::from_millis(70), ..SLOW.to_server };
        let line = Line::new(&Profile::one("uneven", Link { to_server: slow, ..SLOW }));
        let (client, server) = (line.lab.client(), &line.lab.server);
        let (client_at, server_at) = (line.lab.client_at(0, Ip::V4, 9), line.lab.server_at(Ip::V4, 9));
        let client = client.enter(|| UdpSocket::bind(client_at)).expect("a free port");
        let server = server.enter(|| UdpSocket::bind(server_at)).expect("a free port");
        for (from, to, at, millis) in
            [(&client, &server, server_at, 70..=71), (&server, &client, client_at, 10..=11)]
        {
            let shortest = (0..20).map(|_| {
                let start = Instant::now();
                from.send_to(&[0; 100], at).expect("sent");
                to.recv(&mut [0; 100]).expect("received");
                start.elapsed().as_millis()
            });
            let shortest = shortest.min().unwrap_or_default();
            assert!(millis.contains(&shortest), "{at}: {shortest} ms");
        }
    });
}

#[test]
fn it_carries_what_its_rate_allows_and_no_more() {
    lab::netns(|| {
        for mbit in [5, 40] {
            let link = Link::even(Duration::from_millis(20), Rate::mbit(mbit), Loss::None);
            let line = Line::new(&Profile::one("rate", link));
            let _iperf = Iperf::start(&line.lab.server);
            // 1400 of the 1442 bytes of a frame are iperf3's payload.
            let most = mbit as f64 * 1400.0 / 1442.0;
            let mut seen = 0.0;
            // Other programs may use this machine's processors, so the measurement is repeated for a while.
            let reached = becomes(Duration::from_secs(45), || {
                seen = usual_rate(&udp(&line, mbit * 3 / 2));
                (most * 0.98..most * 1.02).contains(&seen)
            });
            let counts = line.path.to_client();
            assert!(reached && counts.overflowed > 0, "{mbit}: {seen} Mbit/s of payload, {counts:?}");
        }
    });
}

#[test]
fn a_thread_can_carry_more_than_three_hundred_megabits() {
    lab::netns(|| {
        let fast = Conditions { rate: None, ..SLOW.to_client };
        let line = Line::new(&Profile::one("fast", Link { to_client: fast, ..SLOW }));
        let _iperf = Iperf::start(&line.lab.server);
        let before = processor_time_of("wan");
        udp(&line, 0);
        let spent = processor_time_of("wan") - before;
        // The processor time per byte does not depend on the load of other programs.
        let counts = line.path.to_client();
        let mbit = counts.bytes as f64 * 8.0 / spent.as_secs_f64() / 1e6;
        assert!(
            counts.delivered > 1000 && mbit > 300.0,
            "{mbit} Mbit for each second of a processor, {counts:?}"
        );
    });
}

#[test]
fn the_frames_that_it_lost_are_those_that_iperf3_misses() {
    lab::netns(|| {
        for loss in [Loss::Random(0.03), Loss::bursts(0.03, 5.0)] {
            let lossy = Link { to_client: Conditions { loss, rate: None, ..SLOW.to_client }, ..SLOW };
            // iperf3 waits forever for its first datagram: this seed loses none of the first 60 frames.
            let line = Line::new(&Profile { seed: 6, ..Profile::one("lossy", lossy) });
            let _iperf = Iperf::start(&line.lab.server);
            let report = udp(&line, 10);
            let of = |key: &str| report["end"]["sum"][key].as_f64().unwrap_or_default();
            let (missed, sent) = (of("lost_packets"), of("packets"));
            let lost = line.path.to_client().lost as f64;
            assert!(sent > 1000.0, "{report}");
            // A few of the lost frames carried no data; a busy machine may lose a few data frames.
            assert!((missed - lost).abs() < 0.005 * sent, "{missed} missed, {lost} lost, {sent} sent");
            // A unit test of the loss model checks the share over many frames.
            assert!((0.02..0.04).contains(&(lost / sent)), "{lost} of {sent}");
        }
    });
}

#[test]
fn a_seed_loses_the_same_frames_again() {
    lab::netns(|| {
        let link = Link::even(Duration::from_millis(1), Rate::mbit(100), Loss::Random(0.1));
        let answered = |seed| {
            let line = Line::new(&Profile { seed, ..Profile::one("lossy", link) });
            let server = line.lab.server_at(Ip::V4, 0).ip();
            let text = line.lab.client().run(&format!("ping -n -c 200 -i 0.002 -W 2 {server}"));
            let answers = text.lines().filter_map(|line| line.split_once("icmp_seq="));
            let numbers = answers.filter_map(|(_, rest)| rest.split(' ').next()?.parse().ok());
            numbers.collect::<BTreeSet<u32>>()
        };
        let first = answered(1);
        assert!((130..190).contains(&first.len()), "of 200, 81 % are expected: {}", first.len());
        assert_eq!(first, answered(1));
        assert_ne!(first, answered(2));
    });
}

#[test]
fn a_path_is_cut_and_mended_while_the_other_goes_on() {
    lab::netns(|| {
        let pair = Pair::new(&Profile { paths: vec![SLOW, SLOW], ..Profile::clean() });
        let reaches = |n, patience| {
            let far = pair.far_at(n, Ip::V4, 0).ip();
            let ping =
                pair.near.cmd("ping").args(["-q", "-c", "1", "-W", patience, &far.to_string()]).output();
            ping.expect("ping is installed").status.success()
        };
        assert!(reaches(0, "10") && reaches(1, "10"));
        pair.paths[0].cut();
        assert!(!reaches(0, "1"));
        assert!(reaches(1, "10"));
        assert!(pair.paths[0].to_server().cut > 0);
        pair.paths[0].mend();
        assert!(reaches(0, "10"));
    });
}

#[test]
fn conditions_change_under_a_connection() {
    lab::netns(|| {
        let line = Line::new(&Profile::one("slow", SLOW));
        let (client, server) = (line.lab.client(), line.lab.server_at(Ip::V6, 7));
        let (near, far, _) = peers::pair(client, &line.lab.server, server);
        for millis in [90_u32, 5, 40] {
            line.path.set(Link::even(Duration::from_millis(millis.into()), Rate::mbit(100), Loss::None));
            takes(millis.into(), client, "", server.ip());
        }
        stream::exchange(&near, &far, 1 << 20, Pace::UNEVEN);
    });
}

#[test]
fn bulk_and_small_streams_arrive_whole_through_loss_and_a_full_queue() {
    lab::netns_as_user(|| {
        let tight = Conditions { queue: 20_000, loss: Loss::bursts(0.005, 3.0), ..SLOW.to_server };
        let line = Line::new(&Profile::one("tight", Link { to_server: tight, to_client: tight }));
        for ip in BOTH {
            let server = line.lab.server_at(ip, 7);
            let (client, server, _) = peers::pair(line.lab.client(), &line.lab.server, server);
            stream::exchange(&client, &server, 3 << 20, Pace::UNEVEN);
        }
        let counts = line.path.to_server();
        assert!(counts.lost > 0 && counts.overflowed > 0, "{counts:?}");
    });
}

#[test]
fn nothing_is_left_of_a_wan_whose_program_was_interrupted() {
    const TEST: &str = "nothing_is_left_of_a_wan_whose_program_was_interrupted";
    if let Ok(seconds) = std::env::var("SLEEPER") {
        return lab::netns(|| {
            let pair = Pair::new(&Profile::bonded());
            pair.server.cmd("sleep").arg(seconds).status().expect("sleep is installed");
        });
    }
    for signal in [Signal::INT, Signal::KILL] {
        let seconds = format!("{}{}", 2000 + signal.as_raw(), std::process::id());
        let mut command = Command::new(std::env::current_exe().expect("this test's program"));
        command.args(["--exact", TEST]).env("SLEEPER", &seconds).stdout(Stdio::null()).stderr(Stdio::null());
        let mut program = command.spawn().expect("it runs already");
        let mut inside = BTreeSet::new();
        wait_until("a WAN", Duration::from_secs(30), || {
            inside = namespaces_of(&format!("sleep\0{seconds}\0"));
            !inside.is_empty()
        });
        assert!(inside.iter().all(|namespace| users_of(namespace) > 0));
        interrupt(&mut program, signal);
        wait_until("the end of all that used its namespaces", Duration::from_secs(10), || {
            inside.iter().all(|namespace| users_of(namespace) == 0)
        });
    }
}

/// Asserts that ping's shortest round trip takes at least `millis` milliseconds and less than one more. Other programs
/// may use this machine's processors, so it is repeated for a while; it must never be shorter.
fn takes(millis: f64, from: &Host, options: &str, to: IpAddr) {
    let mut shortest = 0.0;
    let exact = becomes(Duration::from_secs(30), || {
        let text = from.run(&format!("ping -q -c 20 -i 0.02 -W 10 {options} {to}"));
        let times = text.split_once("min/avg/max/mdev = ").and_then(|(_, times)| times.split('/').next());
        shortest = times.and_then(|least| least.parse().ok()).unwrap_or_else(|| panic!("no time:\n{text}"));
        shortest < millis + 1.0
    });
    assert!(exact && shortest >= millis, "{from} to {to}: {shortest} ms, not {millis}");
}

/// Returns iperf3's report of three seconds of UDP to the client, at `mbit` million bits of payload per second; 0 means
/// as much as iperf3 can send.
fn udp(line: &Line, mbit: u64) -> Value {
    let server = line.lab.server_at(Ip::V4, 0).ip();
    let options = format!("-u -R -b {mbit}M -l 1400 -w 400K -t 3 -i 0.5 -J");
    let report = line.lab.client().run(&format!("iperf3 -c {server} {options}"));
    serde_json::from_str(&report).unwrap_or_else(|err| panic!("iperf3's report: {err}\n{report}"))
}

/// Returns the median received rate over the intervals of a report, in million bits per second.
fn usual_rate(report: &Value) -> f64 {
    let intervals = report["intervals"].as_array().cloned().unwrap_or_default();
    let rates = intervals.iter().map(|interval| &interval["sum"]["bits_per_second"]);
    let mut rates: Vec<_> = rates.filter_map(Value::as_f64).collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).unwrap_or(&0.0) / 1e6
}

/// Returns the processor time of this process's threads with that name.
fn processor_time_of(name: &str) -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("/proc").flatten().map(|entry| entry.path());
    let named = threads
        .filter(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    let spent = named.filter_map(|thread| {
        let schedstat = fs::read_to_string(thread.join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    spent.sum()
}

fn interrupt(program: &mut Child, signal: Signal) {
    let pid = i32::try_from(program.id()).ok().and_then(Pid::from_raw).expect("a process number");
    kill_process(pid, signal).expect("it runs");
    program.wait().expect("it was started here");
}

/// Returns the network and mount namespaces of the process with this command line: `net:[4026532000]`.
fn namespaces_of(command: &str) -> BTreeSet<String> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let mut ours = processes
        .filter(|process| fs::read_to_string(process.join("cmdline")).is_ok_and(|line| line == command));
    let links =
        ours.next().into_iter().flat_map(|process| ["net", "mnt"].map(|kind| process.join("ns").join(kind)));
    links.filter_map(|link| Some(fs::read_link(link).ok()?.to_string_lossy().into_owned())).collect()
}

/// Returns how many threads are in a namespace.
fn users_of(namespace: &str) -> usize {
    let kind = namespace.split(':').next().unwrap_or_default();
    let threads = fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .flat_map(|process| fs::read_dir(process.path().join("task")).into_iter().flatten().flatten());
    let link = |thread: fs::DirEntry| fs::read_link(thread.path().join("ns").join(kind));
    threads.filter_map(|thread| link(thread).ok()).filter(|at| at.to_string_lossy() == namespace).count()
}
