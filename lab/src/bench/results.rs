//! The value of every figure, for every way and round.
use std::collections::BTreeMap;

use super::figures::{Figure, IDLE_COST, OURS, Target, figures};
use super::machine::Machine;
use super::plan::Plan;
use super::spread::{Spread, ratios};

/// All measured values.
#[derive(Debug)]
pub struct Results {
    pub(super) plan: Plan,
    pub(super) machine: Machine,
    pub(super) figures: Vec<Figure>,
    pub(super) ways: Vec<String>,
    /// The processor use of other programs between the measurements, in per cent.
    pub(super) noise: Vec<f64>,
    values: BTreeMap<(String, String), Vec<f64>>,
}

impl Results {
    pub(super) fn new(plan: &Plan, machine: Machine) -> Self {
        let ways = plan.ways().into_iter().map(|way| way.name).collect();
        let (noise, values) = (Vec::new(), BTreeMap::new());
        Self { plan: plan.clone(), machine, figures: figures(plan), ways, noise, values }
    }

    /// Returns the conditions of the measurement, one line each.
    pub fn conditions(&self) -> Vec<String> {
        let Plan { rounds, seconds, congestion_control, base, .. } = &self.plan;
        let mut lines = vec![
            format!("{rounds} x {seconds} s; {congestion_control} on all sockets"),
            self.machine.to_string(),
            format!("used by others meanwhile: {:.0} % of the processors", self.mean_noise()),
        ];
        lines.extend(base.as_ref().map(|binary| format!("base: {}", binary.display())));
        lines
    }

    /// Returns the mean processor use of other programs, in per cent.
    pub(super) fn mean_noise(&self) -> f64 {
        self.noise.iter().sum::<f64>() / self.noise.len().max(1) as f64
    }

    /// Adds the value of a figure in one round.
    pub(super) fn put(&mut self, figure: &str, way: &str, value: f64) {
        self.values.entry((figure.to_owned(), way.to_owned())).or_default().push(value);
    }

    /// Returns a figure of a way, round by round. Empty if the way has no such figure, for example because routing has
    /// no process.
    pub(super) fn rounds(&self, figure: &str, way: &str) -> Vec<f64> {
        if figure == IDLE_COST {
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

    /// Returns the ratios of tcp-intercept to another way, round by round. Empty if a ratio is meaningless.
    pub(super) fn ratios(&self, figure: &Figure, way: &str) -> Vec<f64> {
        if way == OURS || !figure.compares() {
            return Vec::new();
        }
        ratios(&self.rounds(&figure.name, OURS), &self.rounds(&figure.name, way))
    }

    /// Returns whether a target is met, or `None` if the figure was not measured.
    pub(super) fn meets(&self, figure: &Figure, target: &Target) -> Option<bool> {
        let judged = match target.against {
            Some(way) => self.ratios(figure, way),
            None => self.rounds(&figure.name, OURS),
        };
        Spread::of(&judged).map(|spread| target.bound.is_met(&spread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(values: &[(&str, &str, &[f64])]) -> Results {
        let mut results = Results::new(&Plan::new("tcp-intercept".into()), Machine::default());
        for (figure, way, rounds) in values {
            rounds.iter().for_each(|value| results.put(figure, way, *value));
        }
        results
    }

    fn met(results: &Results, name: &str) -> Vec<Option<bool>> {
        let figure = results.figures.iter().find(|figure| figure.name == name).unwrap();
        figure.targets.iter().map(|target| results.meets(figure, target)).collect()
    }

    #[test]
    fn a_target_is_judged_by_the_median_of_the_ratios_of_the_rounds() {
        let results = results(&[
            ("bulk1", "routing", &[10.0, 40.0, 10.0]),
            ("bulk1", "tcp-intercept", &[9.5, 38.0, 1.0]),
            ("bulk1", "haproxy", &[10.0, 10.0, 10.0]),
        ]);
        assert_eq!(met(&results, "bulk1"), [Some(true), Some(false)]);
    }

    #[test]
    fn one_failed_connection_in_one_round_is_one_too_many() {
        let failed = |rounds: &[f64]| met(&results(&[("conn-failed", OURS, rounds)]), "conn-failed");
        assert_eq!(failed(&[0.0, 0.0, 0.0]), [Some(true)]);
        assert_eq!(failed(&[0.0, 1.0, 0.0]), [Some(false)]);
    }

    #[test]
    fn idle_cost_is_the_loss_within_the_same_round() {
        let results = results(&[("rtt-0", OURS, &[100.0, 200.0]), ("rtt-9000", OURS, &[96.0, 180.0])]);
        let cost = results.rounds(IDLE_COST, OURS);
        assert!((cost[0] - 4.0).abs() < 1e-9 && (cost[1] - 10.0).abs() < 1e-9, "{cost:?}");
        assert_eq!(met(&results, IDLE_COST), [Some(false)]);
    }

    #[test]
    fn unmeasured_figures_have_no_verdict() {
        assert_eq!(met(&results(&[]), "bulk8"), [None, None]);
    }
}
