//! The one schema of settings: what `study.toml` holds and what flags set.
//!
//! Every struct is both a clap argument group and a TOML table, so a setting cannot be reachable
//! from one and not from the other. All fields are optional: what nobody sets is decided in
//! [`crate::resolve`].

mod alone;
mod dash;
mod economy;
mod executor;
mod export;
mod plan;
mod top_k;
mod trace;
mod trace_import;
mod whole;

pub use alone::{CollectiveSettings, KernelSettings, Size};
pub use dash::{DashSettings, ScreenSize};
pub use economy::EconomySettings;
pub use executor::{
    BackendKind, CalibrateSettings, ExecuteSettings, GateSettings, ValidateSettings,
};
pub use export::{ExportFormat, ExportSettings, Ranks};
pub use plan::{Budget, Duration, PlanSettings};
pub use top_k::TopK;
pub use trace::{ShapeSettings, TraceSettings};
pub use trace_import::ImportSettings;
pub use whole::{BalanceSettings, ModelSettings, WorldSettings};

use clap::Args;
use moeplan_sim::spec::{
    AllToAll, Choice, DType, Encode, Gate, Layout, Padding, Phase, Policy, Strategy,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// A number type, from its name.
fn dtype(text: &str) -> Result<DType, String> {
    text.parse()
}

fn choice<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<Choice<T>, String> {
    text.parse()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A whole study, as `--config` reads it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Study {
    /// Seed of everything drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Forward only, or a training step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Where the layer runs.
    pub cluster: ClusterSettings,
    /// Measurements to go by.
    pub prices: PriceSettings,
    /// What GPUs cost.
    #[serde(skip_serializing_if = "EconomySettings::is_empty")]
    pub economy: EconomySettings,
    /// The layer.
    pub layer: LayerSettings,
    /// Compare the feature ladder of the paper's Figure 14 instead of strategies of one's own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ladder: bool,
    /// How the layer is run; several are compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub strategy: Vec<StrategySettings>,
    /// Where tokens go.
    pub routing: RoutingSettings,
    /// `plan`.
    #[serde(skip_serializing_if = "PlanSettings::is_empty")]
    pub plan: PlanSettings,
    /// `breakdown`: the step.
    pub breakdown: BreakdownSettings,
    /// Timelines for other programs.
    #[serde(skip_serializing_if = "ExportSettings::is_empty")]
    pub export: ExportSettings,
    /// `execute`.
    #[serde(skip_serializing_if = "ExecuteSettings::is_empty")]
    pub execute: ExecuteSettings,
    /// `execute`: its gate.
    #[serde(skip_serializing_if = "is_default")]
    pub gate: GateSettings,
    /// `dash`.
    #[serde(skip_serializing_if = "DashSettings::is_empty")]
    pub dash: DashSettings,
    /// `calibrate`.
    #[serde(skip_serializing_if = "CalibrateSettings::is_empty")]
    pub calibrate: CalibrateSettings,
    /// `validate`.
    #[serde(skip_serializing_if = "ValidateSettings::is_empty")]
    pub validate: ValidateSettings,
    /// `collective`.
    pub collective: CollectiveSettings,
    /// `kernel`.
    pub kernel: KernelSettings,
    /// `model`.
    #[serde(skip_serializing_if = "is_default")]
    pub model: ModelSettings,
    /// `balance`.
    #[serde(skip_serializing_if = "is_default")]
    pub balance: BalanceSettings,
    /// `goodput`: what goes wrong.
    #[serde(skip_serializing_if = "is_default")]
    pub world: WorldSettings,
    /// `trace`: what is measured.
    pub trace: TraceSettings,
    /// `trace generate` and `trace resample`: the shape of what is written.
    pub trace_shape: ShapeSettings,
    /// `trace import`: what a file leaves open.
    pub trace_import: ImportSettings,
    /// What is shown of it.
    pub report: ReportSettings,
    /// How results are written.
    pub output: OutputSettings,
}

/// `[cluster]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ClusterSettings {
    /// Kind of cluster: nd-a100-v4-80gb, nd-a100-v4-40gb, dgx-a100, or a TOML file
    #[arg(id = "cluster-preset", long = "cluster", value_name = "PRESET|FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The same as `preset`, for a file; relative to the study file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// GPUs, all of which run the layer together [default: 2048]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u64>,
    /// GPUs that share a node [default: as the cluster has them]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpus_per_node: Option<u64>,
}

/// `[prices]`: measurements that replace a built-in model.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct PriceSettings {
    /// Measured GEMM times to go by, columns gemm_dtype, m, n, k, latency_ms
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gemm_table: Option<PathBuf>,
}

