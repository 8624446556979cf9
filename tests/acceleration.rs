//! Tests of `make demo` and `make lab`: each way over a WAN carries each object, and the reported results are correct.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use std::time::Duration;

use lab::acceleration::{self, Object, Outcome, Plan, Results, Way};
use lab::netns;
use lab::wan::{Link, Loss, Profile, Rate};

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");

fn profile(mbit: u64, loss: Loss) -> Profile {
    Profile::one("short", Link::even(Duration::from_millis(4), Rate::mbit(mbit), loss))
}

fn plan(cut: Duration) -> Plan {
    Plan { profiles: Vec::new(), small_rounds: 1, large_rounds: 1, cut, binary: BIN.into() }
}

#[test]
fn each_way_carries_each_object_and_the_results_have_them_in_order() {
    netns(|| {
        let told = std::sync::Mutex::new(0);
        let plan = plan(Duration::from_secs(60));
        let compared =
            acceleration::compare(&profile(200, Loss::None), &plan, |_| *told.lock().unwrap() += 1);
        assert_eq!(compared.wrong, Vec::<String>::new());
        let comparison = compared.comparison;
        let measured = comparison.measured.iter().map(|measured| (measured.object, measured.way));
        let expected = Object::ALL.into_iter().flat_map(|object| Way::ALL.map(|way| (object, way)));
        assert_eq!(measured.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
        assert_eq!(*told.lock().unwrap(), Object::ALL.len() * Way::ALL.len());
        for measured in &comparison.measured {
            assert!(matches!(measured.outcomes[..], [Outcome::Done(_)]), "{measured:?}");
        }
        // One trace in each direction on each way, complete, with the socket that sends over the WAN.
        assert_eq!(comparison.traces.len(), 2 * Way::ALL.len());
        for trace in &comparison.traces {
            assert_eq!(trace.samples.last().unwrap().bytes, 20_000_000, "{} {}", trace.object, trace.way);
            assert!(trace.samples.iter().any(|sample| sample.sender.is_some()), "{trace:?}");
        }
        let results = Results { conditions: vec!["here".to_owned()], comparisons: vec![comparison] };
        assert_eq!(acceleration::json(&results)["comparisons"][0]["profile"]["name"], "short");
        assert!(acceleration::page(&results).contains("20 MB up"));
    });
}

#[test]
fn what_takes_too_long_is_cut_and_its_rate_is_known() {
    netns(|| {
        // With loss, the ways run in parallel.
        let cut = Duration::from_secs(5);
        let compared = acceleration::compare(&profile(8, Loss::Random(0.001)), &plan(cut), |_| {});
        assert_eq!(compared.wrong, Vec::<String>::new());
        for way in Way::ALL {
            let down = compared.comparison.of(way, Object::Down(20_000_000)).unwrap();
            let Some(Outcome::Cut { after, bytes }) = down.median() else { panic!("{down:?}") };
            assert!(after >= cut && (1..20_000_000).contains(&bytes), "{down:?}");
        }
    });
}
