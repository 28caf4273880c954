//! Decoder-only language models: attention, then a dense or MoE feed-forward, in every layer.
//!
//! Element-wise kernels are taken to be fused as current training frameworks fuse them: norm, rotary
//! embedding and residual sum are one pass each, attention never writes its scores.

use super::swin::{feed_forward, linear, pass, pass_of};
use super::{Cut, ModelSpec, Moe, Part, Section, Unit, Work, in_block};
use crate::spec::DType;

/// How tokens look at each other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attention {
    /// Heads that share keys and values in groups.
    Grouped {
        heads: u64,
        kv_heads: u64,
        head_dim: u64,
        bias: bool,
        /// Parameters of the norms of queries and keys.
        norm: u64,
        /// Parameters of attention sinks.
        sinks: u64,
    },
    /// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).
    Latent {
        heads: u64,
        query_rank: u64,
        key_value_rank: u64,
        nope_dim: u64,
        rope_dim: u64,
        value_dim: u64,
    },
}

/// The feed-forward of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) enum FeedForward {
    /// Gated, of this many hidden channels.
    Dense(u64),
    /// Experts, and this many hidden channels of experts that every token visits.
    Moe { moe: Moe, shared: u64 },
}

/// One layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layer {
    /// Tokens back that are seen; all where it is longer than the sequence.
    pub(super) window: u64,
    pub(super) feed_forward: FeedForward,
}

#[derive(Debug, Clone)]
pub(super) struct Decoder {
    pub(super) name: String,
    pub(super) source: String,
    pub(super) hidden: u64,
    pub(super) vocabulary: u64,
    pub(super) tied: bool,
    pub(super) attention: Attention,
    pub(super) layers: Vec<Layer>,
}

pub(super) const DTYPE: DType = DType::Bf16;

impl Decoder {
    /// The model on sequences of `tokens`.
    pub(super) fn spec(&self, tokens: u64) -> ModelSpec {
        let hidden = self.hidden;
        let elements = tokens * hidden;
        // Of a tied embedding the weight is the head's, counted there.
        let table = match self.tied {
            true => 0,
            false => self.vocabulary * hidden,
        };
        let embedding = pass_of(Section::Dense, elements, [4, 8, 0, 0], 1, &[table]);
        let mut parts = vec![shared_pass(embedding), scatter(Section::Dense, elements)];
        for (block, layer) in (0..).zip(&self.layers) {
            parts.extend(in_block(Some(block), self.layer(layer, tokens)));
        }
        parts.push(norm(Section::Dense, tokens, hidden));
        let head = linear(Section::Dense, tokens, hidden, self.vocabulary, false);
        parts.extend([gather(Section::Dense, elements), outputs(head)]);
        // Cross entropy, fused.
        let logits = tokens * self.vocabulary;
        parts.push(pass(Section::Dense, logits, [0, 2, 2, 2], 1));
        ModelSpec {
            name: self.name.clone(),
            source: self.source.clone(),
            unit: Unit::Tokens(tokens),
            batch: 1,
            dtype: DTYPE,
            gradient_bytes: 4,
            // Fused Adam on single-precision states: gradient 4, master and both moments 8 each, weight 2.
            optimizer_bytes: 30,
            optimizer_kernels: 1,
            head_groups: match self.attention {
                Attention::Grouped { kv_heads, .. } => kv_heads,
                Attention::Latent { heads, .. } => heads,
            },
            parts,
        }
    }

    fn layer(&self, layer: &Layer, tokens: u64) -> Vec<Part> {
        let (hidden, elements) = (self.hidden, tokens * self.hidden);
        let mut parts = Vec::new();
        parts.push(norm(Section::Attention, tokens, hidden));
        self.attention(&mut parts, tokens, layer.window);
        parts.push(residual(Section::Attention, elements));
        parts.push(norm(Section::Dense, tokens, hidden));
        match layer.feed_forward {
            FeedForward::Dense(channels) => parts.extend(gated(tokens, hidden, channels)),
            FeedForward::Moe { moe, shared } => {
                if shared > 0 {
                    parts.extend(gated(tokens, hidden, shared));
                }
                let work = Work::Moe(Moe { tokens, ..moe });
                parts.push(Part::new(Section::Dense, work));
            }
        }
        parts.push(residual(Section::Dense, elements));
        parts
    }

