//! A cosine gate as products and launches.

use super::gate::product;
use super::plan::{Planner, Steps, plain};
use crate::ExecError;
use crate::cosine::CosineLayout;
use moeplan_kernels::{
    Arguments as _, In, Launch, Normalize, NormalizeGradient, Out, Product, Real,
};
use moeplan_sim::ir::BufferId;

/// One thing that logits are made by.
#[derive(Debug, Clone)]
pub(super) enum Part {
    Multiply(Product),
    Launch(Launch),
}

/// A cosine gate in device memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cosine {
    pub(super) layout: CosineLayout,
    /// Its weights.
    pub(super) weights: u64,
    /// Its directions.
    pub(super) directions: u64,
}

/// Address of an element of `buffer`.
fn at(buffer: u64, element: usize) -> u64 {
    buffer + 4 * element as u64
}

impl Cosine {
    fn temperature(&self) -> In<f32> {
        In::at(at(self.weights, self.layout.temperature()))
    }

    fn projection(&self) -> u64 {
        at(self.weights, self.layout.projection().start)
    }

    fn token_directions(&self) -> u64 {
        at(self.directions, self.layout.token_directions().start)
    }

    fn expert_directions(&self) -> u64 {
        at(self.directions, self.layout.expert_directions().start)
    }

    /// Logits (T, E) of `tokens` (T, D), and the directions.
    pub(super) fn logits(&self, tokens: u64, logits: u64) -> [Part; 4] {
        let [t, d, e, p] = self.layout.sizes();
        let (token, expert) = (self.layout.token_vectors(), self.layout.expert_vectors());
        let (of_tokens, of_experts) = (self.token_directions(), self.expert_directions());
        let multiply =
            |shape, addresses| Part::Multiply(product(shape, addresses, [false; 2], false));
        let normalize = |arguments: Normalize| Part::Launch(arguments.launch(Real::F32));
        [
            multiply([t, p, d], [tokens, self.projection(), of_tokens]),
            normalize(Normalize {
                from: In::at(of_tokens),
                temperature: None,
                to: Out::at(of_tokens),
                factors: Out::at(at(self.directions, self.layout.token_factors().start)),
                num_vectors: token.count as i64,
                channels: token.channels as i64,
                vector_stride: token.stride as i64,
                channel_stride: token.channel_stride as i64,
            }),
            normalize(Normalize {
                from: In::at(at(self.weights, self.layout.experts().start)),
                temperature: Some(self.temperature()),
                to: Out::at(of_experts),
                factors: Out::at(at(self.directions, self.layout.expert_factors().start)),
                num_vectors: expert.count as i64,
                channels: expert.channels as i64,
                vector_stride: expert.stride as i64,
                channel_stride: expert.channel_stride as i64,
            }),
            multiply([t, e, p], [of_tokens, of_experts, logits]),
        ]
    }
}

impl Planner<'_> {
    /// Gradients of weights and, added, of tokens, from that of the logits. `tokens` (T, D) are fp32; `scratch` is as large
    /// as the directions and laid out like them.
    pub(super) fn cosine_gradient(
        &mut self,
        rank: usize,
        gate: Cosine,
        [tokens, logits]: [u64; 2],
        scratch: BufferId,
        [token_gradient, weight_gradient]: [u64; 2],
        steps: &mut Steps,
    ) -> Result<(), ExecError> {
        let layout = gate.layout;
        let [t, d, e, p] = layout.sizes();
        let (token, expert) = (layout.token_vectors(), layout.expert_vectors());
        let scratch = self.at(rank, scratch);
        let (by_tokens, by_experts) = (
            at(scratch, layout.token_directions().start),
            at(scratch, layout.expert_directions().start),
        );
        let to_tokens = [logits, gate.expert_directions(), by_tokens];
        let to_tokens = product([t, p, e], to_tokens, [false, true], false);
        self.multiply(vec![to_tokens], self.gate, steps);
        let to_experts = [gate.token_directions(), logits, by_experts];
        let to_experts = product([p, e, t], to_experts, [true, false], false);
        self.multiply(vec![to_experts], self.gate, steps);

        steps.push(plain(&NormalizeGradient {
            normalized: In::at(gate.token_directions()),
            factors: In::at(at(gate.directions, layout.token_factors().start)),
            temperature: None,
            normalized_gradient: In::at(by_tokens),
            gradient: Out::at(by_tokens),
            dots: Out::at(at(scratch, layout.token_factors().start)),
            num_vectors: token.count as i64,
            channels: token.channels as i64,
            vector_stride: token.stride as i64,
            channel_stride: token.channel_stride as i64,
        }));
        let dots = at(scratch, layout.expert_factors().start);
        steps.push(plain(&NormalizeGradient {
            normalized: In::at(gate.expert_directions()),
            factors: In::at(at(gate.directions, layout.expert_factors().start)),
            temperature: Some(gate.temperature()),
            normalized_gradient: In::at(by_experts),
            gradient: Out::at(at(weight_gradient, layout.experts().start)),
            dots: Out::at(dots),
            num_vectors: expert.count as i64,
            channels: expert.channels as i64,
            vector_stride: expert.stride as i64,
            channel_stride: expert.channel_stride as i64,
        }));
        let by_temperature = at(weight_gradient, layout.temperature());
        self.sum_columns(rank, dots, [e, 1], by_temperature, steps)?;

        let to_projection = [
            tokens,
            by_tokens,
            at(weight_gradient, layout.projection().start),
        ];
        let to_projection = product([d, p, t], to_projection, [true, false], false);
        self.multiply(vec![to_projection], self.gate, steps);
        let factors = [by_tokens, gate.projection()];
        self.add_to_tokens(rank, [t, p], factors, token_gradient, steps)
    }
}
