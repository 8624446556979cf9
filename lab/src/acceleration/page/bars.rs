//! Bars that show how long an object took on each way.
use super::class;
use super::plot::{LINE, horizontal, svg, text, vertical};
use crate::acceleration::judged::{Judged, about};
use crate::acceleration::results::{Comparison, Object, Outcome, Way};
use crate::acceleration::{limit, units};

const BAR: f64 = 15.0;
const PITCH: f64 = 22.0;

/// Draws a figure with its own scale from 0, because it compares only the ways. Empty if the object was not measured.
pub(super) fn figure(comparison: &Comparison, object: Object) -> String {
    let judged: Vec<_> =
        Way::ALL.into_iter().filter_map(|way| Some((way, Judged::of(comparison, way, object)?))).collect();
    if judged.is_empty() {
        return String::new();
    }
    let limit = limit(&comparison.profile, object).as_secs_f64();
    let longest =
        judged.iter().map(|(_, judged)| seconds(judged.greatest, object)).fold(limit, f64::max).max(1e-9);
    let share = |seconds: f64| (seconds / longest).min(1.0);
    let bars =
        judged.iter().zip(0..).map(|((way, judged), nth)| bar(*way, judged, PITCH * f64::from(nth), &share));
    let bottom = PITCH * judged.len() as f64;
    let content = bars.collect::<String>() + &mark(share(limit), &limit_text(comparison, object), bottom);
    let drawing = svg("bars", bottom + LINE + 2.0, &format!("Time of {object}"), &content);
    format!("<figure><figcaption><b>{}</b></figcaption>\n{drawing}</figure>\n", sentence(object))
}

fn bar(way: Way, judged: &Judged, top: f64, share: &dyn Fn(f64) -> f64) -> String {
    let (class, object, base) = (class(way), judged.object, top + BAR - 3.5);
    let [least, median, greatest] =
        [judged.least, judged.median, judged.greatest].map(|outcome| share(seconds(outcome, object)));
    let lasted = share(judged.median.lasted().as_secs_f64());
    let mut svg = text(&format!("name end {class}"), (0.0, -8.0), base, way);
    for (kind, from, to) in [("bar", 0.0, lasted), ("pale", lasted, median)] {
        if to > from {
            let (from, width) = (from * 100.0, (to - from) * 100.0);
            svg += &format!(
                "<rect class='{kind} {class}' x='{from:.2}%' y='{top}' width='{width:.2}%' height='{BAR}'/>\n"
            );
        }
    }
    svg += &horizontal("range", (least, greatest), top + BAR / 2.0);
    svg + &text("ink", (greatest.max(median), 6.0), base, about(judged.median, object))
}

/// Draws the mark of the limit across all bars.
fn mark(x: f64, name: &str, bottom: f64) -> String {
    let (class, beside) = if x < 0.5 { ("", -1.0) } else { ("end", 1.0) };
    vertical("limit", x, (-3.0, bottom)) + &text(class, (x, beside), bottom + LINE - 3.0, name)
}

fn limit_text(comparison: &Comparison, object: Object) -> String {
    format!("limit {}", units::time(limit(&comparison.profile, object)))
}

/// Returns the length of a bar in seconds.
fn seconds(outcome: Outcome, object: Object) -> f64 {
    outcome.estimate(object).unwrap_or_else(|| outcome.lasted()).as_secs_f64()
}

/// Returns the object's name as the start of a sentence.
pub(super) fn sentence(object: Object) -> String {
    let name = object.to_string();
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
