//! Expert capacity: Equation 1 of the paper and the rules of the authors' code.

use super::Routing;
use crate::spec::ResolvedLayer;

/// Slots one expert has for the tokens of one GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// C_g before it is rounded up for the pipelining degree.
    pub per_gpu: u64,
    /// The capacity factor f it amounts to: C_g · E / (k · T).
    pub factor: f64,
    /// Whether the GPUs have to agree on it this step (x <= 0).
    pub agreed: bool,
}

impl Capacity {
    /// Capacity under setting `x`: above 0 `k·int(x·ceil(T/E))`; 0 the largest count of any expert
    /// on any GPU; below 0 the smaller of that and `k·int(-x·ceil(T/E))` (Figure 10, Section 11 of
    /// the spec sheet). At least one slot, so that no expert is without a buffer.
    pub fn of(layer: &ResolvedLayer, x: f64, routing: &Routing<'_>) -> Capacity {
        let samples = layer.tokens().div_ceil(layer.num_experts) as f64;
        let fixed = |x: f64| u64::from(layer.spec.top_k) * (x * samples) as u64;
        let per_gpu = if x > 0.0 {
            fixed(x)
        } else {
            let needed = routing.largest_count(layer);
            if x < 0.0 {
                needed.min(fixed(-x))
            } else {
                needed
            }
        }
        .max(1);
        let factor = per_gpu as f64 * layer.num_experts as f64 / layer.routed_copies() as f64;
        Capacity {
            per_gpu,
            factor,
            agreed: x <= 0.0,
        }
    }

    /// Slots actually allocated: C_g rounded up to a multiple of `sharded_count · degree`, and of 128
    /// too where that product is over 256 (authors' code, `moe_layer.py`: `if alignment > 256:
    /// alignment = (alignment + 127) // 128 * 128`).
    pub fn padded(self, sharded_count: u64, degree: u64) -> u64 {
        let unit = sharded_count * degree;
        let unit = if unit > 256 {
            least_common_multiple(unit, 128)
        } else {
            unit
        };
        self.per_gpu.div_ceil(unit) * unit
    }
}

/// The smallest number that both divide.
pub(super) fn least_common_multiple(a: u64, b: u64) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor * b
}
