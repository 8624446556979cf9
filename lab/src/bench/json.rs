//! The results as JSON for programs. docs/bench.md describes the format.
use serde_json::{Map, Value, json};

use super::figures::{Bound, Figure, Target};
use super::results::Results;
use super::spread::Spread;

/// Returns all measurements and the conditions of the run.
pub fn json(results: &Results) -> Value {
    let (plan, machine) = (&results.plan, &results.machine);
    let figures: Vec<_> = results.figures.iter().map(|figure| of_figure(results, figure)).collect();
    json!({
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "congestion_control": plan.congestion_control,
        "base": plan.base,
        "kernel": machine.kernel,
        "processors": machine.processors,
        "haproxy": machine.haproxy,
        "used_by_others": results.mean_noise(),
        "ways": results.ways,
        "figures": figures,
    })
}

fn of_figure(results: &Results, figure: &Figure) -> Value {
    let by_way = |values: &dyn Fn(&str) -> Vec<f64>| {
        let ways = results.ways.iter().map(|way| (way.clone(), of_rounds(&values(way))));
        ways.filter(|(_, rounds)| !rounds.is_null()).collect::<Map<_, _>>()
    };
    json!({
        "name": figure.name,
        "title": figure.title,
        "unit": figure.unit,
        "ways": by_way(&|way| results.rounds(&figure.name, way)),
        "ratios": by_way(&|way| results.ratios(figure, way)),
        "targets": figure.targets.iter().map(|target| of_target(results, figure, target)).collect::<Vec<_>>(),
    })
}

fn of_rounds(rounds: &[f64]) -> Value {
    Spread::of(rounds).map_or(Value::Null, |spread| {
        let Spread { median, min, max, quartiles } = spread;
        json!({ "rounds": rounds, "median": median, "min": min, "max": max, "quartiles": [quartiles.0, quartiles.1] })
    })
}

fn of_target(results: &Results, figure: &Figure, target: &Target) -> Value {
    let (kind, bound) = match target.bound {
        Bound::AtLeast(bound) => ("at_least", bound),
        Bound::AtMost(bound) => ("at_most", bound),
        Bound::Never => ("at_most", 0.0),
    };
    json!({ "against": target.against, kind: bound, "met": results.meets(figure, target) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Plan;
    use crate::bench::machine::Machine;
    use crate::bench::measure::Measurement;

    /// Round trips per second in four rounds. All ratios are exact in binary. Rules that could be confused give
    /// different results: the median of the ratios to haproxy is 1.125, their mean 1.3125, the ratio of the medians
    /// 0.75.
    const ROUND_TRIPS: [(&str, [f64; 4]); 3] = [
        ("routing", [400.0, 100.0, 600.0, 2000.0]),
        ("tcp-intercept", [100.0, 150.0, 300.0, 1000.0]),
        ("haproxy", [200.0, 100.0, 400.0, 400.0]),
    ];

    fn round_trips(ours: [f64; 4]) -> Value {
        let plan =
            Plan { rounds: 4, only: vec![Measurement::RoundTrips], ..Plan::new("tcp-intercept".into()) };
        let mut results = Results::new(&plan, Machine::default());
        for (way, rounds) in ROUND_TRIPS {
            let rounds = if way == "tcp-intercept" { ours } else { rounds };
            rounds.iter().for_each(|value| results.put("rtt", way, *value));
        }
        let mut json = json(&results);
        assert_eq!(json["figures"].as_array().map(Vec::len), Some(1), "{json:#}");
        json["figures"][0].take()
    }

    #[test]
    fn each_ratio_is_that_of_its_round_and_the_target_is_judged_by_their_median() {
        let figure = round_trips([100.0, 150.0, 300.0, 1000.0]);
        assert_eq!(figure["name"], "rtt");
        assert_eq!(
            figure["ways"]["tcp-intercept"],
            json!({
                "rounds": [100.0, 150.0, 300.0, 1000.0],
                "median": 225.0, "min": 100.0, "max": 1000.0, "quartiles": [137.5, 475.0],
            })
        );
        assert_eq!(
            figure["ratios"],
            json!({
                "haproxy": {
                    "rounds": [0.5, 1.5, 0.75, 2.5],
                    "median": 1.125, "min": 0.5, "max": 2.5, "quartiles": [0.6875, 1.75],
                },
                "routing": {
                    "rounds": [0.25, 1.5, 0.5, 0.5],
                    "median": 0.5, "min": 0.25, "max": 1.5, "quartiles": [0.4375, 0.75],
                },
            })
        );
        assert_eq!(figure["targets"], json!([{ "against": "haproxy", "at_least": 1.0, "met": true }]));
    }

    #[test]
    fn a_target_is_missed_when_the_median_of_the_ratios_is_too_small_although_the_mean_is_not() {
        let figure = round_trips([100.0, 50.0, 500.0, 1600.0]);
        assert_eq!(figure["ratios"]["haproxy"]["median"], 0.875);
        assert_eq!(figure["targets"], json!([{ "against": "haproxy", "at_least": 1.0, "met": false }]));
    }
}
