//! Whole models: what runs around MoE layers, as data. Parameters, FLOPs, memory and time all follow
//! from the same list of parts.
//!
//! [`compile_model`](crate::compile::compile_model) writes a model's step as one [`Program`](crate::ir::Program),
//! its MoE layers by the very code that compiles a lone layer; [`step`] prices and plays it.

mod decoder;
mod groups;
mod hugging_face;
mod presets;
mod step;
mod swin;

pub use groups::{ModelRouting, MoeGroup, MoeGroups};
pub use hugging_face::{ConfigError, from_config};
pub use presets::{PRESETS, Published, preset, published};
pub use step::{ModelMemory, ModelRun, ModelStep, Variant, step, steps};

use crate::spec::{DType, Experts, Gate, LayerSpec, Phase, SpecError};

/// What a model is fed and what its rate is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// An item is an image; rates are images per second.
    Images,
    /// An item is a sequence of this many tokens; rates are tokens per second.
    Tokens(u64),
}

impl Unit {
    /// Units of an item.
    pub const fn per_item(self) -> u64 {
        match self {
            Unit::Images => 1,
            Unit::Tokens(tokens) => tokens,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Images => "images",
            Unit::Tokens(_) => "tokens",
        }
    }
}

/// What a training step does to need less memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySaving {
    /// Optimizer states of what all GPUs hold are spread over them (ZeRO-1, arXiv 1910.02054): gradients are
    /// reduce-scattered, updated parameters all-gathered.
    pub shard_states: bool,
    /// The same of gradients too (ZeRO-2): each is kept by the GPU that updates its parameters alone, once it is summed.
    pub shard_gradients: bool,
    /// Of every transformer block only its input is kept; its forward pass, exchanges included, runs again before its
    /// backward pass (arXiv 1604.06174).
    pub recompute: bool,
    /// Equal parts of a GPU's items that run one after the other, their gradients added up for one update (gradient
    /// accumulation).
    pub micro_batches: u64,
}

impl Default for MemorySaving {
    /// Nothing.
    fn default() -> Self {
        MemorySaving {
            shard_states: false,
            shard_gradients: false,
            recompute: false,
            micro_batches: 1,
        }
    }
}

/// Most micro-batches of a step: its program is as many times as long.
const MOST_MICRO_BATCHES: u64 = 256;

impl MemorySaving {
    /// The same in so many micro-batches.
    #[must_use]
    pub const fn in_parts(self, micro_batches: u64) -> MemorySaving {
        MemorySaving {
            micro_batches,
            ..self
        }
    }

    /// Whether a step of `batch` items a GPU can be run so.
    ///
    /// # Errors
    /// Micro-batches that do not divide the batch, or that have no gradients.
    pub fn check(&self, batch: u64, phase: Phase) -> Result<(), SpecError> {
        let micro_batches = self.micro_batches;
        let divide = (1..=MOST_MICRO_BATCHES).contains(&micro_batches)
            && batch.is_multiple_of(micro_batches);
        if divide && (micro_batches == 1 || phase == Phase::Training) {
            return Ok(());
        }
        let expected = match phase {
            Phase::Forward => "1, as a forward pass adds up no gradients".to_owned(),
            Phase::Training => {
                format!("a divisor of the {batch} items of a GPU, at most {MOST_MICRO_BATCHES}")
            }
        };
        Err(SpecError::new("micro-batches", expected, micro_batches))
    }
}

/// Which row of the breakdown a part belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Attention, its projections, norms and residuals.
    Attention,
    /// Dense feed-forwards, embeddings, the head.
    Dense,
}

/// An MoE feed-forward within a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moe {
    /// Tokens of one item.
    pub tokens: u64,
    /// D.
    pub model_dim: u64,
    /// H of an expert.
    pub hidden_dim: u64,
    /// Whether an expert has a third matrix, whose output gates the first's (SwiGLU).
    pub gated: bool,
    /// Whether experts have biases.
    pub bias: bool,
    /// E.
    pub experts: u64,
    /// k.
    pub top_k: u32,
    /// Capacity setting x.
    pub capacity_factor: f64,
    /// Number type of its tensors and products.
    pub dtype: DType,
}

impl Moe {
    /// Hidden channels of a two-matrix expert of as many parameters: 3/2 H where it is gated, since
    /// the program of an expert has two products. FLOPs, weight bytes and messages are then exact; the
    /// shape of the products is not.
    pub const fn plain_hidden_dim(&self) -> u64 {
        if self.gated {
            self.hidden_dim * 3 / 2
        } else {
            self.hidden_dim
        }
    }

    /// The layer alone, fed with `items` items on every GPU.
    pub fn layer(&self, items: u64) -> LayerSpec {
        LayerSpec {
            tokens_per_step: self.tokens.saturating_mul(items),
            model_dim: self.model_dim,
            hidden_dim: self.plain_hidden_dim(),
            experts: Experts::Total(self.experts),
            top_k: self.top_k,
            capacity_factor: self.capacity_factor,
            dtype: self.dtype,
            gate: Gate::Linear,
        }
    }

