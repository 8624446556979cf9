//! The section of one WAN.
use super::bars::{self, sentence};
use super::plot::escape;
use super::{class, curves, link};
use crate::acceleration::judged::{Judged, about};
use crate::acceleration::results::{Comparison, Object, Outcome, Way};
use crate::acceleration::{limit, units};

/// Renders a heading, the WAN, the summary, the table and the drawings.
pub(super) fn section(comparison: &Comparison) -> String {
    let profile = &comparison.profile;
    let leads: String = large().map(|object| lead(comparison, object)).collect();
    let bars: String = Object::ALL.into_iter().map(|object| bars::figure(comparison, object)).collect();
    let bars = if bars.is_empty() { bars } else { format!("<div class='thirds'>\n{bars}</div>\n") };
    let curves: String = large().map(|object| curves::watched(comparison, object)).collect();
    format!(
        "<section id='{0}'>\n<h2>{0}</h2>\n<p class='link'>{1}</p>\n{leads}{2}{bars}{curves}</section>\n",
        escape(profile.name),
        escape(&link::sentences(profile)),
        table(comparison),
    )
}

fn large() -> impl Iterator<Item = Object> {
    Object::ALL.into_iter().filter(|object| object.is_large())
}

/// Renders the summary: "20 MB down: 2.1 s with a pair, 40 s with one box, more than 45 s end to end (cut then; 1.4
/// Mbit/s)."
fn lead(comparison: &Comparison, object: Object) -> String {
    let told = Way::ALL.into_iter().rev().filter_map(|way| {
        let judged = Judged::of(comparison, way, object)?;
        let with = if way == Way::EndToEnd { "" } else { "with " };
        Some(match (judged.median, judged.rate()) {
            (Outcome::Cut { after, .. }, Some(rate)) => format!(
                "<b class='way {}'>more than {}</b> {with}{way} (cut then, at {rate})",
                class(way),
                units::time(after)
            ),
            _ => format!("<b class='way {}'>{}</b> {with}{way}", class(way), judged.time()),
        })
    });
    let told: Vec<_> = told.collect();
    if told.is_empty() {
        return String::new();
    }
    format!("<p class='lead'>{}: {}.</p>\n", sentence(object), told.join(", "))
}

/// Renders one row per object and one column per way.
fn table(comparison: &Comparison) -> String {
    let rows: String = Object::ALL.into_iter().filter_map(|object| row(comparison, object)).collect();
    if rows.is_empty() {
        return "<p>Nothing was measured.</p>\n".to_owned();
    }
    let ways: String = Way::ALL
        .iter()
        .map(|way| format!("<th scope='col' class='way {}'>{way}</th>", class(*way)))
        .collect();
    format!(
        "<table class='ways' style='--cells:repeat(3,minmax(0,1fr)) 3.2rem'>\n<thead><tr><th scope='col'></th>{ways}<th scope='col'>limit</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n"
    )
}

fn row(comparison: &Comparison, object: Object) -> Option<String> {
    let judged = Way::ALL.map(|way| (way, Judged::of(comparison, way, object)));
    judged.iter().find(|(_, judged)| judged.is_some())?;
    let cells: String = judged.iter().map(|(way, judged)| cell(*way, judged.as_ref())).collect();
    let limit = units::time(limit(&comparison.profile, object));
    Some(format!(
        "<tr><th scope='row'>{}</th>{cells}<td class='limit-time'>{limit}</td></tr>\n",
        sentence(object)
    ))
}

fn cell(way: Way, judged: Option<&Judged>) -> String {
    let Some(judged) = judged else { return "<td>–</td>".to_owned() };
    let small = |text: String| format!("<small>{}</small>", escape(&text));
    let time = format!("<b>{}</b>", escape(&judged.time()));
    let range = judged.range("–");
    let lines = match judged.rate() {
        Some(rate) => [time + &small(rate), whole(judged, range).map_or_else(String::new, small)],
        None => [time + &range.map_or_else(String::new, small), String::new()],
    };
    let as_fast =
        judged.as_fast.map(|times| format!("<small class='fast'>{}</small>", escape(&times.to_string())));
    let of_limit = judged.share_of_limit("≈ ").map(|share| small(format!("{share} of limit")));
    let compared: String = as_fast.into_iter().chain(of_limit).collect();
    let lines = lines.into_iter().chain([compared]).filter(|line| !line.is_empty());
    let lines: String = lines.map(|line| format!("<div>{line}</div>")).collect();
    format!("<td class='{}'>{lines}</td>", class(way))
}

/// Formats the estimated duration of a cut transfer, with the range of the rounds.
fn whole(judged: &Judged, range: Option<String>) -> Option<String> {
    let whole = judged.median.estimate(judged.object).map(|_| about(judged.median, judged.object));
    match (whole, range) {
        (Some(whole), Some(range)) => Some(format!("{whole} ({})", range.trim_start_matches("≈ "))),
        (whole, range) => whole.or(range),
    }
}
