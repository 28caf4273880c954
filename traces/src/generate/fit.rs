//! Routing like a recorded trace, as long and for as many ranks as asked.

use rand_chacha::rand_core::RngCore;

use super::fixed_point;
use crate::draw::{Shares, Source, fill_rows, stream};
use crate::error::{Place, TraceError};
use crate::routing::{RoutingStep, Shape};

/// A part of the recording, one over this, over which the trend is smoothed to either side, and
/// from how far away residuals are taken: short against the run, long against a step.
const REACH: usize = 32;

/// A recorded trace, taken apart so that others like it can be made.
///
/// Per layer, the logarithm of every expert's share is a trend over the run (a moving average over
/// a sixteenth of it, which keeps marginals and long waves), a residual of each step, and what each
/// rank differs from the step. A new run follows the trend, stretched to its length, and borrows
/// residuals and ranks' differences in blocks of neighbouring recorded steps from about the same
/// part of the run (the local block bootstrap of Paparoditis and Politis, 2002). A block is taken
/// from all layers, experts and ranks at once, which keeps the autocorrelation within it and how
/// they move together. Both parts are shrunk by what sampling noise must have added to them,
/// because the new draw adds its own.
///
/// Not kept: how residuals go on from one block to the next, and paths of single tokens.
#[derive(Debug, Clone)]
pub struct FittedTrace<'a> {
    layers: Vec<FittedLayer<'a>>,
    times: usize,
}

#[derive(Debug, Clone)]
struct FittedLayer<'a> {
    layer: u32,
    steps: Vec<&'a RoutingStep>,
    /// `[times, experts]`.
    logs: Vec<Vec<f64>>,
    trend: Vec<Vec<f64>>,
    /// What is kept of a residual, 0 to 1.
    of_steps: f64,
    /// What is kept of a rank's difference, 0 to 1.
    of_ranks: f64,
}

impl<'a> FittedTrace<'a> {
    /// Takes `steps`, ascending in (step, layer), apart.
    ///
    /// # Errors
    /// No steps, steps of unlike sizes, or layers that were not recorded at the same steps.
    pub fn new(steps: &'a [RoutingStep]) -> Result<Self, TraceError> {
        let mut numbers: Vec<u32> = steps.iter().map(RoutingStep::layer).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let of = |layer: u32| -> Vec<&RoutingStep> {
            steps.iter().filter(|step| step.layer() == layer).collect()
        };
        let sizes = |step: &RoutingStep| (step.num_experts(), step.top_k(), step.source_ranks());
        let alike = steps.windows(2).all(|two| sizes(&two[0]) == sizes(&two[1]));
        let times = numbers.first().map_or(0, |&first| of(first).len());
        let whole = numbers.iter().all(|&layer| of(layer).len() == times);
        if times == 0 || !alike || !whole {
            return Err(TraceError::invalid(
                Place::of("like"),
                "a trace of steps of one size, all layers recorded at every step",
                format!("{} steps of {} layers", steps.len(), numbers.len()),
            ));
        }
        let layers = numbers
            .into_iter()
            .map(|layer| FittedLayer::new(layer, of(layer)));
        Ok(Self {
            layers: layers.collect(),
            times,
        })
    }

    /// Step `index` of a run of `count`, all layers. `ranks` beyond the recorded ones read as those
    /// do, in turn; without `tokens_per_rank` every rank has as many tokens as in the recording.
    ///
    /// # Errors
    /// A run too large for memory.
    pub fn generate(
        &self,
        ranks: usize,
        tokens_per_rank: Option<u32>,
        seed: u64,
        index: u64,
        count: u64,
    ) -> Result<Vec<RoutingStep>, TraceError> {
        let time = self.borrowed(seed, index, count);
        let position = position(self.times, index, count);
        let layers = self.layers.iter();
        layers
            .map(|layer| layer.generate(ranks, tokens_per_rank, seed, index, (position, time)))
            .collect()
    }

    /// The recorded step whose residuals step `index` borrows.
    fn borrowed(&self, seed: u64, index: u64, count: u64) -> usize {
        let length = (libm::sqrt(self.times as f64) as usize).max(1);
        let (block, within) = (index / length as u64, (index % length as u64) as usize);
        let start = position(self.times, block * length as u64, count) as usize;
        let reach = self.times / REACH;
        let mut rng = stream(seed, "block", block, 0, 0);
        let shift = (rng.next_u64() % (2 * reach as u64 + 1)) as usize;
        let start = (start + shift).saturating_sub(reach);
        start.min(self.times - length) + within
    }
}

/// Where in a recording of `times` steps step `index` of `count` lies.
fn position(times: usize, index: u64, count: u64) -> f64 {
    let last = count.saturating_sub(1).max(1) as f64;
    (index as f64 / last).min(1.0) * (times - 1) as f64
}

impl<'a> FittedLayer<'a> {
    fn new(layer: u32, steps: Vec<&'a RoutingStep>) -> Self {
        let logs: Vec<Vec<f64>> = steps
            .iter()
            .map(|step| log_shares(step.expert_loads().into_iter()))
            .collect();
        let reach = steps.len() / REACH;
        let trend: Vec<Vec<f64>> = (0..logs.len())
            .map(|time| {
                let (from, to) = (
                    time.saturating_sub(reach),
                    (time + reach + 1).min(logs.len()),
                );
                mean_of(&logs[from..to])
            })
            .collect();
        let mut layer = Self {
            layer,
            steps,
            logs,
            trend,
            of_steps: 1.0,
            of_ranks: 1.0,
        };
        let window = (2 * reach + 1) as f64;
        layer.of_steps = layer.signal_of_steps(1.0 - 1.0 / window);
        layer.of_ranks = layer.signal_of_ranks();
        layer
    }

