//! The summary of the rounds of an object on a way. Table, page and JSON all use it.
use std::fmt;
use std::time::Duration;

use super::limit::limit;
use super::results::{Comparison, Object, Outcome, Way};
use super::units;

/// The rounds of an object on a way, compared with end to end and with the limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Judged {
    pub object: Object,
    /// The median round.
    pub median: Outcome,
    /// The fastest round.
    pub least: Outcome,
    /// The slowest round.
    pub greatest: Outcome,
    /// The speed relative to end to end; `None` for end to end itself.
    pub as_fast: Option<Times>,
    /// The share of the link's limit; `None` if the duration cannot be estimated.
    pub of_limit: Option<f64>,
}

impl Judged {
    /// Summarises the rounds; `None` if there are none.
    pub fn of(comparison: &Comparison, way: Way, object: Object) -> Option<Self> {
        let measured = comparison.of(way, object)?;
        let median = measured.median()?;
        let by_whole = |outcome: &&Outcome| outcome.whole(object);
        let plain = comparison.of(Way::EndToEnd, object).filter(|_| way != Way::EndToEnd);
        let limit = limit(&comparison.profile, object);
        Some(Self {
            object,
            median,
            least: *measured.outcomes.iter().min_by_key(by_whole)?,
            greatest: *measured.outcomes.iter().max_by_key(by_whole)?,
            as_fast: plain.and_then(|plain| Times::of(plain.median()?, median, object)),
            of_limit: median.estimate(object).map(|whole| ratio(limit, whole)),
        })
    }

    /// Formats the time: "2.1 s", or "> 45 s" if the transfer was cut.
    pub fn time(&self) -> String {
        match self.median {
            Outcome::Done(time) => units::time(time),
            Outcome::Cut { after, .. } => format!("> {}", units::time(after)),
        }
    }

    /// Formats the rate of a median that was cut: "1.4 Mbit/s".
    pub fn rate(&self) -> Option<String> {
        match (self.median, self.median.estimate(self.object)) {
            (Outcome::Done(_), _) => None,
            (Outcome::Cut { .. }, None) => Some("nothing came".to_owned()),
            (Outcome::Cut { after, bytes }, Some(_)) => {
                Some(units::rate(bytes as f64 * 8.0 / after.as_secs_f64().max(f64::MIN_POSITIVE)))
            }
        }
    }

    /// Formats the share of the limit: "84 %", prefixed by `about` if it is estimated from the rate of a cut transfer.
    pub fn share_of_limit(&self, about: &str) -> Option<String> {
        let about = if matches!(self.median, Outcome::Cut { .. }) { about } else { "" };
        self.of_limit.map(|share| format!("{about}{}", units::percent(share)))
    }

    /// Formats the fastest and the slowest round, if they differ as printed.
    pub fn range(&self, between: &str) -> Option<String> {
        let [least, greatest] = [self.least, self.greatest].map(|outcome| about(outcome, self.object));
        (least != greatest).then(|| span(&least, &greatest, between))
    }
}

/// Formats a range: "204–212 ms". A unit or prefix that both share appears once.
fn span(least: &str, greatest: &str, between: &str) -> String {
    let unit = |text: &str| text.rsplit(' ').next().map(str::to_owned);
    let least =
        least.rsplit_once(' ').filter(|_| unit(least) == unit(greatest)).map_or(least, |(number, _)| number);
    let greatest = greatest.strip_prefix("≈ ").filter(|_| least.starts_with('≈')).unwrap_or(greatest);
    format!("{least}{between}{greatest}")
}

/// Formats the duration of the whole object: measured, estimated ("≈"), or a lower bound (">").
pub(super) fn about(outcome: Outcome, object: Object) -> String {
    match (outcome, outcome.estimate(object)) {
        (Outcome::Done(time), _) => units::time(time),
        (Outcome::Cut { .. }, Some(whole)) => format!("≈ {}", units::time(whole)),
        (Outcome::Cut { after, .. }, None) => format!("> {}", units::time(after)),
    }
}

impl Outcome {
    /// Returns [`Outcome::whole`], or `None` if the transfer was cut before any payload arrived that allows an
    /// estimate.
    pub(super) fn estimate(self, object: Object) -> Option<Duration> {
        match self {
            Self::Cut { bytes, .. } if bytes == 0 || object.bytes() == 0 => None,
            _ => Some(self.whole(object)),
        }
    }

    /// Returns how long the transfer lasted, whether it completed or was cut.
    pub(super) const fn lasted(self) -> Duration {
        match self {
            Self::Done(time) | Self::Cut { after: time, .. } => time,
        }
    }
}

