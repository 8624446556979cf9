//! The results for programs. docs/bench.md describes the form.
use serde_json::{Map, Value, json};

use super::figures::{Bound, Figure, Target};
use super::results::Results;
use super::spread::Spread;

/// Everything that was measured, and under what circumstances.
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
