//! A panel: one quantity over time, one line per way.
use std::fmt::Write;

use super::class;
use super::plot::{Scale, apart, horizontal, number, text, vertical};
use super::series::Point;
use crate::acceleration::results::Way;

/// The height of the area of the lines.
const HEIGHT: f64 = 112.0;
/// The height of the title above the area.
const TITLE: f64 = 22.0;
/// The height of a panel with the space below it.
pub(super) const FULL: f64 = TITLE + HEIGHT + 14.0;
/// The width of a way's name in a narrow panel, as a share of the panel's width.
const NAME: f64 = 0.3;
/// The width of the names, right of the area.
const NAMES: f64 = 68.0;
/// The width of the area, in the units of the lines.
const UNITS: f64 = 1000.0;

/// The content of a panel.
pub(super) struct Panel {
    pub title: String,
    pub scale: Scale,
    pub lines: Vec<Line>,
    /// The link's own value of the quantity, and its label.
    pub link: Option<(f64, String)>,
}

/// The line of a way; it has several parts if it is interrupted.
pub(super) struct Line {
    pub way: Way,
    pub parts: Vec<Vec<Point>>,
    /// How the transfer ends, if it ends within the panel.
    pub ends: Option<End>,
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    Cut,
}

impl Panel {
    /// Draws the panel below `top`, for `span` seconds.
    pub fn draw(&self, top: f64, span: f64) -> String {
        let area = top + TITLE;
        let mut svg = text("title", (0.0, 0.0), top + 12.0, &self.title);
        for value in self.scale.ticks(2.5) {
            let y = self.y(area, value);
            svg += &horizontal("grid", (0.0, 1.0), y);
            svg += &text("end", (0.0, -6.0), y + 4.0, number(value));
        }
        svg += &vertical("axis", 0.0, (area, area + HEIGHT));
        svg += &self.curves(area, span);
        svg += &self.of_link(top);
        svg + &self.names(area, span)
    }

    fn y(&self, area: f64, value: f64) -> f64 {
        area + HEIGHT * (1.0 - self.scale.share(value))
    }

    fn curves(&self, area: f64, span: f64) -> String {
        let mut svg = format!(
            "<svg y='{area:.1}' width='100%' height='{HEIGHT}' viewBox='0 0 {UNITS} {HEIGHT}' preserveAspectRatio='none'>\n"
        );
        for Line { way, parts, .. } in &self.lines {
            let mut path = String::new();
            for part in parts {
                for (nth, (at, value)) in part.iter().enumerate() {
                    let command = if nth == 0 { 'M' } else { 'L' };
                    let (x, y) = (at / span * UNITS, self.y(0.0, *value));
                    // Writing to a String cannot fail.
                    let _ = write!(path, "{command}{x:.1} {y:.1}");
                }
            }
            svg += &format!("<path class='curve {}' d='{path}'/>\n", class(*way));
        }
        svg + "</svg>\n"
    }

    /// Draws a dashed line for the link. Its label is beside the title, where no line can cross it.
    fn of_link(&self, top: f64) -> String {
        self.link.as_ref().map_or_else(String::new, |(value, name)| {
            let line = horizontal("link-line", (0.0, 1.0), self.y(top + TITLE, *value));
            line + &text("ink end", (1.0, NAMES), top + 12.0, format_args!("- - {name}"))
        })
    }

    /// Draws each name beside the end of its line.
    fn names(&self, area: f64, span: f64) -> String {
        let last = |line: &Line| line.parts.last().and_then(|part| part.last()).copied();
        let ending: Vec<_> = self.lines.iter().filter_map(|line| Some((line, last(line)?))).collect();
        let points: Vec<_> =
            ending.iter().map(|(_, (at, value))| (at / span, self.y(area, *value))).collect();
        let mut places = points.clone();
        apart(&mut places, NAME, (area + 2.0, area + HEIGHT - 2.0));
        let (mut svg, mut marks) = (String::new(), String::new());
        for (((line, _), (x, y)), (_, at)) in ending.iter().zip(points).zip(places) {
            marks += &mark(line, x, y);
            svg += &text(&format!("name halo {}", class(line.way)), (x, 7.0), at + 4.0, line.way);
        }
        // Draw the marks above the names, because the halo of a name may reach the end of another line.
        svg + &marks
    }
}

fn mark(Line { way, ends, .. }: &Line, x: f64, y: f64) -> String {
    let (class, x) = (class(*way), x * 100.0);
    match ends {
        None => String::new(),
        Some(End::Complete) => format!("<circle class='dot {class}' cx='{x:.2}%' cy='{y:.1}' r='3.2'/>\n"),
        Some(End::Cut) => format!(
            "<svg class='plot' x='{x:.2}%' y='{y:.1}'><path class='cross {class}' d='M-3.2 -3.2L3.2 3.2M-3.2 3.2L3.2 -3.2'/></svg>\n"
        ),
    }
}
