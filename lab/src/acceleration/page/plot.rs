//! Primitives of all drawings.
use std::fmt::Display;

/// The smallest distance between texts, in pixels.
pub(super) const LINE: f64 = 14.0;

/// Escapes text for element content and attribute values.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}

/// Wraps `content` into a drawing as wide as its container and `height` pixels high.
pub(super) fn svg(class: &str, height: f64, label: &str, content: &str) -> String {
    let label = escape(label);
    format!("<svg class='plot {class}' height='{height}' role='img' aria-label='{label}'>\n{content}</svg>\n")
}

/// Draws text at a share of the width, shifted sideways by `beside` pixels.
pub(super) fn text(class: &str, (x, beside): (f64, f64), y: f64, text: impl Display) -> String {
    let (x, text) = (x * 100.0, escape(&text.to_string()));
    format!("<text class='{class}' x='{x:.2}%' dx='{beside}' y='{y:.1}'>{text}</text>\n")
}

/// Draws a horizontal line between two shares of the width.
pub(super) fn horizontal(class: &str, (from, to): (f64, f64), y: f64) -> String {
    let (from, to) = (from * 100.0, to * 100.0);
    format!("<line class='{class}' x1='{from:.2}%' x2='{to:.2}%' y1='{y:.1}' y2='{y:.1}'/>\n")
}

/// Draws a vertical line at a share of the width.
pub(super) fn vertical(class: &str, x: f64, (from, to): (f64, f64)) -> String {
    let x = x * 100.0;
    format!("<line class='{class}' x1='{x:.2}%' x2='{x:.2}%' y1='{from:.1}' y2='{to:.1}'/>\n")
}

/// A mapping from values to heights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Linear, starting at 0.
    Linear { max: f64 },
    /// Logarithmic: each power of ten has the same height.
    Log { min: f64, max: f64 },
}

impl Scale {
    /// Makes a linear scale up to `greatest`.
    pub fn linear(greatest: f64) -> Self {
        Self::Linear { max: greatest.max(1e-3) }
    }

    /// Makes a logarithmic scale that starts at a power of ten and spans at least a decade.
    pub fn log(least: f64, greatest: f64) -> Self {
        let min = 10_f64.powf(least.max(1.0).log10().floor());
        Self::Log { min, max: greatest.max(min * 10.0) }
    }

    /// Returns the height of a value as a share of the whole, from 0 to 1.
    pub fn share(self, value: f64) -> f64 {
        let share = match self {
            Self::Linear { max } => value / max,
            Self::Log { min, max } => (value.max(min) / min).log10() / (max / min).log10(),
        };
        share.clamp(0.0, 1.0)
    }

    /// Returns round values for ticks; on a linear scale about `wanted` of them.
    pub fn ticks(self, wanted: f64) -> Vec<f64> {
        match self {
            Self::Linear { max } => {
                let step = step(max / wanted);
                (0..).map(|nth| f64::from(nth) * step).take_while(|value| *value <= max * 1.0001).collect()
            }
            Self::Log { min, max } => std::iter::successors(Some(min), |value| Some(value * 10.0))
                .take_while(|value| *value <= max)
                .collect(),
        }
    }
}

/// Returns the next value of 1, 2, 5, 10, 20, …, including fractions.
fn step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1e-6).log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|step| *step >= least * 0.9999)
        .unwrap_or(power * 10.0)
}

/// Formats a tick's value without superfluous digits.
pub(super) fn number(value: f64) -> String {
    format!("{}", (value * 1e3).round() / 1e3)
}

/// Moves overlapping texts apart: those that start closer than `width`, a share of the whole width. They keep their
/// order and stay within `room`.
pub(super) fn apart(places: &mut [(f64, f64)], width: f64, room: (f64, f64)) {
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| places[*a].1.total_cmp(&places[*b].1));
    let near = |a: f64, b: f64| (a - b).abs() < width;
    for nth in 0..order.len() {
        let x = places[order[nth]].0;
        let above = order[..nth]
            .iter()
            .filter(|other| near(places[**other].0, x))
            .map(|other| places[*other].1 + LINE);
        places[order[nth]].1 = above.fold(places[order[nth]].1.max(room.0), f64::max);
    }
    for nth in (0..order.len()).rev() {
        let x = places[order[nth]].0;
        let below = order[nth + 1..]
            .iter()
            .filter(|other| near(places[**other].0, x))
            .map(|other| places[*other].1 - LINE);
        places[order[nth]].1 = below.fold(places[order[nth]].1.min(room.1), f64::min);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(Scale::linear(118.0).ticks(3.0), [0.0, 50.0, 100.0]);
        assert_eq!(Scale::linear(4.0).ticks(4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(Scale::log(12.0, 1300.0).ticks(3.0), [10.0, 100.0, 1000.0]);
        assert_eq!(Scale::linear(0.0).ticks(3.0).first(), Some(&0.0));
    }

    #[test]
    fn shares_are_finite_and_between_0_and_1() {
        for scale in [Scale::linear(0.0), Scale::linear(5.0), Scale::log(0.0, 0.0), Scale::log(10.0, 1e6)] {
            for value in [0.0, 1.0, 1e9] {
                assert!((0.0..=1.0).contains(&scale.share(value)), "{scale:?} {value}");
            }
        }
    }

    #[test]
    fn overlapping_texts_move_apart() {
        let mut places = [(0.9, 50.0), (0.9, 52.0), (0.2, 51.0), (0.95, 99.0)];
        apart(&mut places, 0.3, (10.0, 100.0));
        assert_eq!(places, [(0.9, 50.0), (0.9, 64.0), (0.2, 51.0), (0.95, 99.0)]);
        let mut low = [(1.0, 99.0), (1.0, 100.0), (1.0, 98.0)];
        apart(&mut low, 0.3, (10.0, 100.0));
        assert_eq!(low, [(1.0, 86.0), (1.0, 100.0), (1.0, 72.0)]);
    }
}