/// The speed relative to another way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Times {
    pub value: f64,
    pub known: Known,
}

/// The certainty of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// The whole transfer was measured.
    Measured,
    /// Estimated from the rate of a transfer that was cut.
    Estimated,
    /// The number is a lower bound.
    AtLeast,
}

impl Times {
    /// Compares `here` with `plain`; `None` if `here` cannot be estimated.
    fn of(plain: Outcome, here: Outcome, object: Object) -> Option<Self> {
        let here_whole = here.estimate(object)?;
        let (plain_whole, known) = match (plain.estimate(object), plain, here) {
            (None, ..) => (plain.lasted(), Known::AtLeast),
            (Some(whole), Outcome::Done(_), Outcome::Done(_)) => (whole, Known::Measured),
            (Some(whole), ..) => (whole, Known::Estimated),
        };
        Some(Self { value: ratio(plain_whole, here_whole), known })
    }

    /// Formats the number with the prefix for its certainty.
    pub fn number(self) -> String {
        let before = match self.known {
            Known::Measured => "",
            Known::Estimated => "≈ ",
            Known::AtLeast => "> ",
        };
        format!("{before}{}", units::times(self.value))
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}× as fast", self.number())
    }
}

/// Divides two times. The result is finite even if `under` is zero.
fn ratio(over: Duration, under: Duration) -> f64 {
    over.as_secs_f64() / under.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acceleration::Measured;
    use crate::wan::Profile;

    const LARGE: Object = Object::Down(20_000_000);
    const CUT: Outcome = Outcome::Cut { after: Duration::from_secs(45), bytes: 8_000_000 };
    const NOTHING: Outcome = Outcome::Cut { after: Duration::from_secs(45), bytes: 0 };

    fn pair_against(plain: &[Outcome], pair: &[Outcome]) -> Option<Judged> {
        let of = |way, outcomes: &[Outcome]| Measured { way, object: LARGE, outcomes: outcomes.to_vec() };
        let measured = vec![of(Way::EndToEnd, plain), of(Way::Pair, pair)];
        let comparison = Comparison { profile: Profile::clean(), measured, traces: Vec::new() };
        Judged::of(&comparison, Way::Pair, LARGE)
    }

    fn seconds(seconds: f64) -> Outcome {
        Outcome::Done(Duration::from_secs_f64(seconds))
    }

    fn as_fast(plain: Outcome, pair: Outcome) -> Option<String> {
        pair_against(&[plain], &[pair]).unwrap().as_fast.map(Times::number)
    }

    #[test]
    fn a_factor_shows_its_certainty() {
        assert_eq!(as_fast(seconds(20.0), seconds(2.0)).as_deref(), Some("10"));
        assert_eq!(as_fast(CUT, seconds(2.0)).as_deref(), Some("≈ 56"));
        assert_eq!(as_fast(NOTHING, seconds(2.0)).as_deref(), Some("> 22"));
        assert_eq!(as_fast(seconds(2.0), NOTHING), None);
    }

    #[test]
    fn the_share_of_the_limit_relates_to_the_whole_object() {
        let near = pair_against(&[], &[seconds(1.7719)]).unwrap();
        assert!((0.99..1.01).contains(&near.of_limit.unwrap()), "{near:?}");
        assert_eq!(near.as_fast, None);
        assert_eq!(pair_against(&[], &[NOTHING]).unwrap().of_limit, None);
        assert_eq!(pair_against(&[CUT], &[]), None);
    }

    #[test]
    fn a_cut_round_is_shown_as_a_rate_and_an_estimate() {
        let judged = pair_against(&[], &[CUT, CUT, seconds(40.0), NOTHING]).unwrap();
        assert_eq!((judged.time().as_str(), judged.rate().as_deref()), ("> 45 s", Some("1.4 Mbit/s")));
        assert_eq!(judged.range(" to ").as_deref(), Some("40 to > 45 s"));
        let estimated =
            pair_against(&[], &[CUT, Outcome::Cut { after: Duration::from_secs(45), bytes: 7_000_000 }]);
        assert_eq!(estimated.unwrap().range("–").as_deref(), Some("≈ 112–129 s"));
        let units = pair_against(&[], &[seconds(0.9), seconds(1.1)]).unwrap();
        assert_eq!(units.range("–").as_deref(), Some("900 ms–1.1 s"));
        assert_eq!(about(CUT, LARGE), "≈ 112 s");
        assert_eq!(pair_against(&[], &[NOTHING]).unwrap().rate().as_deref(), Some("nothing came"));
    }
}