/// `[layer]`, and a layer file.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct LayerSettings {
    /// Layer to start from: paper, table2, swinv2-moe-b, or a TOML file [default: paper]
    #[arg(id = "layer-preset", long = "layer", value_name = "PRESET|FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// The same as `preset`, for a file; relative to the study file.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// T: tokens per step on one GPU
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<u64>,
    /// D: channels of a token
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_dim: Option<u64>,
    /// H: hidden channels of an expert
    #[arg(long, value_name = "H", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_dim: Option<u64>,
    /// Experts per GPU; 0.5 is one expert over two GPUs
    #[arg(
        long,
        value_name = "X",
        allow_negative_numbers = true,
        conflicts_with = "num_experts"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts_per_gpu: Option<f64>,
    /// Experts over all GPUs
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<u64>,
    /// k: experts per token; several, like 2,1,4, are those of successive steps, in turn
    #[arg(long, value_name = "K[,K...]", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<TopK>,
    /// Capacity: above 0 fixed, 0 the least that drops no token, below 0 as 0 but at most -X
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_factor: Option<f64>,
    /// Number type: fp32, tf32, fp16 or bf16
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// Gate: linear, cosine, or cosine:P with P projected channels [default: linear]
    #[arg(long, value_name = "KIND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gate>,
}

/// One `[[strategy]]`, and a strategy file. The flags refine every strategy of the run.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct StrategySettings {
    /// `fairseq`, `tutel` or a strategy file to start from; `fairseq` if not said.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Shown in tables.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Encode and decode kernels: dense or sparse
    #[arg(long, value_name = "KIND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode: Option<Encode>,
    /// linear, 2dh, 2dh-fused, 2dh-ll128, 3dh or auto
    #[arg(long, value_name = "ALGORITHM", value_parser = choice::<AllToAll>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all_to_all: Option<Choice<AllToAll>>,
    /// Layout after dispatch: conventional or flexible
    #[arg(long, value_name = "LAYOUT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Pipelining degree: 1, 2, 4, 8 or auto
    #[arg(long, value_name = "N|auto", value_parser = choice::<u64>, allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline_degree: Option<Choice<u64>>,
    /// Pipelining degree of the backward pass [default: that of the forward pass]
    #[arg(long, value_name = "N|auto", value_parser = choice::<u64>, allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backward_degree: Option<Choice<u64>>,
    /// Adaptive parallelism r: 0, a divisor of W/E, or auto
    #[arg(long, value_name = "N|auto", value_parser = choice::<u64>, allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive_r: Option<Choice<u64>>,
    /// What travels: capacity (padded buffers) or dropless (routed tokens only)
    #[arg(long, value_name = "KIND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding: Option<Padding>,
    /// Who decides what is auto: static, dictionary or oracle
    #[arg(long, value_name = "POLICY")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Capacity setting of this strategy, over the layer's.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_factor: Option<f64>,
    /// One fixed capacity for all steps, as large as the most uneven step of the routing needs.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cover_routing: Option<bool>,
}

impl StrategySettings {
    /// `base` with everything that is set here.
    pub fn over(&self, base: Strategy) -> Strategy {
        Strategy {
            name: self.name.clone().unwrap_or(base.name),
            encode: self.encode.unwrap_or(base.encode),
            all_to_all: self.all_to_all.unwrap_or(base.all_to_all),
            layout: self.layout.unwrap_or(base.layout),
            pipeline_degree: self.pipeline_degree.unwrap_or(base.pipeline_degree),
            backward_degree: self.backward_degree.or(base.backward_degree),
            adaptive_r: self.adaptive_r.unwrap_or(base.adaptive_r),
            padding: self.padding.unwrap_or(base.padding),
            policy: self.policy.unwrap_or(base.policy),
            capacity_factor: self.capacity_factor.or(base.capacity_factor),
        }
    }