    /// Parameters of one expert.
    pub const fn expert_parameters(&self) -> u64 {
        let matrices = if self.gated { 3 } else { 2 };
        let biases = match (self.bias, self.gated) {
            (false, _) => 0,
            (true, false) => self.hidden_dim + self.model_dim,
            (true, true) => 2 * self.hidden_dim + self.model_dim,
        };
        matrices * self.model_dim * self.hidden_dim + biases
    }

    /// Parameters of the gate.
    pub const fn gate_parameters(&self) -> u64 {
        self.model_dim * self.experts
    }

    /// Multiply-adds of one item in the experts.
    fn macs(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        // A fixed capacity factor multiplies padding too, and less than 1 drops copies.
        let rows = self.tokens as f64 * f64::from(self.top_k) * self.capacity_factor.max(0.0);
        let rows = if self.capacity_factor > 0.0 {
            rows
        } else {
            self.tokens as f64 * f64::from(self.top_k)
        };
        rows * matrices * self.model_dim as f64 * self.hidden_dim as f64
    }
}

/// What a part does with one item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// (rows, input) by a weight (input, output).
    Linear(Linear),
    /// `batch` products (m, k) by (k, n) of activations.
    Product {
        /// Products of one item.
        batch: u64,
        /// Rows.
        m: u64,
        /// Columns.
        n: u64,
        /// The summed extent.
        k: u64,
    },
    /// Attention in one kernel that keeps its scores on chip.
    FusedAttention {
        /// Heads.
        heads: u64,
        /// Queries.
        queries: u64,
        /// Keys a query sees on average.
        keys: u64,
        /// Channels of a head: those of queries and keys plus those of values.
        channels: u64,
    },
    /// Passes over memory.
    Pass(Pass),
    /// GPUs that share what follows gather their tokens: of so many elements each has its own.
    Gather {
        /// Elements of one item.
        elements: u64,
    },
    /// GPUs that share what came before sum their parts of its output, and each keeps that of its own tokens.
    Scatter {
        /// Elements of one item.
        elements: u64,
    },
    /// An MoE feed-forward.
    Moe(Moe),
}

/// How the GPUs of a tensor-parallel group share the weight of a product (Megatron-LM, arXiv 1909.08053).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Each has all of it, for its own tokens.
    Whole,
    /// Each has some of the output channels, for the tokens of all.
    Outputs,
    /// Each has some of the input channels, for the tokens of all.
    Inputs,
}

/// A product with a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Rows of one item.
    pub rows: u64,
    /// Input channels.
    pub input: u64,
    /// Output channels.
    pub output: u64,
    /// Parameters of a bias.
    pub bias: u64,
    /// What GPUs that share it have of it.
    pub cut: Cut,
}

impl Linear {
    /// The product of one GPU of a group of `tensor_parallel`: where it is cut, the tokens of the group meet some of the
    /// channels.
    #[must_use]
    pub const fn on(self, tensor_parallel: u64) -> Linear {
        let group = tensor_parallel;
        let [rows, input, output] = match self.cut {
            Cut::Whole => [self.rows, self.input, self.output],
            Cut::Outputs => [self.rows * group, self.input, self.output.div_ceil(group)],
            Cut::Inputs => [self.rows * group, self.input.div_ceil(group), self.output],
        };
        Linear {
            rows,
            input,
            output,
            ..self
        }
    }
}

/// Bytes that element-wise kernels move for one item.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pass {
    /// Kernels.
    pub kernels: u64,
    /// Bytes read and written, forward.
    pub forward: u64,
    /// Bytes read and written, backward.
    pub backward: u64,
    /// Bytes more, forward, in training only.
    pub training: u64,
    /// Bytes kept for the backward pass.
    pub saved: u64,
    /// Parameters it uses.
    pub parameters: u64,
    /// Tensors they are in.
    pub tensors: u64,
    /// Whether a tensor-parallel group shares those, each GPU passing over the tokens of all.
    pub is_cut: bool,
}

/// One part of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Which row of the breakdown.
    pub section: Section,
    /// What it does.
    pub work: Work,
    /// Which transformer block it belongs to; none before the first and after the last.
    pub block: Option<u64>,
}

impl Part {
    /// A part of no block.
    const fn new(section: Section, work: Work) -> Part {
        Part {
            section,
            work,
            block: None,
        }
    }

    /// Multiply-adds of one item.
    pub fn macs(&self) -> f64 {
        let product = |extents: &[u64]| extents.iter().map(|&extent| extent as f64).product();
        match self.work {
            Work::Linear(linear) => product(&[linear.rows, linear.input, linear.output]),
            Work::Product { batch, m, n, k } => product(&[batch, m, n, k]),
            Work::FusedAttention {
                heads,
                queries,
                keys,
                channels,
            } => product(&[heads, queries, keys, channels]),
            Work::Pass(_) | Work::Gather { .. } | Work::Scatter { .. } => 0.0,
            Work::Moe(moe) => moe.macs() + product(&[moe.tokens, moe.gate_parameters()]),
        }
    }

