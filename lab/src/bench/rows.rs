//! The results as a table for people.
use super::figures::{Bound, Figure, OURS, Target};
use super::results::Results;
use super::spread::Spread;

/// Returns a heading, then a line for each figure of each way. The last column has the targets: absolute ones for
/// tcp-intercept; for other ways, the ratio of tcp-intercept to them and its target.
pub fn rows(results: &Results) -> Vec<Vec<String>> {
    let heading = ["", "", "median (range)", "", "tcp-intercept to it", "should be"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for figure in &results.figures {
        let mut title = figure.title.as_str();
        for way in &results.ways {
            let rounds = results.rounds(&figure.name, way);
            if rounds.is_empty() {
                continue;
            }
            rows.push(vec![
                title.to_owned(),
                way.clone(),
                shown(&rounds, figure.decimals),
                figure.unit.to_owned(),
                shown(&results.ratios(figure, way), 2),
                targets(results, figure, way),
            ]);
            title = "";
        }
    }
    rows
}

fn shown(values: &[f64], decimals: usize) -> String {
    Spread::of(values).map_or_else(String::new, |Spread { median, min, max, .. }| {
        if min == max {
            return format!("{median:.decimals$}");
        }
        format!("{median:.decimals$} ({min:.decimals$}..{max:.decimals$})")
    })
}

fn targets(results: &Results, figure: &Figure, way: &str) -> String {
    let here = figure.targets.iter().filter(|target| target.against.unwrap_or(OURS) == way);
    here.map(|target| judged(results, figure, target)).collect::<Vec<_>>().join(", ")
}

fn judged(results: &Results, figure: &Figure, target: &Target) -> String {
    let bound = match target.bound {
        Bound::AtLeast(bound) => format!(">= {bound}"),
        Bound::AtMost(bound) => format!("<= {bound}"),
        Bound::Never => "none".to_owned(),
    };
    match results.meets(figure, target) {
        Some(true) => format!("{bound}: yes"),
        Some(false) => format!("{bound}: NO"),
        None => bound,
    }
}
