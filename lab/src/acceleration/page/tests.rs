use super::*;
use crate::acceleration::{Comparison, Measured, Object, Outcome, Trace, example};
use crate::wan::Profile;

/// Checks that all elements are closed in order. Panics at an end tag that does not match.
fn balanced(page: &str) {
    let mut open = Vec::new();
    for tag in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        match tag.strip_prefix('/') {
            _ if tag.starts_with('!') || tag.ends_with('/') => {}
            Some(name) => assert_eq!(open.pop(), Some(name), "{tag}"),
            None => open.push(tag.split_ascii_whitespace().next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

/// Checks that the page is balanced, has finite numbers in its attributes, and refers to nothing outside itself.
fn sound(page: &str) {
    balanced(page);
    for attribute in page.split('\'').skip(1).step_by(2) {
        assert!(!attribute.contains("NaN") && !attribute.contains("inf"), "{attribute}");
    }
    for outside in ["http:", "https:", "<script", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
}

fn of(comparison: Comparison) -> String {
    let page = page(&Results { conditions: Vec::new(), comparisons: vec![comparison] });
    sound(&page);
    page
}

#[test]
fn every_measurement_is_on_the_page() {
    let results = example::results();
    let page = page(&results);
    sound(&page);
    for Comparison { profile, .. } in &results.comparisons {
        assert!(page.contains(&format!("<section id='{}'>", profile.name)));
    }
    for way in Way::ALL {
        assert!(page.contains(&format!("aria-label='{way}'")));
    }
    assert_eq!(page.matches("20 MB up over time").count(), results.comparisons.len());
    assert!(page.contains("BBR &amp; Multipath TCP, &lt;no configuration&gt;"));
    // Writes the page for inspection: LAB_PAGE=/tmp/page.html cargo test …
    if let Some(path) = std::env::var_os("LAB_PAGE") {
        std::fs::write(path, &page).unwrap();
    }
}

#[test]
fn a_cut_transfer_is_shown_as_a_rate() {
    let page = of(example::comparison(Profile::transatlantic()));
    let row = page.lines().find(|line| line.contains("<th scope='row'>20 MB down")).unwrap();
    assert!(
        row.contains("<b>&gt; 45 s</b>") && row.contains(" Mbit/s</small>") && row.contains("<small>≈ "),
        "{row}"
    );
    assert!(page.contains("(cut then, at "), "{page}");
    assert!(page.contains("class='pale plain'"));
}

#[test]
fn missing_measurements_are_tolerated() {
    let nothing = page(&Results { conditions: Vec::new(), comparisons: Vec::new() });
    sound(&nothing);
    assert!(nothing.contains("Nothing was measured."));
    let whole = || example::comparison(Profile::bonded());
    of(Comparison { measured: Vec::new(), ..whole() });
    of(Comparison { traces: Vec::new(), ..whole() });
    of(Comparison { measured: Vec::new(), traces: Vec::new(), ..whole() });
    for way in Way::ALL {
        let mut less = whole();
        less.measured.retain(|measured| measured.way != way);
        less.traces.retain(|trace| trace.way != way);
        of(less);
    }
    let mut no_rounds = whole();
    no_rounds.measured.iter_mut().for_each(|measured| measured.outcomes.clear());
    no_rounds.traces.iter_mut().for_each(|trace| trace.samples.clear());
    of(no_rounds);
}

#[test]
fn transfers_without_data_are_tolerated() {
    let mut dead = example::comparison(Profile::satellite());
    let nothing = Outcome::Cut { after: std::time::Duration::from_secs(45), bytes: 0 };
    for Measured { outcomes, .. } in &mut dead.measured {
        *outcomes = vec![nothing];
    }
    for Trace { samples, .. } in &mut dead.traces {
        samples.iter_mut().for_each(|sample| (sample.bytes, sample.sender) = (0, None));
    }
    let page = of(dead);
    assert!(page.contains("nothing came"));
    let mut at_once = example::comparison(Profile::clean());
    for Measured { outcomes, object, .. } in &mut at_once.measured {
        *outcomes =
            vec![Outcome::Done(std::time::Duration::ZERO); if *object == Object::Banner { 0 } else { 2 }];
    }
    of(at_once);
    let mut nowhere = example::comparison(Profile::clean());
    nowhere.profile.paths.clear();
    of(nowhere);
}
