//! Medians with intervals of order statistics: no distribution is assumed.

use serde::{Deserialize, Serialize};

/// How sure an interval is to be, where there are enough values.
const WANTED: f64 = 0.95;

/// A median and the interval that it lies in.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
    /// How probable it is that the true median is in the interval.
    pub coverage: f64,
}

impl Summary {
    /// None without values.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let n = values.len();
        let (lower, upper) = (values.get(n.checked_sub(1)? / 2)?, values.get(n / 2)?);
        // The narrowest pair of ranks whose binomial probability is enough; with few values, all of them.
        let rank = (0..n.div_ceil(2)).rev().find(|rank| coverage(n, *rank) >= WANTED).unwrap_or(0);
        Some(Self {
            median: f64::midpoint(*lower, *upper),
            low: *values.get(rank)?,
            high: *values.get(n - 1 - rank)?,
            coverage: coverage(n, rank),
        })
    }

    /// Whether the two may be the same: their intervals overlap.
    #[must_use]
    pub fn may_equal(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    /// `(self - floor) / (other - floor)`, of the medians, and how far the intervals let it go; none if the divisor may be
    /// nothing.
    #[must_use]
    pub fn ratio(&self, other: &Self, floor: Option<&Self>) -> Option<Ratio> {
        let none = Self { median: 0.0, low: 0.0, high: 0.0, coverage: 1.0 };
        let floor = floor.unwrap_or(&none);
        let divide = |above: f64, below: f64| (below > 0.0).then(|| above / below);
        Some(Ratio {
            median: divide(self.median - floor.median, other.median - floor.median)?,
            low: divide(self.low - floor.high, other.high - floor.low)?,
            high: divide(self.high - floor.low, other.low - floor.high)?,
        })
    }
}

/// A quotient of medians.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Of the medians.
    pub median: f64,
    /// The least that the intervals allow.
    pub low: f64,
    /// The most.
    pub high: f64,
}

/// How probable it is that the median is between the values of rank `rank` from below and from above, of `n`.
fn coverage(n: usize, rank: usize) -> f64 {
    // P(at most `rank` of n coins are heads), twice, is outside.
    let mut term = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut below = 0.0;
    for k in 0..=rank {
        below += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    1.0 - 2.0 * below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_the_binomials() {
        // As in every table of the sign test: n = 30 gives the 10th value from either side, 95.7 %.
        let thirty = Summary::of((1..=30).map(f64::from)).unwrap();
        assert_eq!((thirty.median, thirty.low, thirty.high), (15.5, 10.0, 21.0));
        assert!((thirty.coverage - 0.957).abs() < 0.001, "{}", thirty.coverage);
        // Three values cannot be surer than this.
        let three = Summary::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((three.median, three.low, three.high, three.coverage), (2.0, 1.0, 3.0, 0.75));
        let one = Summary::of([4.0]).unwrap();
        assert_eq!((one.median, one.low, one.high, one.coverage), (4.0, 4.0, 4.0, 0.0));
        assert_eq!(Summary::of([]), None);
    }

    fn summary(low: f64, median: f64, high: f64) -> Summary {
        Summary { median, low, high, coverage: 0.95 }
    }

    #[test]
    fn intervals_that_touch_decide_nothing() {
        let one = summary(1.0, 2.0, 3.0);
        assert!(one.may_equal(&summary(3.0, 4.0, 5.0)) && summary(3.0, 4.0, 5.0).may_equal(&one));
        assert!(!one.may_equal(&summary(3.1, 4.0, 5.0)) && !summary(3.1, 4.0, 5.0).may_equal(&one));
    }

    #[test]
    fn ratios_are_taken_above_the_floor() {
        let (husk, runc, null) =
            (summary(180.0, 190.0, 200.0), summary(240.0, 250.0, 260.0), summary(80.0, 90.0, 100.0));
        let plain = husk.ratio(&runc, None).unwrap();
        assert_eq!((plain.median, plain.low, plain.high), (190.0 / 250.0, 180.0 / 260.0, 200.0 / 240.0));
        let above = husk.ratio(&runc, Some(&null)).unwrap();
        assert_eq!((above.median, above.low, above.high), (100.0 / 160.0, 80.0 / 180.0, 120.0 / 140.0));
        assert_eq!(husk.ratio(&null, Some(&null)), None);
    }
}
