//! What a layer computes on: tokens, weights, the gradient of the output, the routing.

use crate::ExecError;
use moeplan_sim::spec::ResolvedLayer;
use moeplan_traces::TokenStep;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Weights of one expert, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertWeights {
    /// (D, H).
    pub up: Vec<f32>,
    /// (H).
    pub up_bias: Vec<f32>,
    /// (H, D).
    pub down: Vec<f32>,
    /// (D).
    pub down_bias: Vec<f32>,
}

/// How the gate routes.
#[derive(Debug, Clone, PartialEq)]
pub enum Routing {
    /// By the gate's own scores.
    Gate,
    /// As recorded. Recorded scores are constants to the gradient; without them the gate's own
    /// scores of the recorded experts are used.
    Forced(TokenStep),
}

/// Everything the ranks of a layer start from.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// (T, D) a rank.
    pub tokens: Vec<Vec<f32>>,
    /// (T, D) a rank: the gradient of the loss with respect to the output.
    pub output_gradient: Vec<Vec<f32>>,
    /// (D, E), the same on every rank.
    pub gate: Vec<f32>,
    /// All E experts.
    pub experts: Vec<ExpertWeights>,
    /// Who decides where tokens go.
    pub routing: Routing,
    /// Batch-prioritized routing: slots in order of the best score instead of token order.
    pub prioritized: bool,
    /// Weight of the balancing loss `E · sum_e mean_t(gate_te) · fraction_e` of each rank.
    pub balance_weight: f32,
}

/// A stream of random numbers of its own for every purpose and rank.
fn stream(seed: u64, purpose: u8, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose;
    key[16..24].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// `len` numbers from -scale to scale.
fn uniform(mut rng: ChaCha8Rng, len: usize, scale: f32) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-scale..scale)).collect()
}

impl Inputs {
    /// Random inputs of `layer`; equal for equal seeds, whatever the strategy.
    pub fn random(layer: &ResolvedLayer, seed: u64, routing: Routing) -> Inputs {
        let (world, t) = (layer.world_size, layer.tokens() as usize);
        let (d, h) = (
            layer.spec.model_dim as usize,
            layer.spec.hidden_dim as usize,
        );
        let experts = layer.num_experts;
        let of_ranks = |purpose| {
            (0..world)
                .map(|rank| uniform(stream(seed, purpose, rank), t * d, 1.0))
                .collect()
        };
        let near = |purpose, index, len, fan: usize| {
            uniform(stream(seed, purpose, index), len, (3.0 / fan as f32).sqrt())
        };
        Inputs {
            tokens: of_ranks(0),
            output_gradient: of_ranks(1),
            gate: near(2, 0, d * experts as usize, d),
            experts: (0..experts)
                .map(|expert| ExpertWeights {
                    up: near(3, expert, d * h, d),
                    up_bias: near(4, expert, h, d),
                    down: near(5, expert, h * d, h),
                    down_bias: near(6, expert, d, h),
                })
                .collect(),
            routing,
            prioritized: false,
            balance_weight: 0.01,
        }
    }

    /// Checks sizes against `layer`, and that all numbers are finite.
    ///
    /// # Errors
    /// The first input that does not fit, by name.
    pub fn check(&self, layer: &ResolvedLayer) -> Result<(), ExecError> {
        let (world, t) = (layer.world_size as usize, layer.tokens() as usize);
        let (d, h) = (
            layer.spec.model_dim as usize,
            layer.spec.hidden_dim as usize,
        );
        let experts = layer.num_experts as usize;
        let count = |field: &str, found: usize, expected: usize| {
            if found == expected {
                return Ok(());
            }
            Err(ExecError::input(field, expected.to_string(), found))
        };
        count("tokens, ranks", self.tokens.len(), world)?;
        count("output gradient, ranks", self.output_gradient.len(), world)?;
        for rank in 0..world {
            numbers(&format!("tokens of rank {rank}"), &self.tokens[rank], t * d)?;
            let name = format!("output gradient of rank {rank}");
            numbers(&name, &self.output_gradient[rank], t * d)?;
        }
        numbers("gate weight", &self.gate, d * experts)?;
        count("experts", self.experts.len(), experts)?;
        for (index, expert) in self.experts.iter().enumerate() {
            for (name, values, len) in [
                ("W1", &expert.up, d * h),
                ("b1", &expert.up_bias, h),
                ("W2", &expert.down, h * d),
                ("b2", &expert.down_bias, d),
            ] {
                numbers(&format!("{name} of expert {index}"), values, len)?;
            }
        }
        if !self.balance_weight.is_finite() {
            return Err(ExecError::input(
                "balance weight",
                "a finite number",
                self.balance_weight,
            ));
        }
        match &self.routing {
            Routing::Gate => Ok(()),
            Routing::Forced(step) => fits(step, layer),
        }
    }
}

/// Whether a recorded step is one of this layer.
fn fits(step: &TokenStep, layer: &ResolvedLayer) -> Result<(), ExecError> {
    for (field, expected, found) in [
        (
            "trace, source ranks",
            layer.world_size,
            step.source_ranks() as u64,
        ),
        (
            "trace, experts",
            layer.num_experts,
            step.num_experts() as u64,
        ),
        (
            "trace, top-k",
            u64::from(layer.spec.top_k),
            u64::from(step.top_k()),
        ),
    ] {
        if expected != found {
            return Err(ExecError::input(
                field,
                format!("{expected} as the layer"),
                found,
            ));
        }
    }
    for rank in 0..step.source_ranks() {
        if step.tokens(rank) as u64 != layer.tokens() {
            let field = format!("trace, tokens of rank {rank}");
            let expected = format!("{} as the layer", layer.tokens());
            return Err(ExecError::input(field, expected, step.tokens(rank)));
        }
    }
    Ok(())
}

fn numbers(field: &str, values: &[f32], len: usize) -> Result<(), ExecError> {
    if values.len() != len {
        return Err(ExecError::input(
            field,
            format!("{len} numbers"),
            values.len(),
        ));
    }
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let field = format!("{field}, number {at}");
            Err(ExecError::input(field, "a finite number", values[at]))
        }
    }
}
