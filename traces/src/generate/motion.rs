//! How popularity looks at a step: drawn, moved, mixed, flattened and sharpened.

use super::variates::{dirichlet, open_unit, power_law};
use super::{Curve, Popularity, RoutingSpec};
use crate::draw::{below, stream};
use crate::routing::Shape;

/// Most halvings of the interval in which a power is looked for: as fine as a double.
const HALVINGS: usize = 60;
/// Largest power of shares tried.
const MAX_POWER: f64 = 64.0;

impl RoutingSpec {
    /// Shares of the experts, up to a common factor, of the ranks of one domain.
    pub(super) fn weights(
        &self,
        shape: &Shape,
        seed: u64,
        step: u64,
        layer: u32,
        domain: u32,
    ) -> Vec<f64> {
        let experts = shape.experts;
        let epoch = step.checked_div(self.phase).unwrap_or(0);
        if self.burst > 0 && step % self.burst != self.burst - 1 {
            return vec![1.0; experts];
        }
        // Stream 0 is what all ranks have in common.
        let mut weights = self.drifted(experts, seed, step, (epoch, layer, 0));
        if let Some(domains) = self.domains {
            let own = self.drifted(experts, seed, step, (epoch, layer, 1 + domain));
            let (common, own) = (shares(&weights), shares(&own));
            let mixed = common.iter().zip(&own);
            weights = mixed
                .map(|(common, own)| (1.0 - domains.own) * common + domains.own * own)
                .collect();
        }
        if self.balance > 0.0 {
            let kept = libm::exp2(-(step as f64) / self.balance);
            let even = 1.0 / experts as f64;
            weights = shares(&weights)
                .iter()
                .map(|share| even + (share - even) * kept)
                .collect();
        }
        if let Some(curve) = self.capacity {
            let factor = curve.at(seed, step, layer);
            weights = sharpened(&weights, factor / experts as f64);
        }
        weights
    }

    /// Popularity of one stream (epoch, layer, rank of the stream) at `step`, after its drift.
    fn drifted(
        &self,
        experts: usize,
        seed: u64,
        step: u64,
        (epoch, layer, rank): (u64, u32, u32),
    ) -> Vec<f64> {
        let mut rng = stream(seed, "popularity", epoch, layer, rank);
        let still: Vec<f64> = match self.popularity {
            Popularity::Uniform | Popularity::Workload(_) => vec![1.0; experts],
            Popularity::Zipf(exponent) => {
                let mut weights: Vec<f64> = (1..=experts)
                    .map(|rank| libm::pow(rank as f64, -exponent))
                    .collect();
                for i in (1..experts).rev() {
                    weights.swap(i, below(&mut rng, i + 1));
                }
                weights
            }
            Popularity::Dirichlet(alpha) => dirichlet(&mut rng, alpha, experts),
            Popularity::Power(exponent) => {
                power_law(&mut rng, exponent, experts.max(2) as f64, experts)
            }
            Popularity::Hot(share) if experts > 1 => {
                let mut weights = vec![(1.0 - share) / (experts - 1) as f64; experts];
                weights[below(&mut rng, experts)] = share;
                weights
            }
            Popularity::Hot(_) => vec![1.0],
        };
        let moved = step as f64 * self.drift;
        let (whole, part) = (libm::floor(moved), moved - libm::floor(moved));
        let whole = (whole as u64 % experts as u64) as usize;
        let at = |expert: usize, back: usize| still[(expert + 2 * experts - back) % experts];
        (0..experts)
            .map(|e| (1.0 - part) * at(e, whole) + part * at(e, whole + 1))
            .collect()
    }
}

impl Curve {
    /// The capacity factor at `step`: three cosines with phases drawn per layer, stretched so that
    /// the run goes from `least` to `most`.
    fn at(&self, seed: u64, step: u64, layer: u32) -> f64 {
        let mut rng = stream(seed, "capacity", 0, layer, 0);
        let phases = [0; 3].map(|_| open_unit(&mut rng));
        let raw = |x: f64| {
            let wave = |(height, times, phase): (f64, f64, f64)| {
                height * libm::cos(std::f64::consts::TAU * (times * x + phase))
            };
            [1.0, 0.6, 0.4]
                .into_iter()
                .zip([1.0, 2.0, 3.0])
                .zip(phases)
                .map(|((height, times), phase)| wave((height, times, phase)))
                .sum::<f64>()
        };
        // Finer than the fastest cosine needs.
        let grid = (0..=256).map(|i| raw(f64::from(i) / 256.0));
        let (low, high) = grid.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        let x = (step % self.over) as f64 / self.over as f64;
        let height = ((raw(x) - low) / (high - low)).clamp(0.0, 1.0);
        self.least + (self.most - self.least) * height
    }
}

/// `weights` over their sum.
fn shares(weights: &[f64]) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// `weights` to the power at which the largest share is `wanted`, as far as the spread allows:
/// equal weights stay equal.
fn sharpened(weights: &[f64], wanted: f64) -> Vec<f64> {
    let most = weights.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let logs: Vec<f64> = weights.iter().map(|w| libm::log(w / most)).collect();
    let raised = |power: f64| -> Vec<f64> { logs.iter().map(|l| libm::exp(l * power)).collect() };
    // The largest is 1, so its share is one over the sum, which falls as the power grows.
    let (mut low, mut high) = (0.0, MAX_POWER);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        let sum: f64 = raised(middle).iter().sum();
        if 1.0 / sum < wanted {
            low = middle;
        } else {
            high = middle;
        }
    }
    raised(0.5 * (low + high))
}
