//! The results as JSON for programs: times in seconds, rates in bits per second.
use serde_json::{Value, json};

use super::judged::{Judged, Known, Times};
use super::limit::limit;
use super::results::{Comparison, Measured, Object, Outcome, Results, Sample, Trace, Way};
use crate::wan::{Conditions, Link, Loss, Profile};

/// Returns all measurements: each round, each sample, and the values derived from them.
pub fn json(results: &Results) -> Value {
    json!({
        "conditions": results.conditions,
        "comparisons": results.comparisons.iter().map(of_comparison).collect::<Vec<_>>(),
    })
}

fn of_comparison(comparison: &Comparison) -> Value {
    let measured = comparison.measured.iter().map(|measured| of_measured(comparison, measured));
    let limits = Object::ALL.map(|object| {
        json!({ "object": object.to_string(), "seconds": limit(&comparison.profile, object).as_secs_f64() })
    });
    json!({
        "profile": of_profile(&comparison.profile),
        "limits": limits,
        "measured": measured.collect::<Vec<_>>(),
        "traces": comparison.traces.iter().map(of_trace).collect::<Vec<_>>(),
    })
}

fn of_profile(profile: &Profile) -> Value {
    let paths = profile.paths.iter().map(|Link { to_server, to_client }| {
        json!({ "to_server": of_conditions(to_server), "to_client": of_conditions(to_client) })
    });
    json!({ "name": profile.name, "seed": profile.seed, "paths": paths.collect::<Vec<_>>() })
}

fn of_conditions(conditions: &Conditions) -> Value {
    let loss = match conditions.loss {
        Loss::None => json!({ "kind": "none" }),
        Loss::Random(share) => json!({ "kind": "random", "share": share }),
        Loss::Bursty { turns_bad, turns_good, in_good, in_bad } => json!({
            "kind": "bursty", "turns_bad": turns_bad, "turns_good": turns_good, "in_good": in_good, "in_bad": in_bad,
        }),
    };
    json!({
        "loss": loss,
        "rate": conditions.rate.map(crate::wan::Rate::bits),
        "queue_bytes": conditions.queue,
        "delay": conditions.delay.as_secs_f64(),
    })
}

fn of_measured(comparison: &Comparison, measured: &Measured) -> Value {
    let Measured { way, object, outcomes } = measured;
    let judged = Judged::of(comparison, *way, *object);
    let median = judged.map(|judged| of_outcome(judged.median, *object));
    json!({
        "way": name(*way),
        "object": object.to_string(),
        "rounds": outcomes.iter().map(|outcome| of_outcome(*outcome, *object)).collect::<Vec<_>>(),
        "median": median,
        "as_fast_as_end_to_end": judged.and_then(|judged| judged.as_fast).map(of_times),
        "of_limit": judged.and_then(|judged| judged.of_limit),
    })
}

/// Formats an outcome. `whole` is how long the whole object took, or would have taken at the measured rate.
fn of_outcome(outcome: Outcome, object: Object) -> Value {
    let whole = outcome.estimate(object).map(|whole| whole.as_secs_f64());
    match outcome {
        Outcome::Done(time) => json!({ "done": true, "seconds": time.as_secs_f64(), "whole": whole }),
        Outcome::Cut { after, bytes } => {
            json!({ "done": false, "seconds": after.as_secs_f64(), "bytes": bytes, "whole": whole })
        }
    }
}

fn of_times(times: Times) -> Value {
    let known = match times.known {
        Known::Measured => "measured",
        Known::Estimated => "estimated",
        Known::AtLeast => "at least",
    };
    json!({ "times": times.value, "known": known })
}

/// Formats a trace, one array per quantity. A value is `null` if no socket was sending over the WAN.
fn of_trace(trace: &Trace) -> Value {
    let column = |of: &dyn Fn(&Sample) -> Value| trace.samples.iter().map(of).collect::<Vec<_>>();
    json!({
        "way": name(trace.way),
        "object": trace.object.to_string(),
        "at": column(&|sample| json!(sample.at.as_secs_f64())),
        "bytes": column(&|sample| json!(sample.bytes)),
        "paths": trace.paths,
        "window": column(&|sample| json!(sample.sender.map(|sender| sender.window))),
        "round_trip": column(&|sample| json!(sample.sender.map(|sender| sender.round_trip.as_secs_f64()))),
    })
}

const fn name(way: Way) -> &'static str {
    match way {
        Way::EndToEnd => "end_to_end",
        Way::OneBox => "one_box",
        Way::Pair => "pair",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acceleration::example;

    #[test]
    fn each_round_and_each_sample_is_there() {
        let results = example::results();
        let json = json(&results);
        serde_json::from_str::<Value>(&json.to_string()).unwrap();
        for (nth, comparison) in results.comparisons.iter().enumerate() {
            let of = &json["comparisons"][nth];
            assert_eq!(of["profile"]["name"], comparison.profile.name);
            for (nth, measured) in comparison.measured.iter().enumerate() {
                let rounds = of["measured"][nth]["rounds"].as_array().unwrap();
                let seconds: Vec<_> = rounds.iter().filter_map(|round| round["seconds"].as_f64()).collect();
                let lasted = measured.outcomes.iter().map(|outcome| outcome.lasted().as_secs_f64());
                assert_eq!(seconds, lasted.collect::<Vec<_>>());
            }
            for (nth, trace) in comparison.traces.iter().enumerate() {
                for column in ["at", "bytes", "window", "round_trip"] {
                    assert_eq!(of["traces"][nth][column].as_array().unwrap().len(), trace.samples.len());
                }
            }
        }
    }

    #[test]
    fn unknown_values_are_null() {
        let nothing = Outcome::Cut { after: std::time::Duration::from_secs(45), bytes: 0 };
        assert_eq!(of_outcome(nothing, Object::Down(20_000_000))["whole"], Value::Null);
        assert_eq!(
            json(&Results { conditions: Vec::new(), comparisons: Vec::new() })["comparisons"],
            json!([])
        );
    }
}
