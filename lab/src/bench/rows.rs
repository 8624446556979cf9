//! The results as a table for people.
use super::figures::{Bound, Figure, OURS, Results, Target};
use super::spread::Spread;

/// A heading, then a line for each figure: every way, and how tcp-intercept compares.
pub fn rows(results: &Results) -> Vec<Vec<String>> {
    let others: Vec<_> = results.ways.iter().filter(|way| *way != OURS).collect();
    let mut heading = vec![format!("median (range) of {} rounds", results.plan.rounds), String::new()];
    heading.extend(results.ways.iter().cloned());
    heading.extend(others.iter().map(|way| format!("/ {way}")));
    heading.push("target".to_owned());
    let line = |figure: &Figure| {
        let mut line = vec![figure.title.clone(), figure.unit.to_owned()];
        let cell = |way: &String| shown(&results.rounds(&figure.name, way), figure.decimals);
        line.extend(results.ways.iter().map(cell));
        let compared = |way: &&String| {
            let meaningful = !matches!(figure.unit, "" | "%");
            let ratios = results.ratios(&figure.name, OURS, way);
            if meaningful { shown(&ratios, 2) } else { String::new() }
        };
        line.extend(others.iter().map(compared));
        let targets = figure.targets.iter().map(|target| judged(results, figure, target));
        line.push(targets.collect::<Vec<_>>().join(", "));
        line
    };
    std::iter::once(heading).chain(results.figures.iter().map(line)).collect()
}

fn shown(values: &[f64], decimals: usize) -> String {
    Spread::of(values).map_or_else(String::new, |Spread { median, min, max, .. }| {
        if min == max {
            return format!("{median:.decimals$}");
        }
        format!("{median:.decimals$} ({min:.decimals$}..{max:.decimals$})")
    })
}

fn judged(results: &Results, figure: &Figure, target: &Target) -> String {
    let against = target.against.map(|way| format!(" of {way}")).unwrap_or_default();
    let bound = match target.bound {
        Bound::AtLeast(bound) => format!(">= {bound}{against}"),
        Bound::AtMost(bound) => format!("<= {bound}{against}"),
    };
    match results.reached(&figure.name, target) {
        Some(spread) if target.bound.is_met(spread.median) => format!("{bound}: yes"),
        Some(_) => format!("{bound}: NO"),
        None => bound,
    }
}
