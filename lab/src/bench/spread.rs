//! The median and the spread of rounds.

/// The statistics of a figure over some rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// The median.
    pub median: f64,
    /// The least value.
    pub min: f64,
    /// The greatest value.
    pub max: f64,
    /// The first and the third quartile.
    pub quartiles: (f64, f64),
}

impl Spread {
    /// Computes the statistics of `values`; `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let quartiles = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
        Some(Self { median: quantile(&sorted, 0.5), min, max, quartiles })
    }
}

/// Returns the quantile `at` of the sorted values, with linear interpolation.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let place = at * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// Returns the ratio of each round. Only values of the same round are compared.
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
    fn the_spread_has_the_range_and_the_quartiles() {
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