    /// All parameters but those of experts.
    pub const fn shared_parameters(&self) -> u64 {
        match self.work {
            Work::Linear(linear) => linear.input * linear.output + linear.bias,
            Work::Product { .. }
            | Work::FusedAttention { .. }
            | Work::Gather { .. }
            | Work::Scatter { .. } => 0,
            Work::Pass(pass) => pass.parameters,
            Work::Moe(moe) => moe.gate_parameters(),
        }
    }

    /// Tensors of parameters that a GPU has, those of its experts included.
    pub const fn tensors(&self) -> u64 {
        match self.work {
            Work::Linear(linear) => 1 + if linear.bias > 0 { 1 } else { 0 },
            Work::Pass(pass) => pass.tensors,
            // The gate's weight, and two of all local experts with their biases.
            Work::Moe(moe) => 3 + if moe.bias { 2 } else { 0 },
            Work::Product { .. }
            | Work::FusedAttention { .. }
            | Work::Gather { .. }
            | Work::Scatter { .. } => 0,
        }
    }

    /// Parameters beside experts that a tensor-parallel group shares.
    pub const fn cut_parameters(&self) -> u64 {
        match self.work {
            Work::Linear(linear) => match linear.cut {
                Cut::Whole => 0,
                Cut::Outputs => self.shared_parameters(),
                // The bias is of all outputs.
                Cut::Inputs => linear.input * linear.output,
            },
            Work::Pass(pass) if pass.is_cut => pass.parameters,
            _ => 0,
        }
    }

    /// Parameters beside experts that one GPU of a group of `tensor_parallel` holds.
    pub const fn held_parameters(&self, tensor_parallel: u64) -> u64 {
        let cut = self.cut_parameters();
        self.shared_parameters() - cut + cut.div_ceil(tensor_parallel)
    }

    /// Parameters of experts, of which one token uses `used`.
    const fn expert_parameters(&self, used: bool) -> u64 {
        match self.work {
            Work::Moe(moe) => {
                let experts = if used { moe.top_k as u64 } else { moe.experts };
                experts * moe.expert_parameters()
            }
            _ => 0,
        }
    }
}

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Name.
    pub name: String,
    /// Where its numbers come from.
    pub source: String,
    /// What it is fed.
    pub unit: Unit,
    /// Items of a GPU and step, where nothing else is said.
    pub batch: u64,
    /// Number type of tensors and products.
    pub dtype: DType,
    /// Bytes of an element of a gradient that is all-reduced.
    pub gradient_bytes: u64,
    /// Bytes the optimizer moves for a parameter.
    pub optimizer_bytes: u64,
    /// Kernels the optimizer launches for a tensor of parameters.
    pub optimizer_kernels: u64,
    /// Groups of heads that share keys: a tensor-parallel group is of a divisor of so many GPUs.
    pub head_groups: u64,
    /// Its parts, in order.
    pub parts: Vec<Part>,
}

impl ModelSpec {
    /// Parameters in all.
    pub fn parameters(&self) -> u64 {
        self.sum(|part| part.shared_parameters() + part.expert_parameters(false))
    }

    /// Parameters that one token uses: k experts of every MoE layer and everything shared.
    pub fn active_parameters(&self) -> u64 {
        self.sum(|part| part.shared_parameters() + part.expert_parameters(true))
    }

    /// Multiply-adds of one item, forward: what vision papers call FLOPs.
    pub fn macs(&self) -> f64 {
        self.parts.iter().map(Part::macs).sum()
    }

    /// MoE layers.
    pub fn moe_layers(&self) -> impl Iterator<Item = &Moe> {
        self.parts.iter().filter_map(|part| match &part.work {
            Work::Moe(moe) => Some(moe),
            _ => None,
        })
    }

    /// The same model with one plain feed-forward of an expert's size in place of every MoE layer.
    #[must_use]
    pub fn dense(&self) -> ModelSpec {
        let parts = self.parts.iter().flat_map(|part| match part.work {
            Work::Moe(moe) => in_block(part.block, decoder::shared_feed_forward(&moe, self.dtype)),
            _ => vec![*part],
        });
        ModelSpec {
            parts: parts.collect(),
            ..self.clone()
        }
    }

    /// The same model with every MoE layer changed by `change`.
    #[must_use]
    pub fn with_moe(mut self, change: impl Fn(&mut Moe)) -> ModelSpec {
        for part in &mut self.parts {
            if let Work::Moe(moe) = &mut part.work {
                change(moe);
            }
        }
        self
    }

    fn sum(&self, of: impl Fn(&Part) -> u64) -> u64 {
        self.parts.iter().map(of).sum()
    }
}

/// `parts` as those of one block.
fn in_block(block: Option<u64>, mut parts: Vec<Part>) -> Vec<Part> {
    for part in &mut parts {
        part.block = block;
    }
    parts
}

#[cfg(test)]
mod tests;