    fn attention(&self, parts: &mut Vec<Part>, tokens: u64, window: u64) {
        let section = Section::Attention;
        // A causal query sees half of the sequence on average, or a window that is shorter.
        let keys = (tokens.div_ceil(2)).min(window).max(1);
        let fused = |heads, channels| {
            let work = Work::FusedAttention {
                heads,
                queries: tokens,
                keys,
                channels,
            };
            Part::new(section, work)
        };
        match self.attention {
            Attention::Grouped {
                heads,
                kv_heads,
                head_dim,
                bias,
                norm,
                sinks,
            } => {
                let (queries, all) = (heads * head_dim, (heads + 2 * kv_heads) * head_dim);
                parts.push(gather(section, tokens * self.hidden));
                parts.push(outputs(linear(section, tokens, self.hidden, all, bias)));
                let rotated = tokens * (heads + kv_heads) * head_dim;
                parts.push(pass_of(section, rotated, [4, 4, 0, 0], 1, &[norm, sinks]));
                parts.push(fused(heads, 2 * head_dim));
                parts.push(inputs(linear(section, tokens, queries, self.hidden, bias)));
                parts.push(scatter(section, tokens * self.hidden));
            }
            Attention::Latent {
                heads,
                query_rank,
                key_value_rank,
                nope_dim,
                rope_dim,
                value_dim,
            } => {
                // What is narrow every GPU makes of its own tokens; that is gathered.
                let query = heads * (nope_dim + rope_dim);
                parts.push(linear(section, tokens, self.hidden, query_rank, false));
                parts.push(self::norm(section, tokens, query_rank));
                parts.push(gather(section, tokens * query_rank));
                parts.push(outputs(linear(section, tokens, query_rank, query, false)));
                let down = key_value_rank + rope_dim;
                parts.push(linear(section, tokens, self.hidden, down, false));
                parts.push(self::norm(section, tokens, key_value_rank));
                parts.push(gather(section, tokens * down));
                let up = heads * (nope_dim + value_dim);
                parts.push(outputs(linear(section, tokens, key_value_rank, up, false)));
                parts.push(pass(section, tokens * query, [8, 8, 0, 0], 2));
                parts.push(fused(heads, nope_dim + rope_dim + value_dim));
                let output = heads * value_dim;
                parts.push(inputs(linear(section, tokens, output, self.hidden, false)));
                parts.push(scatter(section, tokens * self.hidden));
            }
        }
    }
}

fn gated(tokens: u64, model_dim: u64, hidden_dim: u64) -> Vec<Part> {
    let shape = Moe {
        tokens,
        model_dim,
        hidden_dim,
        gated: true,
        bias: false,
        experts: 1,
        top_k: 1,
        capacity_factor: 1.0,
        dtype: DTYPE,
    };
    shared_feed_forward(&shape, DTYPE)
}

/// A feed-forward whose hidden channels a tensor-parallel group shares.
pub(super) fn shared_feed_forward(moe: &Moe, dtype: DType) -> Vec<Part> {
    let elements = moe.tokens * moe.model_dim;
    let mut how = [Cut::Outputs, Cut::Inputs].into_iter();
    let mut parts = vec![gather(Section::Dense, elements)];
    for part in feed_forward(moe, dtype) {
        parts.push(match part.work {
            Work::Linear(_) => cut(part, how.next().unwrap_or(Cut::Whole)),
            _ => part,
        });
    }
    parts.push(scatter(Section::Dense, elements));
    parts
}

fn gather(section: Section, elements: u64) -> Part {
    Part::new(section, Work::Gather { elements })
}

fn scatter(section: Section, elements: u64) -> Part {
    Part::new(section, Work::Scatter { elements })
}

/// A product whose output channels are cut.
fn outputs(product: Part) -> Part {
    cut(product, Cut::Outputs)
}

/// A product whose input channels are cut.
fn inputs(product: Part) -> Part {
    cut(product, Cut::Inputs)
}

fn cut(mut product: Part, how: Cut) -> Part {
    if let Work::Linear(linear) = &mut product.work {
        linear.cut = how;
    }
    product
}

/// A pass whose parameters are cut.
fn shared_pass(mut part: Part) -> Part {
    if let Work::Pass(pass) = &mut part.work {
        pass.is_cut = true;
    }
    part
}

fn norm(section: Section, tokens: u64, channels: u64) -> Part {
    pass_of(section, tokens * channels, [4, 8, 0, 2], 1, &[channels])
}

fn residual(section: Section, elements: u64) -> Part {
    pass(section, elements, [6, 6, 0, 0], 1)
}