    /// The part of the residuals' spread that is not sampling noise, as a factor of amplitude.
    /// Weighted by shares, the logarithm of a count has the noise `E / copies`; `part` of it is
    /// left after the trend has taken its own.
    fn signal_of_steps(&self, part: f64) -> f64 {
        let (mut seen, mut noise) = (0.0, 0.0);
        for ((step, logs), trend) in self.steps.iter().zip(&self.logs).zip(&self.trend) {
            seen += spread(logs, logs, trend);
            noise += part * logs.len() as f64 / step.total().max(1) as f64;
        }
        kept(seen, noise)
    }

    /// The same for what ranks differ from their step.
    fn signal_of_ranks(&self) -> f64 {
        let ranks = self.steps[0].source_ranks() as f64;
        let (mut seen, mut noise) = (0.0, 0.0);
        for (step, logs) in self.steps.iter().zip(&self.logs) {
            for row in step.rows() {
                let copies: u64 = row.iter().map(|&count| u64::from(count)).sum();
                if copies > 0 {
                    let own = log_shares(row.iter().map(|&count| count.into()));
                    seen += spread(logs, &own, logs);
                    noise += (1.0 - 1.0 / ranks) * row.len() as f64 / copies as f64;
                }
            }
        }
        kept(seen, noise)
    }

    fn generate(
        &self,
        ranks: usize,
        tokens_per_rank: Option<u32>,
        seed: u64,
        index: u64,
        (position, time): (f64, usize),
    ) -> Result<RoutingStep, TraceError> {
        let recorded = self.steps[time];
        let (before, part) = (position as usize, position - libm::floor(position));
        let after = (before + 1).min(self.trend.len() - 1);
        let reach = self.logs.len() / REACH + 1;
        let near =
            &self.logs[before.saturating_sub(reach)..(after + reach + 1).min(self.logs.len())];
        let base: Vec<f64> = (0..recorded.num_experts())
            .map(|e| {
                let trend = (1.0 - part) * self.trend[before][e] + part * self.trend[after][e];
                let borrowed = self.of_steps * (self.logs[time][e] - self.trend[time][e]);
                // Where loads change fast a residual of another step would overshoot: no share
                // leaves the range it had nearby.
                let logs = near.iter().map(|logs| logs[e]);
                let least = logs.clone().fold(f64::INFINITY, f64::min);
                let most = logs.fold(f64::NEG_INFINITY, f64::max);
                (trend + borrowed).clamp(least, most)
            })
            .collect();
        let tokens = |rank: usize| tokens_per_rank.unwrap_or_else(|| recorded.tokens(rank));
        let sources: Vec<Source> = (0..recorded.source_ranks().min(ranks))
            .map(|rank| {
                let own = log_shares(recorded.counts(rank).iter().map(|&count| count.into()));
                let logs: Vec<f64> = base
                    .iter()
                    .zip(own.iter().zip(&self.logs[time]))
                    .map(|(base, (own, step))| base + self.of_ranks * (own - step))
                    .collect();
                let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = logs.iter().map(|log| libm::exp(log - most)).collect();
                let shares = Shares::new(&fixed_point(&weights), recorded.top_k());
                Source(vec![(shares, tokens(rank))])
            })
            .collect();
        let most = sources.iter().map(|Source(parts)| parts[0].1).max();
        let shape = Shape {
            ranks,
            experts: recorded.num_experts(),
            tokens_per_rank: most.unwrap_or(1).max(1),
            top_k: recorded.top_k(),
        };
        shape.check()?;
        let counts = fill_rows(&shape, &sources, 1, |rank| {
            stream(seed, "like", index, self.layer, rank)
        });
        Ok(RoutingStep::from_checked(
            index,
            self.layer,
            shape.top_k,
            shape.experts,
            counts,
        ))
    }
}

/// Logarithms of shares, half a copy added to each so that none is minus infinity.
fn log_shares(counts: impl ExactSizeIterator<Item = u64> + Clone) -> Vec<f64> {
    let all = counts.clone().sum::<u64>() as f64 + 0.5 * counts.len() as f64;
    counts
        .map(|count| libm::log((count as f64 + 0.5) / all))
        .collect()
}

/// Squared distance of `a` and `b`, weighted by the shares whose logarithms are `weights`.
fn spread(weights: &[f64], a: &[f64], b: &[f64]) -> f64 {
    let pairs = weights.iter().zip(a.iter().zip(b));
    pairs
        .map(|(log, (a, b))| libm::exp(*log) * (a - b) * (a - b))
        .sum()
}

fn kept(seen: f64, noise: f64) -> f64 {
    if seen > noise {
        libm::sqrt(1.0 - noise / seen)
    } else {
        0.0
    }
}

fn mean_of(rows: &[Vec<f64>]) -> Vec<f64> {
    let count = rows.len() as f64;
    (0..rows[0].len())
        .map(|e| rows.iter().map(|row| row[e]).sum::<f64>() / count)
        .collect()
}
