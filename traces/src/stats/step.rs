//! A few numbers that say how uneven a step is.

use serde::Serialize;

use crate::routing::RoutingStep;

/// Unevenness of one step of one layer. All numbers are 0 for a step without tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepStats {
    /// Index of the training step.
    pub step: u64,
    /// Index of the MoE layer.
    pub layer: u32,
    /// Token copies of all ranks.
    pub copies: u64,
    /// See [`RoutingStep::needed_capacity_factor`].
    pub needed_capacity_factor: f64,
    /// See [`RoutingStep::max_over_mean`].
    pub max_over_mean: f64,
    /// Standard deviation of the expert loads over their mean, of the population.
    pub coefficient_of_variation: f64,
    /// Gini coefficient of the expert loads: 0 when even, `1 - 1/E` when one expert has all.
    pub gini: f64,
    /// Entropy of the expert loads in bits; `log2(E)` when even.
    pub entropy_bits: f64,
    /// Share of the copies that the busiest expert gets.
    pub top_share: f64,
    /// Share of the copies that the busiest tenth of the experts gets, rounded up to whole experts.
    pub top_tenth_share: f64,
    /// How unlike the ranks are: mean over them of the total variation distance between the
    /// shares of a rank and those of all ranks, each rank counted by its copies. 0 to 1; sampling
    /// noise alone gives about `0.4 * sqrt(E / copies of a rank)`.
    pub source_divergence: f64,
    /// Copies beyond capacity over all copies, one number for each capacity factor asked for.
    pub dropped: Vec<f64>,
}

impl StepStats {
    /// Measures `step`; `dropped` at capacity factor 1.
    pub fn of(step: &RoutingStep) -> Self {
        Self::at(step, &[1.0])
    }

    /// Measures `step`; `dropped` at each of `capacity_factors`.
    ///
    /// The capacity of a rank and expert is `ceil(f * copies of the rank / E)`.
    pub fn at(step: &RoutingStep, capacity_factors: &[f64]) -> Self {
        let loads = step.expert_loads();
        Self::with_loads(step, &loads, capacity_factors)
    }

    /// As [`StepStats::at`], where the loads are known.
    pub(super) fn with_loads(step: &RoutingStep, loads: &[u64], capacity_factors: &[f64]) -> Self {
        let copies: u64 = loads.iter().sum();
        let mut stats = Self {
            step: step.step(),
            layer: step.layer(),
            copies,
            needed_capacity_factor: 0.0,
            max_over_mean: 0.0,
            coefficient_of_variation: 0.0,
            gini: 0.0,
            entropy_bits: 0.0,
            top_share: 0.0,
            top_tenth_share: 0.0,
            source_divergence: 0.0,
            dropped: vec![0.0; capacity_factors.len()],
        };
        if copies > 0 {
            stats.measure_loads(loads);
            stats.measure_rows(step, loads, capacity_factors);
        }
        stats
    }

    fn measure_loads(&mut self, loads: &[u64]) {
        let (experts, copies) = (loads.len() as f64, self.copies as f64);
        let mean = copies / experts;
        let mut sorted = loads.to_vec();
        sorted.sort_unstable();
        let most = sorted.last().copied().unwrap_or(0);
        self.top_share = most as f64 / copies;
        self.max_over_mean = most as f64 * experts / copies;
        let tenth = loads.len().div_ceil(10);
        let top: u64 = sorted.iter().rev().take(tenth).sum();
        self.top_tenth_share = top as f64 / copies;
        let squares: f64 = loads
            .iter()
            .map(|&load| (load as f64 - mean) * (load as f64 - mean))
            .sum();
        self.coefficient_of_variation = libm::sqrt(squares / experts) / mean;
        let shares = loads.iter().map(|&load| load as f64 / copies);
        self.entropy_bits = shares
            .filter(|&share| share > 0.0)
            .map(|share| -share * libm::log2(share))
            .sum();
        // sum_i (2 i - E - 1) x_i / (E sum x) over ascending loads, i from 1.
        let weighted: f64 = (1_u64..)
            .zip(&sorted)
            .map(|(i, &load)| (2.0 * i as f64 - experts - 1.0) * load as f64)
            .sum();
        self.gini = weighted / (experts * copies);
    }

    fn measure_rows(&mut self, step: &RoutingStep, loads: &[u64], capacity_factors: &[f64]) {
        let (experts, copies) = (loads.len() as f64, self.copies as f64);
        let shares: Vec<f64> = loads.iter().map(|&load| load as f64 / copies).collect();
        let mut dropped = vec![0_u64; capacity_factors.len()];
        let mut apart = 0.0;
        for row in step.rows() {
            let (sum, most) = sum_and_most(row);
            if sum == 0 {
                continue;
            }
            let needed = f64::from(most) * experts / sum as f64;
            self.needed_capacity_factor = self.needed_capacity_factor.max(needed);
            for (dropped, f) in dropped.iter_mut().zip(capacity_factors) {
                // What a product such as 1.1 * 10 has too much is no slot.
                let capacity = libm::ceil(f * sum as f64 / experts - 1e-9);
                if f64::from(most) > capacity {
                    *dropped += beyond(row, capacity as u32);
                }
            }
            apart += distance(row, &shares, sum as f64);
        }
        self.source_divergence = 0.5 * apart / copies;
        for (share, dropped) in self.dropped.iter_mut().zip(dropped) {
            *share = dropped as f64 / copies;
        }
    }
}

/// Sum and largest of a row.
fn sum_and_most(row: &[u32]) -> (u64, u32) {
    row.iter().fold((0, 0), |(sum, most), &count| {
        (sum + u64::from(count), most.max(count))
    })
}

fn beyond(row: &[u32], capacity: u32) -> u64 {
    row.iter()
        .map(|&count| u64::from(count.saturating_sub(capacity)))
        .sum()
}

/// `sum_e |row_e - sum * share_e|`, in four lanes: one chain of additions would wait for itself.
fn distance(row: &[u32], shares: &[f64], sum: f64) -> f64 {
    let mut lanes = [0.0; 4];
    let (rows, shares_4) = (row.chunks_exact(4), shares.chunks_exact(4));
    let rest = rows.remainder().iter().zip(shares_4.remainder());
    let rest: f64 = rest.map(|(&c, s)| (f64::from(c) - sum * s).abs()).sum();
    for (row, shares) in rows.zip(shares_4) {
        for ((lane, &count), share) in lanes.iter_mut().zip(row).zip(shares) {
            *lane += (f64::from(count) - sum * share).abs();
        }
    }
    (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]) + rest
}
