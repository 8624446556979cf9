//! The benchmark measures every figure for every way. No test depends on the speed.
#![allow(clippy::unwrap_used, reason = "a test says what it expects, and ends where it is not so")]
use lab::bench::{self, Measurement, Plan};
use lab::netns;
use serde_json::Value;

const BIN: &str = env!("CARGO_BIN_EXE_tcp-intercept");

/// Returns the shortest possible plan. The same program twice stands for two revisions.
fn plan(only: &[Measurement]) -> Plan {
    Plan {
        rounds: 1,
        seconds: 0.1,
        only: only.to_vec(),
        idle: vec![0, 5, 20],
        ports: 100,
        base: Some(BIN.into()),
        ..Plan::new(BIN.into())
    }
}

fn figures(results: &Value) -> impl Iterator<Item = &Value> {
    results["figures"].as_array().unwrap().iter()
}

/// Returns the values of a figure for a way, one per round; empty if the way has no such figure.
fn rounds<'a>(results: &'a Value, name: &str, way: &str) -> Vec<&'a Value> {
    let figure = figures(results).find(|figure| figure["name"] == name);
    let figure = figure.unwrap_or_else(|| panic!("there is no figure {name}: {results:#}"));
    figure["ways"][way]["rounds"].as_array().into_iter().flatten().collect()
}

#[test]
fn every_figure_is_measured_for_every_way() {
    netns(|| {
        let measured = bench::run(plan(&Measurement::ALL), |_| {});
        let (results, plot) = (bench::json(&measured), bench::plot(&measured));
        assert_eq!(
            results["ways"],
            serde_json::json!(["routing", "tcp-intercept", "base", "haproxy", "haproxy-splice"])
        );
        for name in ["bulk1", "bulk8", "rtt", "conn", "rtt-0", "rtt-5", "rtt-20"] {
            for way in ["routing", "tcp-intercept", "base", "haproxy"] {
                let rounds = rounds(&results, name, way);
                let fast = |value: &&Value| value.as_f64().unwrap() > 0.0;
                assert!(rounds.len() == 1 && rounds.iter().all(fast), "{name}, {way}: {rounds:?}");
            }
        }
        for name in ["bulk1-cpu", "bulk8-cpu", "kib-20"] {
            assert_eq!(rounds(&results, name, "tcp-intercept").len(), 1, "{name}");
            assert_eq!(rounds(&results, name, "haproxy").len(), 1, "{name}");
            assert_eq!(rounds(&results, name, "routing").len(), 0, "{name}: routing has no process");
        }
        assert_eq!(rounds(&results, "bulk8", "haproxy-splice").len(), 1);
        assert_eq!(rounds(&results, "rtt", "haproxy-splice").len(), 0);
        let titles = figures(&results).filter_map(|figure| figure["title"].as_str());
        assert!(titles.filter(|title| plot.contains(title)).count() >= 9, "{plot}");
    });
}

#[test]
fn what_is_counted_is_what_there_was() {
    netns(|| {
        let plan = plan(&[Measurement::Connections, Measurement::Idle]);
        let results = bench::json(&bench::run(plan, |_| {}));
        for way in ["tcp-intercept", "base", "haproxy"] {
            assert_eq!(rounds(&results, "sessions-20", way), [20.0], "{way}");
            assert_eq!(rounds(&results, "conn-failed", way), [0.0], "{way}");
        }
        // 16 addresses with 100 ports each, and each of them used more than once.
        let tried = rounds(&results, "conn-tried", "routing");
        assert!(tried.iter().all(|tried| tried.as_f64().unwrap() > 1600.0), "{tried:?}");
    });
}
