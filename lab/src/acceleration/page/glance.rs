//! An overview of all WANs: a pair compared with end to end.
use super::bars::sentence;
use super::plot::escape;
use super::{class, link};
use crate::acceleration::judged::Judged;
use crate::acceleration::results::{Comparison, Object, Results, Way};

/// The most instructive objects.
const OBJECTS: [Object; 3] = [Object::FirstByte, Object::Down(20_000_000), Object::Up(20_000_000)];

/// Renders one row per WAN; empty if there is only one.
pub(super) fn table(results: &Results) -> String {
    if results.comparisons.len() < 2 {
        return String::new();
    }
    let rows: String = results.comparisons.iter().map(row).collect();
    let objects: String = OBJECTS.map(|object| format!("<th scope='col'>{}</th>", sentence(object))).concat();
    format!(
        "<p class='note'>Each: <span class='way plain'>end to end</span> → <span class='way pair'>a pair</span>.</p>\n\
         <table class='wans' style='--cells:repeat(3,minmax(0,1fr))'>\n<thead><tr><th scope='col'></th>{objects}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
    )
}

fn row(comparison: &Comparison) -> String {
    let name = escape(comparison.profile.name);
    let link = escape(&link::sentences(&comparison.profile));
    let cells: String = OBJECTS.map(|object| cell(comparison, object)).concat();
    format!("<tr><th scope='row'><a href='#{name}'>{name}</a><small>{link}</small></th>{cells}</tr>\n")
}

fn cell(comparison: &Comparison, object: Object) -> String {
    let of = |way| Judged::of(comparison, way, object);
    let time = |way| {
        let time = of(way).map_or_else(|| "–".to_owned(), |judged| escape(&judged.time()));
        format!("<b class='{}'>{time}</b>", class(way))
    };
    let as_fast = of(Way::Pair).and_then(|pair| pair.as_fast);
    let as_fast = as_fast.map_or_else(String::new, |times| {
        format!("<small class='fast'>{}</small>", escape(&times.to_string()))
    });
    format!(
        "<td class='glance'>{} <span class='arrow'>→</span> {}{as_fast}</td>",
        time(Way::EndToEnd),
        time(Way::Pair)
    )
}
