//! A large transfer over time: throughput, congestion window and round trip, stacked.
use std::time::Duration;

use super::link;
use super::panel::{End, FULL, Line, Panel};
use super::plot::{Scale, number, svg, text, vertical};
use super::series::{self, Point};
use crate::acceleration::results::{Comparison, Object, Trace, Way};
use crate::acceleration::units;
use crate::wan::Profile;

/// The height of the numbers below the last panel.
const AXIS: f64 = 12.0;
/// The shortest interval over which throughput is averaged, in seconds.
const WINDOW: f64 = 0.2;
/// The highest number of averaging intervals side by side.
const AVERAGES: f64 = 75.0;
/// Transfers that end within this multiple of the fastest one's time are shown together with it.
const TOGETHER: f64 = 2.5;
/// The start gets its own figure if it is shorter than this share of the whole.
const START: f64 = 0.55;

/// Renders a heading and one or two figures; empty if the object was not traced.
pub(super) fn watched(comparison: &Comparison, object: Object) -> String {
    let of = |way| comparison.traces.iter().find(move |trace| trace.way == way && trace.object == object);
    let traces: Vec<_> =
        Way::ALL.into_iter().filter_map(of).filter(|trace| series::end(trace) > 0.0).collect();
    let spans = spans(&traces.iter().map(|trace| series::end(trace)).collect::<Vec<_>>());
    let alone = if spans.len() == 1 { " alone" } else { "" };
    let view = |span: &f64| View { profile: &comparison.profile, object, traces: &traces, span: *span };
    let figures: String = spans.iter().map(|span| view(span).figure()).collect();
    if figures.is_empty() {
        return figures;
    }
    format!("<h3>{object} over time</h3>\n<div class='halves{alone}'>\n{figures}</div>\n")
}

/// Returns the time spans to show: the start, in which the fast transfers end, and the whole; or only the whole if it
/// shows both well.
fn spans(ends: &[f64]) -> Vec<f64> {
    let fastest = ends.iter().copied().fold(f64::INFINITY, f64::min);
    let whole = ends.iter().copied().fold(0.0, f64::max);
    let with_it = ends.iter().copied().filter(|end| *end <= fastest * TOGETHER);
    let start = with_it.fold(0.0, f64::max) * 1.12;
    match whole {
        0.0 => Vec::new(),
        _ if start < whole * START => vec![start, whole],
        _ => vec![whole],
    }
}

/// A figure: the traced transfers, and how much of their time is shown.
struct View<'a> {
    profile: &'a Profile,
    object: Object,
    traces: &'a [&'a Trace],
    /// The shown time in seconds.
    span: f64,
}

