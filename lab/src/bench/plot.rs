//! The results as bars, drawn directly as SVG, so that the documentation needs no other program.
use std::fmt::Write;

use super::figures::Figure;
use super::results::Results;
use super::spread::Spread;

const WIDTH: f64 = 860.0;
const COLUMNS: usize = 2;
const MARGIN: f64 = 20.0;
/// The height of the part above the panels.
const HEAD: f64 = 66.0;
/// The width of the names of the ways, left of the bars.
const NAMES: f64 = 105.0;
/// The width of the numbers, right of the bars.
const NUMBERS: f64 = 70.0;
const BAR: f64 = 14.0;
const PITCH: f64 = 20.0;
const TITLE: f64 = 26.0;
/// The colours of the ways, in order.
const COLOURS: [&str; 5] = ["#8a8f98", "#1f6feb", "#e09f3e", "#7fb069", "#b56576"];

/// Draws a panel for each figure that compares the ways. A bar shows the median; a line on it shows the range of the
/// rounds.
pub fn plot(results: &Results) -> String {
    let shown: Vec<_> = results.figures.iter().filter(|figure| figure.compares()).collect();
    let height = TITLE + PITCH * results.ways.len() as f64 + MARGIN;
    let rows = shown.len().div_ceil(COLUMNS) as f64;
    let full = HEAD + rows * height;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {full}' font-family='sans-serif' font-size='12'>\n\
         <rect width='{WIDTH}' height='{full}' fill='white'/>\n\
         <text x='{MARGIN}' y='24'>bar: median of the rounds, line: from the least to the greatest</text>\n\
         <text x='{MARGIN}' y='42' fill='#555' font-size='11'>{}</text>\n",
        results.conditions().join("; ").replace('&', "&amp;").replace('<', "&lt;")
    );
    for (nth, figure) in shown.into_iter().enumerate() {
        let left = MARGIN + (nth % COLUMNS) as f64 * WIDTH / COLUMNS as f64;
        let top = HEAD + (nth / COLUMNS) as f64 * height;
        panel(&mut svg, results, figure, (left, top));
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, results: &Results, figure: &Figure, (left, top): (f64, f64)) {
    let spreads = results.ways.iter().zip(COLOURS);
    let spreads: Vec<_> = spreads
        .filter_map(|(way, colour)| {
            Spread::of(&results.rounds(&figure.name, way)).map(|spread| (way, colour, spread))
        })
        .collect();
    let greatest = spreads.iter().map(|(.., spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let bars = left + NAMES;
    let scale = (WIDTH / COLUMNS as f64 - MARGIN - NAMES - NUMBERS) / greatest;
    let Figure { title, unit, decimals, .. } = figure;
    line(
        svg,
        format_args!("<text x='{left}' y='{:.1}' font-weight='bold'>{title}, {unit}</text>", top + 12.0),
    );
    for (nth, (way, colour, spread)) in spreads.into_iter().enumerate() {
        let y = top + TITLE + PITCH * nth as f64;
        let (middle, text) = (y + BAR / 2.0, y + BAR - 2.0);
        let [median, min, max] = [spread.median, spread.min, spread.max].map(|value| value * scale);
        let (name, number) = (bars - 6.0, bars + max.max(median) + 5.0);
        line(svg, format_args!("<text x='{name:.1}' y='{text:.1}' text-anchor='end'>{way}</text>"));
        line(
            svg,
            format_args!("<rect x='{bars}' y='{y}' width='{median:.1}' height='{BAR}' fill='{colour}'/>"),
        );
        line(svg, format_args!("<path d='M{:.1} {middle}H{:.1}' stroke='black'/>", bars + min, bars + max));
        line(svg, format_args!("<text x='{number:.1}' y='{text:.1}'>{:.*}</text>", decimals, spread.median));
    }
}

fn line(svg: &mut String, element: std::fmt::Arguments<'_>) {
    writeln!(svg, "{element}").unwrap_or_else(|_| unreachable!("a String takes everything"));
}
