//! Medians, and how far the rounds lie apart.

/// What some rounds have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// As many rounds are below as above.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// Half of the rounds are between these.
    pub quartiles: (f64, f64),
}

impl Spread {
    /// Of the values of some rounds; none of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let quartiles = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
        Some(Self { median: quantile(&sorted, 0.5), min, max, quartiles })
    }
}

/// The value below which the share `at` of the sorted values lies, between two of them by proportion.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let place = at * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// The ratio of each round: only what was measured in the same round is compared.
pub(super) fn ratios(ours: &[f64], theirs: &[f64]) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_middle_two() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]).map(|spread| spread.median), Some(2.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn the_spread_has_the_ends_and_the_middle_half() {
        let spread = Spread::of(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(spread, Some(Spread { median: 3.0, min: 1.0, max: 5.0, quartiles: (2.0, 4.0) }));
        let one = Spread::of(&[7.0]);
        assert_eq!(one, Some(Spread { median: 7.0, min: 7.0, max: 7.0, quartiles: (7.0, 7.0) }));
    }

    #[test]
    fn ratios_are_those_of_each_round_not_of_the_medians() {
        // A machine that is twice as fast in the second round changes no ratio.
        assert_eq!(ratios(&[9.0, 18.0, 8.0], &[10.0, 20.0, 10.0]), [0.9, 0.9, 0.8]);
    }
}
