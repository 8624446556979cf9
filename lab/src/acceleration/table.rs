//! A comparison as a table for the terminal.
use super::judged::{Judged, Known, Times};
use super::limit::limit;
use super::results::{Comparison, Object, Way};
use super::units;

/// Returns a heading, then a line for each measured object. Only plain ASCII, because the alignment counts bytes.
pub fn rows(comparison: &Comparison) -> Vec<Vec<String>> {
    let [plain, one_box, pair] = Way::ALL.map(|way| way.to_string());
    let against = ["pair against end to end", "limit", "pair against limit"].map(str::to_owned);
    let heading = [vec!["object".to_owned(), plain, one_box, pair], against.to_vec()].concat();
    let objects = Object::ALL.into_iter().filter_map(|object| row(comparison, object));
    std::iter::once(heading).chain(objects).collect()
}

/// Returns the line of an object; `None` if it was measured on no way.
fn row(comparison: &Comparison, object: Object) -> Option<Vec<String>> {
    let judged = Way::ALL.map(|way| Judged::of(comparison, way, object));
    judged.iter().flatten().next()?;
    let pair = judged[2];
    let mut row = vec![object.to_string()];
    row.extend(judged.map(|judged| judged.map_or_else(String::new, |judged| cell(&judged))));
    row.push(pair.and_then(|pair| pair.as_fast).map_or_else(String::new, as_fast));
    row.push(units::time(limit(&comparison.profile, object)));
    row.push(pair.and_then(|pair| pair.share_of_limit("~")).unwrap_or_default());
    Some(row)
}

fn cell(judged: &Judged) -> String {
    match (judged.rate(), judged.range("..")) {
        (Some(rate), _) => format!("{}, {rate}", judged.time()),
        (None, Some(range)) => format!("{} ({})", judged.time(), range.replace('≈', "~")),
        (None, None) => judged.time(),
    }
}

fn as_fast(times: Times) -> String {
    let before = match times.known {
        Known::Measured => "",
        Known::Estimated => "~",
        Known::AtLeast => ">",
    };
    format!("{before}{}x as fast", units::times(times.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acceleration::example;
    use crate::wan::Profile;

    #[test]
    fn every_row_is_as_wide_as_the_heading() {
        let rows = rows(&example::comparison(Profile::transatlantic()));
        assert_eq!(rows.len(), 1 + Object::ALL.len());
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{rows:?}");
        assert!(rows.concat().iter().all(|cell| cell.is_ascii()), "{rows:?}");
        let down = rows.iter().find(|row| row[0] == "20 MB down").unwrap();
        assert!(down[1].starts_with("> 45 s, ") && down[1].ends_with(" Mbit/s"), "{down:?}");
        assert!(down[4].starts_with('~') && down[4].ends_with("x as fast"), "{down:?}");
        assert_eq!(down[5], "1.8 s");
        assert!(down[6].ends_with(" %"), "{down:?}");
    }

    #[test]
    fn without_measurements_there_is_only_the_heading() {
        let mut comparison = example::comparison(Profile::clean());
        comparison.measured.retain(|measured| measured.way == Way::OneBox);
        assert!(rows(&comparison).iter().skip(1).all(|row| row[1].is_empty() && row[4].is_empty()));
        comparison.measured.clear();
        assert_eq!(rows(&comparison).len(), 1);
    }
}
