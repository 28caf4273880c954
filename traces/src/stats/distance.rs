//! How far two traces are from each other.

use serde::Serialize;

use super::TraceStats;
use super::layer::LayerStats;
use crate::error::{Place, TraceError};

/// One layer of two traces. Distances between experts are nothing where the traces differ in
/// experts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerDistance {
    /// Index of the MoE layer.
    pub layer: u32,
    /// Total variation distance between the mean shares: the part of the copies that would have to
    /// go elsewhere. 0 to 1.
    pub total_variation: Option<f64>,
    /// Jensen-Shannon divergence between the mean shares, in bits. 0 to 1.
    pub jensen_shannon_bits: Option<f64>,
    /// Pearson correlation of the mean shares; nothing where one of them is even.
    pub correlation: Option<f64>,
    /// Total variation distance between the mean shares sorted by size: how unlike the spread is,
    /// whichever experts are popular.
    pub sorted_total_variation: Option<f64>,
    /// Mean total variation distance step by step, where both have the same steps.
    pub per_step_total_variation: Option<f64>,
}

/// All layers that two traces have in common.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TraceDistance {
    /// One a common layer, ascending.
    pub layers: Vec<LayerDistance>,
    /// Layers of the first trace only.
    pub only_in_first: Vec<u32>,
    /// Layers of the second trace only.
    pub only_in_second: Vec<u32>,
}

impl TraceDistance {
    pub(super) fn new(first: &TraceStats, second: &TraceStats) -> Result<Self, TraceError> {
        let missing = |from: &TraceStats, other: &TraceStats| -> Vec<u32> {
            let layers = from.layers.iter().map(|stats| stats.layer);
            layers.filter(|&l| other.layer(l).is_none()).collect()
        };
        let both = first.layers.iter();
        let layers: Vec<LayerDistance> = both
            .filter_map(|a| Some(LayerDistance::new(a, second.layer(a.layer)?)))
            .collect();
        if layers.is_empty() {
            let of = |stats: &TraceStats| format!("{:?}", missing(stats, &Self::none()));
            return Err(TraceError::invalid(
                Place::of("layers"),
                "a layer that both traces have",
                format!("layers {} and {}", of(first), of(second)),
            ));
        }
        Ok(Self {
            layers,
            only_in_first: missing(first, second),
            only_in_second: missing(second, first),
        })
    }

    fn none() -> TraceStats {
        TraceStats { layers: Vec::new() }
    }
}

impl LayerDistance {
    fn new(a: &LayerStats, b: &LayerStats) -> Self {
        let alike = a.mean_shares.len() == b.mean_shares.len();
        let sorted = |shares: &[f64]| {
            let mut sorted = shares.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted
        };
        let (p, q) = (&a.mean_shares, &b.mean_shares);
        let steps = |of: &LayerStats| of.per_step.iter().map(|s| s.step).collect::<Vec<_>>();
        let per_step = (alike && steps(a) == steps(b)).then(|| {
            let pairs = a.shares.iter().zip(&b.shares);
            let sum: f64 = pairs.map(|(p, q)| total_variation(p, q)).sum();
            sum / a.shares.len().max(1) as f64
        });
        Self {
            layer: a.layer,
            total_variation: alike.then(|| total_variation(p, q)),
            jensen_shannon_bits: alike.then(|| jensen_shannon_bits(p, q)),
            correlation: alike.then(|| correlation(p, q)).flatten(),
            sorted_total_variation: alike.then(|| total_variation(&sorted(p), &sorted(q))),
            per_step_total_variation: per_step,
        }
    }
}

/// Half the sum of absolute differences of two distributions.
pub fn total_variation(p: &[f64], q: &[f64]) -> f64 {
    0.5 * p.iter().zip(q).map(|(p, q)| (p - q).abs()).sum::<f64>()
}

/// Jensen-Shannon divergence of two distributions, in bits.
pub fn jensen_shannon_bits(p: &[f64], q: &[f64]) -> f64 {
    let half = |from: f64, other: f64| {
        let middle = 0.5 * (from + other);
        if from > 0.0 {
            0.5 * from * libm::log2(from / middle)
        } else {
            0.0
        }
    };
    let pairs = p.iter().zip(q);
    // Rounding can leave a hair below 0.
    pairs
        .map(|(&p, &q)| half(p, q) + half(q, p))
        .sum::<f64>()
        .max(0.0)
}

fn correlation(p: &[f64], q: &[f64]) -> Option<f64> {
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    let (mp, mq) = (mean(p), mean(q));
    let product = |a: &[f64], ma: f64, b: &[f64], mb: f64| -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - ma) * (b - mb)).sum()
    };
    let spread = libm::sqrt(product(p, mp, p, mp) * product(q, mq, q, mq));
    (spread > 1e-18).then(|| product(p, mp, q, mq) / spread)
}
