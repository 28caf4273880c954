//! Percentiles of a sample and how sure they are.

/// A figure and the interval that holds the true one in 95 of 100 studies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Percentiles of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Percentiles {
    /// Draws.
    pub draws: usize,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: Interval,
    /// 95th percentile.
    pub p95: Interval,
    /// 99th percentile.
    pub p99: Interval,
}

impl Percentiles {
    /// The percentiles of `sample`; `None` where it is empty.
    pub fn of(sample: &[f64]) -> Option<Percentiles> {
        if sample.is_empty() {
            return None;
        }
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Percentiles {
            draws: sorted.len(),
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            p50: quantile(&sorted, 0.5),
            p95: quantile(&sorted, 0.95),
            p99: quantile(&sorted, 0.99),
        })
    }
}

/// The `p` quantile of a sorted sample by nearest rank, and its interval by order statistics: the number
/// of draws below the true quantile is binomial(n, p), whatever the distribution. Where the sample is too
/// small for an end, that end is the sample's.
fn quantile(sorted: &[f64], p: f64) -> Interval {
    let n = sorted.len();
    let at = |rank: usize| sorted[rank.clamp(1, n) - 1];
    let (mut low, mut high) = (1, n);
    let (mut below, mut chance) = (0.0, none_below(n, p));
    for count in 0..=n {
        // `chance` is the probability of exactly `count` draws below.
        if below + chance <= 0.025 {
            low = count + 1;
        }
        below += chance;
        if below >= 0.975 {
            high = (count + 1).min(n);
            break;
        }
        chance *= (n - count) as f64 / (count + 1) as f64 * p / (1.0 - p);
        if chance == 0.0 && count as f64 <= n as f64 * p {
            // Underflow far in the tail of a large sample: the normal approximation.
            let spread = 1.96 * (n as f64 * p * (1.0 - p)).sqrt();
            low = (n as f64 * p - spread) as usize;
            high = (n as f64 * p + spread).ceil() as usize + 1;
            break;
        }
    }
    Interval {
        value: at((n as f64 * p).ceil() as usize),
        low: at(low),
        high: at(high),
    }
}

/// Probability that none of `n` draws is below: (1 - p)^n.
fn none_below(n: usize, p: f64) -> f64 {
    (1.0 - p).powi(i32::try_from(n).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_the_first_hundred_numbers() {
        let sample: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let found = Percentiles::of(&sample).unwrap();
        assert_eq!(
            (found.p50.value, found.p95.value, found.p99.value),
            (50.0, 95.0, 99.0)
        );
        // Textbook: ranks 40 and 61 of 100 hold the median with 95 %.
        assert_eq!((found.p50.low, found.p50.high), (40.0, 61.0));
        assert_eq!(found.p99.high, 100.0);
    }

    #[test]
    fn a_large_sample_falls_back_to_the_normal_approximation() {
        let sample: Vec<f64> = (0..20_000).map(f64::from).collect();
        let found = Percentiles::of(&sample).unwrap();
        assert!((found.p50.high - found.p50.low - 277.0).abs() < 3.0);
        assert!(found.p99.low < found.p99.value && found.p99.value < found.p99.high);
    }

    #[test]
    fn one_draw_is_its_own_percentile() {
        let found = Percentiles::of(&[3.0]).unwrap();
        assert_eq!((found.p50.low, found.p99.high), (3.0, 3.0));
        assert_eq!(Percentiles::of(&[]), None);
    }
}