    /// Everything said, from a complete strategy.
    pub fn of(strategy: &Strategy) -> StrategySettings {
        StrategySettings {
            base: None,
            name: Some(strategy.name.clone()),
            encode: Some(strategy.encode),
            all_to_all: Some(strategy.all_to_all),
            layout: Some(strategy.layout),
            pipeline_degree: Some(strategy.pipeline_degree),
            backward_degree: strategy.backward_degree,
            adaptive_r: Some(strategy.adaptive_r),
            padding: Some(strategy.padding),
            policy: Some(strategy.policy),
            capacity_factor: strategy.capacity_factor,
            cover_routing: None,
        }
    }
}

/// `[routing]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RoutingSettings {
    /// Routing trace: a shipped one (`moeplan trace list`) or a file; scaled to the layer
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "routing")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Recorded MoE layer to replay [default: the first; for a whole model all, its MoE layers in turn]
    #[arg(long, value_name = "I", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_layer: Option<u32>,
    /// Traces of token ids: ranks the tokens are spread over
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_ranks: Option<usize>,
    /// Traces of token ids: tokens of a rank in one step
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_tokens: Option<u32>,
    /// Traces that do not say: number of experts
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_experts: Option<usize>,
    /// Traces that do not say: experts per token
    #[arg(long, value_name = "N", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_top_k: Option<u32>,
    /// Made-up routing: balanced, or a SPEC of `moeplan trace generate` such as zipf:1.2,drift=0.1 [default: balanced]
    #[arg(long = "routing", value_name = "SPEC")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<String>,
    /// Steps, spread over the trace [default: 1; with a trace 16]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
}

/// `[breakdown]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct BreakdownSettings {
    /// Which of the steps, counted from 0 [default: the slowest]
    #[arg(long, value_name = "I", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<usize>,
}

/// `[report]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ReportSettings {
    /// Also show every step
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub per_step: bool,
    /// Print what the run itself took to standard error
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timings: bool,
    /// Write every step to this run file as it is done, for `moeplan dash`
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<PathBuf>,
}

impl RoutingSettings {
    /// These settings, and those of `file` where these say nothing. Naming another source of
    /// routing drops what the file said about its own.
    #[must_use]
    pub fn over(&self, file: &RoutingSettings) -> RoutingSettings {
        let named = self.trace.is_some() || self.routing.is_some();
        let none = RoutingSettings::default();
        let file_source = if named { &none } else { file };
        RoutingSettings {
            trace: self.trace.clone().or_else(|| file_source.trace.clone()),
            trace_layer: self.trace_layer.or(file_source.trace_layer),
            trace_ranks: self.trace_ranks.or(file_source.trace_ranks),
            trace_tokens: self.trace_tokens.or(file_source.trace_tokens),
            trace_experts: self.trace_experts.or(file_source.trace_experts),
            trace_top_k: self.trace_top_k.or(file_source.trace_top_k),
            routing: self.routing.clone().or_else(|| file_source.routing.clone()),
            steps: self.steps.or(file.steps),
        }
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// One row a run.
    Csv,
}

/// `[output]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct OutputSettings {
    /// How results are written [default: table]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Write to this file, whole or not at all
    #[arg(
        id = "output-file",
        long = "output",
        global = true,
        value_name = "FILE",
        help_heading = "Output"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Threads [default: one a core]; results are the same for any number
    #[arg(long, global = true, value_name = "N", help_heading = "Output")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// No progress and no notes on standard error
    #[arg(long, global = true, help_heading = "Output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
    /// Print the resolved settings to standard error
    #[arg(short, long, global = true, help_heading = "Output")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub verbose: bool,
}
