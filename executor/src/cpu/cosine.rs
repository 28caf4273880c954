//! The logits of a cosine gate and their gradient.

use super::gate::{Backward, product};
use super::gemm;
use crate::ExecError;
use crate::cosine::{CosineLayout, Vectors};

/// Below it a vector counts as this long.
const SHORTEST: f32 = 1e-12;

impl Vectors {
    /// Places of a vector's channels.
    fn channels(self, vector: usize) -> impl Iterator<Item = usize> + Clone {
        (0..self.channels).map(move |c| vector * self.stride + c * self.channel_stride)
    }

    /// Brings every vector to `length`; `factors` get what each was multiplied by.
    fn normalize(self, length: f32, values: &mut [f32], factors: &mut [f32]) {
        for (vector, factor) in factors.iter_mut().enumerate().take(self.count) {
            let squares: f32 = self
                .channels(vector)
                .map(|at| values[at] * values[at])
                .sum();
            *factor = length / squares.sqrt().max(SHORTEST);
            self.channels(vector).for_each(|at| values[at] *= *factor);
        }
    }

    /// From the gradient of the normalised vectors `y` to that of the vectors, in place:
    /// `factor · (dy - y (y·dy) / length²)`. Returns the sum of all `y·dy`.
    fn gradient(self, length: f32, y: &[f32], factors: &[f32], gradient: &mut [f32]) -> f32 {
        let mut sum = 0.0;
        for (vector, factor) in factors.iter().enumerate().take(self.count) {
            let places = self.channels(vector);
            let dot: f32 = places.clone().map(|at| y[at] * gradient[at]).sum();
            let along = dot / (length * length);
            places.for_each(|at| gradient[at] = factor * (gradient[at] - y[at] * along));
            sum += dot;
        }
        sum
    }
}

impl CosineLayout {
    /// `exp(min(temperature, ln 100))`, and whether it still moves with the temperature.
    fn length(self, weights: &[f32]) -> (f32, bool) {
        let (temperature, most) = (weights[self.temperature()], 100.0_f32.ln());
        (temperature.min(most).exp(), temperature < most)
    }

    /// Splits the directions: tokens, experts, factors of tokens, factors of experts.
    fn split(self, directions: &mut [f32]) -> [&mut [f32]; 4] {
        let (tokens, rest) = directions.split_at_mut(self.token_directions().end);
        let (experts, rest) = rest.split_at_mut(self.expert_directions().len());
        let (of_tokens, of_experts) = rest.split_at_mut(self.tokens);
        [tokens, experts, of_tokens, of_experts]
    }
}

/// Logits (T, E) of `tokens` (T, D): directions of tokens times those of experts. Fills the directions.
pub(super) fn logits(
    layout: CosineLayout,
    tokens: &[f32],
    weights: &[f32],
    directions: &mut [f32],
    logits: &mut [f32],
) -> Result<(), ExecError> {
    let [t, d, e, p] = layout.sizes();
    let [of_tokens, of_experts, token_factors, expert_factors] = layout.split(directions);
    let project = product([t, p, d], [false; 2], false);
    gemm::run(&project, tokens, &weights[layout.projection()], of_tokens)?;
    layout
        .token_vectors()
        .normalize(1.0, of_tokens, token_factors);
    of_experts.copy_from_slice(&weights[layout.experts()]);
    let (length, _) = layout.length(weights);
    layout
        .expert_vectors()
        .normalize(length, of_experts, expert_factors);
    let compare = product([t, e, p], [false; 2], false);
    gemm::run(&compare, of_tokens, of_experts, logits)
}

/// Gradients of tokens (added) and weights, from that of the logits (T, E). `scratch` is as large as the directions.
pub(super) fn gradient(
    layout: CosineLayout,
    by_logits: &[f32],
    directions: &[f32],
    scratch: &mut [f32],
    backward: Backward<'_>,
) -> Result<(), ExecError> {
    let [t, d, e, p] = layout.sizes();
    let (of_tokens, of_experts) = (
        &directions[layout.token_directions()],
        &directions[layout.expert_directions()],
    );
    let [by_tokens, by_experts, _, _] = layout.split(scratch);
    let to_tokens = product([t, p, e], [false, true], false);
    gemm::run(&to_tokens, by_logits, of_experts, by_tokens)?;
    let to_experts = product([p, e, t], [true, false], false);
    gemm::run(&to_experts, of_tokens, by_logits, by_experts)?;

    let factors = &directions[layout.token_factors()];
    layout
        .token_vectors()
        .gradient(1.0, of_tokens, factors, by_tokens);
    let (length, learns) = layout.length(backward.weight);
    let factors = &directions[layout.expert_factors()];
    let by_temperature = layout
        .expert_vectors()
        .gradient(length, of_experts, factors, by_experts);

    let (projection, rest) = backward
        .weight_gradient
        .split_at_mut(layout.projection().end);
    let to_projection = product([d, p, t], [true, false], false);
    gemm::run(&to_projection, backward.tokens, by_tokens, projection)?;
    rest[..p * e].copy_from_slice(by_experts);
    rest[p * e] = if learns { by_temperature } else { 0.0 };
    let to_tokens = product([t, d, p], [false, true], true);
    let projection = &backward.weight[layout.projection()];
    gemm::run(&to_tokens, by_tokens, projection, backward.token_gradient)
}
