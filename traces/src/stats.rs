//! A few numbers that say how uneven a step is.

use serde::Serialize;

use crate::routing::RoutingStep;

/// Unevenness of one step of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepStats {
    /// Index of the training step.
    pub step: u64,
    /// Index of the MoE layer.
    pub layer: u32,
    /// Token copies of all ranks.
    pub copies: u64,
    /// See [`RoutingStep::needed_capacity_factor`].
    pub needed_capacity_factor: f64,
    /// Copies that a capacity factor of 1 would drop, over all copies.
    pub dropped_at_one: f64,
    /// See [`RoutingStep::max_over_mean`].
    pub max_over_mean: f64,
    /// Standard deviation of the expert loads over their mean.
    pub coefficient_of_variation: f64,
    /// Entropy of the expert loads in bits; `log2(E)` when even.
    pub entropy_bits: f64,
}

impl StepStats {
    /// Measures `step`. All numbers are 0 for a step without tokens.
    pub fn of(step: &RoutingStep) -> Self {
        let loads = step.expert_loads();
        let experts = loads.len() as f64;
        let copies: u64 = loads.iter().sum();
        let mut stats = Self {
            step: step.step(),
            layer: step.layer(),
            copies,
            needed_capacity_factor: step.needed_capacity_factor(),
            dropped_at_one: 0.0,
            max_over_mean: step.max_over_mean(),
            coefficient_of_variation: 0.0,
            entropy_bits: 0.0,
        };
        if copies == 0 {
            return stats;
        }
        let dropped: u64 = step.rows().map(dropped_at_one).sum();
        stats.dropped_at_one = dropped as f64 / copies as f64;
        let mean = copies as f64 / experts;
        let squares: f64 = loads
            .iter()
            .map(|&load| (load as f64 - mean) * (load as f64 - mean))
            .sum();
        stats.coefficient_of_variation = libm::sqrt(squares / experts) / mean;
        let shares = loads.iter().map(|&load| load as f64 / copies as f64);
        stats.entropy_bits = shares
            .filter(|&share| share > 0.0)
            .map(|share| -share * libm::log2(share))
            .sum();
        stats
    }
}

/// Copies of a row beyond a capacity of `ceil(copies / experts)`.
fn dropped_at_one(row: &[u32]) -> u64 {
    let copies: u64 = row.iter().map(|&count| u64::from(count)).sum();
    let capacity = copies.div_ceil(row.len() as u64);
    row.iter()
        .map(|&count| u64::from(count).saturating_sub(capacity))
        .sum()
}
