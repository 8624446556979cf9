//! The figures that the measurements yield, and their targets.
use super::measure::Measurement;
use super::plan::Plan;
use super::spread::Spread;

/// The way that is judged.
pub(super) const OURS: &str = "tcp-intercept";

/// One figure that is measured for every way.
#[derive(Debug, Clone)]
pub(super) struct Figure {
    /// The name that the measurement uses.
    pub name: String,
    /// The title for people.
    pub title: String,
    /// The unit; empty for a plain count.
    pub unit: &'static str,
    /// The number of decimals to print.
    pub decimals: usize,
    pub targets: Vec<Target>,
}

/// A target for a figure of tcp-intercept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    /// The way to compare with; `None` judges the figure itself.
    pub against: Option<&'static str>,
    pub bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bound {
    /// The median must be at least this.
    AtLeast(f64),
    /// The median must be at most this.
    AtMost(f64),
    /// The figure must be 0 in every round.
    Never,
}

impl Bound {
    pub fn is_met(self, spread: &Spread) -> bool {
        match self {
            Self::AtLeast(bound) => spread.median >= bound,
            Self::AtMost(bound) => spread.median <= bound,
            Self::Never => spread.max == 0.0,
        }
    }
}

/// The name of the idle cost: by how much the highest number of idle sessions slows round trips, in per cent, for the
/// same way and round.
pub(super) const IDLE_COST: &str = "idle-cost";

/// Returns the figures that `plan` measures, in display order.
pub(super) fn figures(plan: &Plan) -> Vec<Figure> {
    plan.only.iter().flat_map(|measurement| of_measurement(*measurement, &plan.idle)).collect()
}

fn of_measurement(measurement: Measurement, idle: &[usize]) -> Vec<Figure> {
    match measurement {
        Measurement::Bulk { streams: 1 } => vec![
            figure("bulk1", "one bulk stream", "Gbit/s", 1).of("routing", 0.9).of("haproxy", 1.8),
            figure("bulk1-cpu", "CPU of the process, one stream", "s/GB", 3),
        ],
        Measurement::Bulk { .. } => vec![
            figure("bulk8", "eight bulk streams", "Gbit/s", 1).of("routing", 0.6).of("haproxy", 1.6),
            figure("bulk8-cpu", "CPU of the process, eight streams", "s/GB", 3),
        ],
        Measurement::RoundTrips => {
            vec![figure("rtt", "round trips on 64 connections", "1/s", 0).of("haproxy", 1.0)]
        }
        Measurement::Connections => vec![
            figure("conn", "connections from 16 addresses", "1/s", 0).of("haproxy", 1.0),
            figure("conn-tried", "connections tried", "", 0),
            figure("conn-failed", "connections failed", "", 0).should(Bound::Never),
        ],
        Measurement::Idle => of_idle(idle),
    }
}

fn of_idle(idle: &[usize]) -> Vec<Figure> {
    let most = idle.iter().max().copied().unwrap_or_default();
    let rate =
        |count| figure(&format!("rtt-{count}"), &format!("round trips, {count} idle sessions"), "1/s", 0);
    let mut all: Vec<_> = idle.iter().map(rate).collect();
    all.push(figure(IDLE_COST, &format!("cost of {most} idle sessions"), "%", 1).should(Bound::AtMost(5.0)));
    for count in idle.iter().filter(|count| **count > 0) {
        let memory =
            figure(&format!("kib-{count}"), &format!("memory of one of {count} idle sessions"), "KiB", 2);
        all.push(if *count == most { memory.should(Bound::AtMost(2.0)) } else { memory });
        all.push(figure(&format!("sessions-{count}"), "those that the box has", "", 0));
    }
    all
}

fn figure(name: &str, title: &str, unit: &'static str, decimals: usize) -> Figure {
    Figure { name: name.to_owned(), title: title.to_owned(), unit, decimals, targets: Vec::new() }
}

impl Figure {
    /// Adds the target: at least `ratio` times the figure of the way `against`.
    fn of(mut self, against: &'static str, ratio: f64) -> Self {
        self.targets.push(Target { against: Some(against), bound: Bound::AtLeast(ratio) });
        self
    }

    fn should(mut self, bound: Bound) -> Self {
        self.targets.push(Target { against: None, bound });
        self
    }

    /// Returns whether a ratio of two ways is meaningful for this figure.
    pub fn compares(&self) -> bool {
        !matches!(self.unit, "" | "%")
    }
}