impl View<'_> {
    fn figure(&self) -> String {
        let paths = Some(self.profile.paths.len()).filter(|count| *count > 1).unwrap_or(0);
        let mut panels = vec![self.throughput()];
        panels.extend((0..paths).map(|nth| self.path(nth)));
        panels.extend([self.congestion_window(), self.round_trip()]);
        let drawn = panels.iter().zip(0..).map(|(panel, nth)| panel.draw(FULL * f64::from(nth), self.span));
        let height = FULL * panels.len() as f64;
        let content = drawn.collect::<String>() + &axis(self.span, height);
        let long = units::time(Duration::from_secs_f64(self.span));
        let whole = self.traces.iter().all(|trace| series::end(trace) <= self.span);
        let part = if whole { "The whole" } else { "The start" };
        let label = format!("{}: throughput, congestion window and round trip over time", self.object);
        let drawing = svg("curves", height + AXIS, &label, &content);
        format!("<figure><figcaption><b>{part}</b>, {long}</figcaption>\n{drawing}</figure>\n")
    }

    fn throughput(&self) -> Panel {
        let lines = self.lines(|trace| vec![series::throughput(trace, self.span, self.window())]);
        let mbit = link::mbit(self.profile, self.object);
        let name = if self.profile.paths.len() > 1 { "all paths" } else { "link" };
        Panel {
            title: format!("Throughput, Mbit/s, mean of {} s", number((self.window() * 10.0).round() / 10.0)),
            scale: Scale::linear(greatest(&lines).max(mbit.unwrap_or(0.0)) * 1.05),
            lines,
            link: mbit.map(|mbit| (mbit, format!("{name}: {}", number(mbit)))),
        }
    }

    /// Makes the panel of the rate that one of several paths delivers.
    fn path(&self, nth: usize) -> Panel {
        let lines = self.lines(|trace| vec![series::of_path(trace, nth, self.span, self.window())]);
        let alone = Profile { paths: vec![self.profile.paths[nth]], ..self.profile.clone() };
        let mbit = link::mbit(&alone, self.object);
        Panel {
            title: format!("Path {}, Mbit/s", nth + 1),
            scale: Scale::linear(greatest(&lines).max(mbit.unwrap_or(0.0)) * 1.05),
            lines,
            link: mbit.map(|mbit| (mbit, format!("path: {}", number(mbit)))),
        }
    }

    /// Returns the interval over which throughput is averaged, in seconds.
    fn window(&self) -> f64 {
        WINDOW.max(self.span / AVERAGES)
    }

    fn congestion_window(&self) -> Panel {
        let lines = self.lines(|trace| series::of_sender(trace, self.span, |sender| sender.window.into()));
        let full = link::full_window(self.profile, self.object);
        let least = values(&lines).chain(full).fold(f64::INFINITY, f64::min);
        Panel {
            title: "Congestion window, segments (log)".to_owned(),
            scale: Scale::log(least.min(1e6), greatest(&lines).max(full.unwrap_or(0.0)) * 1.3),
            lines,
            link: full.map(|full| (full, format!("link full: {full:.0}"))),
        }
    }

    fn round_trip(&self) -> Panel {
        let ms = |trace: &Trace| {
            series::of_sender(trace, self.span, |sender| sender.round_trip.as_secs_f64() * 1e3)
        };
        let lines = self.lines(ms);
        let link = link::round_trip_ms(self.profile);
        let name = if self.profile.paths.len() > 1 { "shortest path" } else { "link" };
        Panel {
            title: "Round trip, ms".to_owned(),
            scale: Scale::linear(greatest(&lines).max(link.unwrap_or(0.0)) * 1.1),
            lines,
            link: link.map(|ms| (ms, format!("{name}: {}", number(ms)))),
        }
    }

    fn lines(&self, parts: impl Fn(&Trace) -> Vec<Vec<Point>>) -> Vec<Line> {
        let line = |trace: &&Trace| {
            let end = if series::complete(trace) { End::Complete } else { End::Cut };
            Line {
                way: trace.way,
                parts: parts(trace),
                ends: (series::end(trace) <= self.span).then_some(end),
            }
        };
        self.traces.iter().map(line).collect()
    }
}

fn axis(span: f64, height: f64) -> String {
    let ticks = Scale::linear(span).ticks(6.0);
    let last = ticks.len().saturating_sub(1);
    let numbers = ticks.iter().enumerate().map(|(nth, value)| {
        let (x, unit) = (value / span, if nth == last { " s" } else { "" });
        vertical("axis", x, (height - 14.0, height - 10.0))
            + &text("middle", (x, 0.0), height + 4.0, format_args!("{}{unit}", number(*value)))
    });
    numbers.collect()
}

fn values(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| line.parts.iter().flatten()).map(|(_, value)| *value)
}

fn greatest(lines: &[Line]) -> f64 {
    values(lines).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_gets_its_own_figure_where_the_whole_would_hide_it() {
        let seconds =
            |ends: &[f64]| spans(ends).iter().map(|span| (span * 10.0).round() / 10.0).collect::<Vec<_>>();
        assert_eq!(seconds(&[45.0, 16.0, 2.0]), [2.2, 45.0]);
        assert_eq!(seconds(&[45.0, 4.0, 2.0]), [4.5, 45.0]);
        assert_eq!(seconds(&[3.0, 2.5, 2.0]), [3.0]);
        assert_eq!(seconds(&[45.0, 45.0]), [45.0]);
        assert!(spans(&[]).is_empty());
    }
}
