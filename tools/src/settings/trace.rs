//! Settings of the commands on traces.

use clap::Args;
use serde::{Deserialize, Serialize};

/// `[trace]`: what is measured, and the shape of what is written.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TraceSettings {
    /// Only this MoE layer [default: all]
    #[arg(
        id = "trace-layer",
        long = "layer",
        value_name = "I",
        allow_negative_numbers = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// Capacity factor at which drops are counted; give it several times [default: 1, 1.25, 2]
    #[arg(
        id = "trace-capacity",
        long = "capacity-factor",
        value_name = "X",
        allow_negative_numbers = true
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capacity_factor: Vec<f64>,
    /// Recorded steps between which loads are compared; give it several times [default: 1, 2, 4, 8, 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lag: Vec<usize>,
    /// Files of token ids: ranks the tokens are spread over
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_ranks: Option<usize>,
    /// Files of token ids: tokens of a rank in one step
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_tokens: Option<u32>,
    /// Files that do not say: number of experts
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_experts: Option<usize>,
    /// Files that do not say: experts per token
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_top_k: Option<u32>,
}

/// `[trace-shape]`: the shape of a trace that is written.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ShapeSettings {
    /// Source ranks: GPUs that route tokens
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<usize>,
    /// Experts of a layer, over all GPUs
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<usize>,
    /// T: tokens per step on one GPU
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<u32>,
    /// k: experts per token
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Steps written
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// MoE layers written (of `generate SPEC`)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<u32>,
}

impl TraceSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &TraceSettings) -> TraceSettings {
        let list = |flags: &[f64], file: &[f64]| match flags {
            [] => file.to_vec(),
            _ => flags.to_vec(),
        };
        TraceSettings {
            layer: self.layer.or(file.layer),
            capacity_factor: list(&self.capacity_factor, &file.capacity_factor),
            lag: match self.lag.as_slice() {
                [] => file.lag.clone(),
                lags => lags.to_vec(),
            },
            trace_ranks: self.trace_ranks.or(file.trace_ranks),
            trace_tokens: self.trace_tokens.or(file.trace_tokens),
            trace_experts: self.trace_experts.or(file.trace_experts),
            trace_top_k: self.trace_top_k.or(file.trace_top_k),
        }
    }
}

impl ShapeSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &ShapeSettings) -> ShapeSettings {
        ShapeSettings {
            gpus: self.gpus.or(file.gpus),
            num_experts: self.num_experts.or(file.num_experts),
            tokens_per_step: self.tokens_per_step.or(file.tokens_per_step),
            top_k: self.top_k.or(file.top_k),
            steps: self.steps.or(file.steps),
            layers: self.layers.or(file.layers),
        }
    }
}
