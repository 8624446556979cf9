//! The results as one self-contained HTML file, readable in two minutes.
//!
//! A drawing is as wide as its container: positions are percentages, text sizes are pixels. On a narrow screen the
//! drawings shrink, but the text does not.
mod bars;
mod comparison;
mod curves;
mod drawings;
mod glance;
pub(super) mod link;
mod panel;
mod plot;
mod series;

use super::results::{Results, Way};

const STYLE: &str = include_str!("style.css");

const INTRODUCTION: &str = "How a bad link slows TCP down, and how tcp-intercept improves it. The same objects were sent over the \
    same WAN by three ways: <b class='way plain'>end to end</b>, with <b class='way one'>one box</b> near the client on \
    which tcp-intercept runs, and with <b class='way pair'>a pair</b> of them, one on each side of the WAN. \
    <a href='#measured'>How it was measured</a> is at the end.";

const READING: [(&str, &str); 6] = [
    (
        "Times",
        "from connect() on. A number is the median of the rounds; beside it the fastest and the slowest.",
    ),
    (
        "&gt;",
        "the transfer was cut after this time. Its rate until then says how long the whole would have taken: \
         every number that rests on that has a ≈ before it. Bars are pale from the cut on. A factor with &gt; is at \
         least that: end to end nothing had come.",
    ),
    ("× as fast", "the median end to end, divided by the median of this way."),
    (
        "Limit",
        "no program can be faster over this link: the shortest round trip, and the payload at the full rate of all \
         paths. “50 % of limit” took twice as long.",
    ),
    (
        "Over time",
        "one more transfer on each way. Throughput is what arrived at the receiver, averaged. Congestion window and round \
         trip are those of the socket that sends over the WAN, as the kernel tells them: a box's where tcp-intercept \
         sends, else the client's or the server's own.",
    ),
    ("●, ×", "a line ends where its transfer was complete, or was cut."),
];

/// Renders the whole file.
pub fn page(results: &Results) -> String {
    let comparisons: String = results.comparisons.iter().map(comparison::section).collect();
    let nothing = "<p class='lead'>Nothing was measured.</p>\n";
    let comparisons = if comparisons.is_empty() { nothing } else { &comparisons };
    format!(
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'/>\n\
         <meta name='viewport' content='width=device-width, initial-scale=1'/>\n\
         <meta name='color-scheme' content='light dark'/>\n\
         <title>tcp-intercept over bad links</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>tcp-intercept over bad links</h1>\n<p class='introduction'>{INTRODUCTION}</p>\n\
         {}{comparisons}{}</body>\n</html>\n",
        glance::table(results),
        measured(results),
    )
}

/// Renders how it was measured, and the meaning of the terms.
fn measured(results: &Results) -> String {
    let drawings: String = Way::ALL.into_iter().map(drawings::drawing).collect();
    let reading: String =
        READING.iter().map(|(what, text)| format!("<dt>{what}</dt><dd>{text}</dd>\n")).collect();
    let conditions: String =
        results.conditions.iter().map(|line| format!("<li>{}</li>\n", plot::escape(line))).collect();
    let conditions = if conditions.is_empty() { String::new() } else { format!("<ul>\n{conditions}</ul>\n") };
    format!(
        "<section id='measured'>\n<h2>How it was measured</h2>\n<div class='thirds'>\n{drawings}</div>\n\
         {conditions}<dl>\n{reading}</dl>\n</section>\n"
    )
}

/// Returns the CSS class for drawings in the colour of a way.
const fn class(way: Way) -> &'static str {
    match way {
        Way::EndToEnd => "plain",
        Way::OneBox => "one",
        Way::Pair => "pair",
    }
}

#[cfg(test)]
mod tests;
