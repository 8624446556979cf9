//! The figures that come of the measurements, what each should be, and what it was in every round.
use std::collections::BTreeMap;

use super::measure::Measurement;
use super::plan::Plan;
use super::spread::{Spread, ratios};

/// One thing that is measured for every way.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    /// By what the measurement calls it.
    pub name: String,
    /// For people.
    pub title: String,
    pub unit: &'static str,
    /// How many decimals are worth showing.
    pub decimals: usize,
    pub targets: Vec<Target>,
}

/// What a figure of tcp-intercept should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    /// The way that it is compared with; none: the figure itself counts.
    pub against: Option<&'static str>,
    pub bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// The way that is judged.
pub(super) const OURS: &str = "tcp-intercept";

const fn at_least(ratio: f64, against: &'static str) -> Target {
    Target { against: Some(against), bound: Bound::AtLeast(ratio) }
}

const fn at_most(value: f64) -> Target {
    Target { against: None, bound: Bound::AtMost(value) }
}

/// What is measured under `plan`, in the order in which it is shown.
fn figures(plan: &Plan) -> Vec<Figure> {
    plan.only.iter().flat_map(|measurement| of_measurement(*measurement, &plan.idle)).collect()
}

fn of_measurement(measurement: Measurement, idle: &[usize]) -> Vec<Figure> {
    let figure = |name: &str, title: &str, unit, decimals, targets: &[Target]| Figure {
        name: name.to_owned(),
        title: title.to_owned(),
        unit,
        decimals,
        targets: targets.to_vec(),
    };
    match measurement {
        Measurement::Bulk { streams: 1 } => vec![
            figure(
                "bulk1",
                "one bulk stream",
                "Gbit/s",
                1,
                &[at_least(0.9, "routing"), at_least(1.8, "haproxy")],
            ),
            figure("bulk1-cpu", "  CPU of the process", "s/GB", 3, &[]),
        ],
        Measurement::Bulk { .. } => vec![
            figure(
                "bulk8",
                "eight bulk streams",
                "Gbit/s",
                1,
                &[at_least(0.6, "routing"), at_least(1.6, "haproxy")],
            ),
            figure("bulk8-cpu", "  CPU of the process", "s/GB", 3, &[]),
        ],
        Measurement::RoundTrips => {
            vec![figure("rtt", "round trips, 64 connections", "1/s", 0, &[at_least(1.0, "haproxy")])]
        }
        Measurement::Connections => vec![
            figure("conn", "connections, 16 clients", "1/s", 0, &[at_least(1.0, "haproxy")]),
            figure("conn-failed", "  failed, of a million", "", 0, &[at_most(0.0)]),
        ],
        Measurement::Idle => of_idle(idle),
    }
}

fn of_idle(idle: &[usize]) -> Vec<Figure> {
    let most = idle.iter().max().copied().unwrap_or_default();
    let figure = |name: String, title: String, unit, decimals, target: Option<Target>| {
        let targets = target.into_iter().collect();
        Figure { name, title, unit, decimals, targets }
    };
    let mut all = Vec::new();
    for count in idle {
        let title = format!("round trips, {count} idle sessions");
        all.push(figure(format!("rtt-{count}"), title, "1/s", 0, None));
    }
    let cost = Some(at_most(5.0)).filter(|_| most > 0);
    all.push(figure(COST.to_owned(), format!("  cost of {most} idle sessions"), "%", 1, cost));
    for count in idle.iter().filter(|count| **count > 0) {
        let target = Some(at_most(2.0)).filter(|_| *count == most);
        all.push(figure(format!("kib-{count}"), format!("memory of each of {count}"), "KiB", 2, target));
        all.push(figure(format!("sessions-{count}"), "  of them on the box".to_owned(), "", 0, None));
    }
    all
}

/// By how much the most idle sessions slow the round trips of the same way in the same round down.
const COST: &str = "idle-cost";

/// Every value of every figure, way and round.
#[derive(Debug)]
pub struct Results {
    pub(super) plan: Plan,
    pub(super) figures: Vec<Figure>,
    pub(super) ways: Vec<String>,
    values: BTreeMap<(String, String), Vec<f64>>,
}

impl Results {
    pub(super) fn new(plan: &Plan) -> Self {
        let ways = plan.ways().into_iter().map(|way| way.name).collect();
        Self { plan: plan.clone(), figures: figures(plan), ways, values: BTreeMap::new() }
    }

    /// Adds what a round brought.
    pub(super) fn put(&mut self, figure: &str, way: &str, value: f64) {
        self.values.entry((figure.to_owned(), way.to_owned())).or_default().push(value);
    }

    /// A figure of a way, round by round; none where it has none, as routing has no process.
    pub(super) fn rounds(&self, figure: &str, way: &str) -> Vec<f64> {
        if figure == COST {
            return self.idle_cost(way);
        }
        self.values.get(&(figure.to_owned(), way.to_owned())).cloned().unwrap_or_default()
    }

    fn idle_cost(&self, way: &str) -> Vec<f64> {
        let idle = &self.plan.idle;
        let (Some(least), Some(most)) = (idle.iter().min(), idle.iter().max()) else { return Vec::new() };
        let [without, with] = [least, most].map(|count| self.rounds(&format!("rtt-{count}"), way));
        ratios(&with, &without).into_iter().map(|ratio| 100.0 * (1.0 - ratio)).collect()
    }

    /// The ratio of two ways in each round.
    pub(super) fn ratios(&self, figure: &str, way: &str, against: &str) -> Vec<f64> {
        ratios(&self.rounds(figure, way), &self.rounds(figure, against))
    }

    /// What a target is judged by; none when it was not measured.
    pub(super) fn reached(&self, figure: &str, target: &Target) -> Option<Spread> {
        Spread::of(&match target.against {
            Some(against) => self.ratios(figure, OURS, against),
            None => self.rounds(figure, OURS),
        })
    }
}
