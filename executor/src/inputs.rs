//! What a layer computes on: tokens, weights, the gradient of the output, the routing.

use crate::ExecError;
use crate::number::rounded;
use moeplan_sim::spec::{DType, Gate, ResolvedLayer};
use moeplan_traces::TokenStep;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a cosine gate's temperature starts from in the authors' code: ln 2.
const TEMPERATURE: f32 = std::f32::consts::LN_2;

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
    /// The same on every rank: (D, E), or of a cosine gate projection (D, P), experts (P, E) and temperature.
    pub gate: Vec<f32>,
    /// All E experts.
    pub experts: Vec<ExpertWeights>,
    /// Who decides where tokens go.
    pub routing: Routing,
    /// (T, E) a rank, added to the gate's logits; no ranks where there is no noise.
    pub gate_noise: Vec<Vec<f32>>,
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
            gate: match layer.spec.gate {
                Gate::Linear => near(2, 0, d * experts as usize, d),
                Gate::Cosine { projection_dim } => {
                    let p = projection_dim as usize;
                    let projection = near(2, 0, d * p, d);
                    let of_experts = near(8, 0, p * experts as usize, p);
                    [projection, of_experts, vec![TEMPERATURE]].concat()
                }
            },
            experts: (0..experts)
                .map(|expert| ExpertWeights {
                    up: near(3, expert, d * h, d),
                    up_bias: near(4, expert, h, d),
                    down: near(5, expert, h * d, h),
                    down_bias: near(6, expert, d, h),
                })
                .collect(),
            routing,
            gate_noise: Vec::new(),
            prioritized: false,
            balance_weight: 0.01,
        }
    }

    /// These inputs with the noise of training: normal, `scale` / E wide (Section 11 of the spec sheet).
    #[must_use]
    pub fn with_gate_noise(self, layer: &ResolvedLayer, seed: u64, scale: f32) -> Inputs {
        let experts = layer.num_experts as usize;
        let width = scale / experts as f32;
        let of_rank = |rank| {
            let mut rng = stream(seed, 7, rank);
            let mut normal = || {
                // Box and Muller.
                let (a, b): (f32, f32) = (rng.random_range(1e-7..1.0), rng.random_range(0.0..1.0));
                (-2.0 * a.ln()).sqrt() * (std::f32::consts::TAU * b).cos()
            };
            let numbers = 0..layer.tokens() as usize * experts;
            numbers.map(|_| width * normal()).collect()
        };
        Inputs {
            gate_noise: (0..layer.world_size).map(of_rank).collect(),
            ..self
        }
    }

    /// The noise of a rank's gate, if there is any.
    pub fn noise(&self, rank: usize) -> Option<&[f32]> {
        self.gate_noise.get(rank).map(Vec::as_slice)
    }

    /// These inputs as a layer of `dtype` stores them; the gate weight stays FP32.
    #[must_use]
    pub fn rounded(&self, dtype: DType) -> Inputs {
        let round = |values: &Vec<f32>| rounded(dtype, values);
        let experts = self.experts.iter().map(|expert| ExpertWeights {
            up: round(&expert.up),
            up_bias: round(&expert.up_bias),
            down: round(&expert.down),
            down_bias: round(&expert.down_bias),
        });
        Inputs {
            tokens: self.tokens.iter().map(round).collect(),
            output_gradient: self.output_gradient.iter().map(round).collect(),
            experts: experts.collect(),
            ..self.clone()
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
        numbers("gate weight", &self.gate, layer.gate_weights() as usize)?;
        if !self.gate_noise.is_empty() {
            count("gate noise, ranks", self.gate_noise.len(), world)?;
        }
        for (rank, noise) in self.gate_noise.iter().enumerate() {
            numbers(&format!("gate noise of rank {rank}"), noise, t * experts)?;
        }
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
