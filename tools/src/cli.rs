//! Commands and flags. What a flag means is decided in [`crate::resolve`].

use crate::command::collective::CollectiveArgs;
use crate::command::kernel::KernelArgs;
use crate::command::report::Reported;
use crate::command::trace::TraceCommand;
use crate::settings::{
    BalanceSettings, BreakdownSettings, CalibrateSettings, ClusterSettings, DashSettings,
    EconomySettings, ExecuteSettings, ExportSettings, GateSettings, LayerSettings, ModelSettings,
    OutputSettings, PlanSettings, PriceSettings, ReportSettings, RoutingSettings, StrategySettings,
    ValidateSettings, WorldSettings,
};
use crate::sweep::Shard;
use crate::sweep::launch::Scheduler;
use clap::{Args, Parser, Subcommand};
use moeplan_sim::spec::Phase;
use std::path::PathBuf;

/// Plans GPU clusters for Mixture-of-Experts layers before you rent them.
///
/// Without a command: the shipped routing trace on 2,048 A100s, the static baseline against
/// adaptive Tutel.
#[derive(Debug, Parser)]
#[command(
    name = "moeplan",
    version,
    max_term_width = 100,
    propagate_version = true
)]
pub struct Cli {
    /// Settings every command has.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Settings every command has.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// Settings from a TOML file; a flag wins over it
    #[arg(long, global = true, value_name = "FILE", help_heading = "Output")]
    pub config: Option<PathBuf>,
    /// Seed of everything drawn [default: 0]
    #[arg(long, global = true, value_name = "N", help_heading = "Output")]
    pub seed: Option<u64>,
    /// How results are written.
    #[command(flatten)]
    pub output: OutputSettings,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// One strategy, one step or many
    Simulate(SimulateArgs),
    /// Several strategies side by side, speed-up over the first
    Compare(CompareArgs),
    /// Published and measured figures beside ours
    Validate(ValidateArgs),
    /// Where the time of one step goes: critical path, straggler, limiting link
    Breakdown(BreakdownArgs),
    /// One collective alone: time, bandwidths, and the bound of the ports
    Collective(CollectiveArgs),
    /// One kernel alone on one GPU
    Kernel(KernelArgs),
    /// The cluster and strategy to take, with reasons: cheapest within limits, or fastest
    Plan(PlanArgs),
    /// Many scenarios of one file, in parallel, each kept when it is done
    Sweep(SweepArgs),
    /// The shards of a sweep put together
    Merge(MergeArgs),
    /// Routing traces: describe, compare, make up, rescale
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Run the layer for real on this machine, and time it
    Execute(ExecuteArgs),
    /// A report to hand to others: one HTML file with plots, tables and validation
    Report(ReportArgs),
    /// Watch a run as it goes on, or as it was recorded, on the terminal
    Dash(DashArgs),
    /// Measure this machine and write it down as a cluster to simulate
    Calibrate(CalibrateArgs),
    /// A whole model: step time, images or tokens a second, memory
    Model(ModelArgs),
    /// Where experts sit: placement and balancing policies over a trace
    Balance(BalanceArgs),
    /// Stragglers, bad links and failures: percentiles of a step, and what is left of a month
    Goodput(GoodputArgs),
}

/// What is simulated.
#[derive(Debug, Clone, Default, Args)]
pub struct ScenarioArgs {
    /// Where.
    #[command(flatten, next_help_heading = "Cluster")]
    pub cluster: ClusterSettings,
    /// Measurements to go by.
    #[command(flatten, next_help_heading = "Cluster")]
    pub prices: PriceSettings,
    /// The layer.
    #[command(flatten, next_help_heading = "Layer")]
    pub layer: LayerSettings,
    /// Refinements of the strategies.
    #[command(flatten, next_help_heading = "Strategy")]
    pub refine: StrategySettings,
    /// Where tokens go.
    #[command(flatten, next_help_heading = "Routing")]
    pub routing: RoutingSettings,
    /// forward, or training: forward and backward [default: training]
    #[arg(long, value_name = "PHASE", help_heading = "Layer")]
    pub phase: Option<Phase>,
}

/// `simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// fairseq, tutel or a TOML file; flags refine it [default: tutel]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Strategy")]
    pub strategy: Option<String>,
    /// What.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// What GPUs cost; cost and energy are shown where it is asked for.
    #[command(flatten, next_help_heading = "Cost")]
    pub economy: EconomySettings,
    /// What is shown.
    #[command(flatten, next_help_heading = "Output")]
    pub report: ReportSettings,
    /// Its timeline.
    #[command(flatten, next_help_heading = "Output")]
    pub export: ExportSettings,
}

/// `compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// fairseq, tutel or a TOML file; give it several times, flags refine all [default: fairseq, tutel]
    #[arg(
        long,
        value_name = "NAME|FILE",
        help_heading = "Strategy",
        conflicts_with = "ladder"
    )]
    pub strategy: Vec<String>,
    /// The feature ladder of the paper's Figure 14, one feature more each
    #[arg(long, help_heading = "Strategy")]
    pub ladder: bool,
    /// What.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// What GPUs cost; cost and energy are shown where it is asked for.
    #[command(flatten, next_help_heading = "Cost")]
    pub economy: EconomySettings,
    /// What is shown.
    #[command(flatten, next_help_heading = "Output")]
    pub report: ReportSettings,
}

/// What `validate` holds the simulator against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Validated {
    /// This machine, running the layer for real.
    Executor,
}

/// `calibrate`.
#[derive(Debug, Clone, Args)]
pub struct CalibrateArgs {
    /// What.
    #[command(flatten)]
    pub settings: CalibrateSettings,
}

/// `validate`.
#[derive(Debug, Clone, Args)]
pub struct ValidateArgs {
    /// executor: steps run for real on this machine beside the same steps simulated [default:
    /// published figures]
    #[arg(value_name = "WHAT", conflicts_with_all = ["table", "data", "markdown", "record"])]
    pub what: Option<Validated>,
    /// Where and how often they run.
    #[command(flatten, next_help_heading = "Executor")]
    pub execute: ExecuteSettings,
    /// What, and what is written.
    #[command(flatten)]
    pub settings: ValidateSettings,
    /// Kind of cluster: a preset or a TOML file [default: nd-a100-v4-80gb]
    #[arg(long, value_name = "PRESET|FILE")]
    pub cluster: Option<String>,
}

/// `report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// paper: the figures and tables of the paper [default: the study that the flags state]
    #[arg(value_name = "WHAT")]
    pub what: Option<Reported>,
    /// Also write every figure as SVG and PNG and its numbers as CSV into this folder
    #[arg(long, value_name = "DIR")]
    pub assets: Option<PathBuf>,
    /// fairseq, tutel or a TOML file; give it several times, flags refine all [default: fairseq, tutel]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Strategy")]
    pub strategy: Vec<String>,
    /// What.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
}

/// `breakdown`.
#[derive(Debug, Clone, Args)]
pub struct BreakdownArgs {
    /// fairseq, tutel or a TOML file; flags refine it [default: tutel]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Strategy")]
    pub strategy: Option<String>,
    /// Which step.
    #[command(flatten, next_help_heading = "Routing")]
    pub breakdown: BreakdownSettings,
    /// What.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// Its timeline.
    #[command(flatten, next_help_heading = "Output")]
    pub export: ExportSettings,
}

/// `execute`.
#[derive(Debug, Clone, Args)]
pub struct ExecuteArgs {
    /// fairseq, tutel or a TOML file; flags refine it; what is auto is decided by the simulator
    /// on --cluster [default: tutel with r = 1, degree 1, linear]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Strategy")]
    pub strategy: Option<String>,
    /// Where it runs.
    #[command(flatten, next_help_heading = "Execution")]
    pub execute: ExecuteSettings,
    /// How tokens are gated.
    #[command(flatten, next_help_heading = "Gate")]
    pub gate: GateSettings,
    /// What.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
    /// What is shown.
    #[command(flatten, next_help_heading = "Output")]
    pub report: ReportSettings,
    /// Its timeline.
    #[command(flatten, next_help_heading = "Output")]
    pub export: ExportSettings,
}

/// `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// Limits and choices.
    #[command(flatten)]
    pub plan: PlanSettings,
    /// What GPUs cost.
    #[command(flatten, next_help_heading = "Cost")]
    pub economy: EconomySettings,
    /// A whole model instead of a layer: a preset of `moeplan model`, or a config.json of Hugging Face; its
    /// MoE layers take --num-experts, --top-k and --capacity-factor
    #[arg(long, value_name = "PRESET|FILE", help_heading = "Model")]
    pub model: Option<String>,
    /// Images or sequences of a GPU and step [default: the preset's; 1 sequence]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub batch: Option<u64>,
    /// Tokens of a sequence [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub sequence_length: Option<u64>,
    /// Keep 1/W of the optimizer's states of what all GPUs hold (ZeRO-1)
    #[arg(long, help_heading = "Model")]
    pub shard_states: bool,
    /// Keep 1/W of their gradients besides (ZeRO-2)
    #[arg(long, help_heading = "Model")]
    pub shard_gradients: bool,
    /// Keep only what enters each transformer block, and run its forward pass again in the backward one
    #[arg(long, help_heading = "Model")]
    pub recompute: bool,
    /// Equal parts of a GPU's batch that run one after the other, their gradients added up for one update [default: 1]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub micro_batches: Option<u64>,
    /// GPUs of a node that share the weights of attention, dense layers and the vocabulary (Megatron-LM, with sequence
    /// parallelism); --try-tensor-parallel searches [default: 1]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub tensor_parallel: Option<u64>,
    /// The layer.
    #[command(flatten, next_help_heading = "Layer")]
    pub layer: LayerSettings,
    /// forward, or training: forward and backward [default: training]
    #[arg(long, value_name = "PHASE", help_heading = "Layer")]
    pub phase: Option<Phase>,
    /// fairseq, tutel or a TOML file whose auto settings are searched [default: all kernels and layouts]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Strategy")]
    pub strategy: Vec<String>,
    /// Choices that are not to be searched.
    #[command(flatten, next_help_heading = "Strategy")]
    pub refine: StrategySettings,
    /// Where tokens go.
    #[command(flatten, next_help_heading = "Routing")]
    pub routing: RoutingSettings,
    /// Measurements to go by.
    #[command(flatten, next_help_heading = "Cost")]
    pub prices: PriceSettings,
}

/// `sweep`.
#[derive(Debug, Clone, Args)]
pub struct SweepArgs {
    /// Sweep file: [base], [axes], [[zip]], [[where]], [[case]]
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Go on where an earlier run was stopped or killed
    #[arg(long)]
    pub resume: bool,
    /// Only every N-th scenario, beginning with the I-th, into a file for `moeplan merge`
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Who runs the shards, if not this machine.
    #[command(flatten, next_help_heading = "Launch")]
    pub launch: LaunchArgs,
    /// What GPUs cost.
    #[command(flatten, next_help_heading = "Cost")]
    pub economy: EconomySettings,
}

/// How a sweep is handed to a scheduler.
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// Hand the shards to Slurm (job array, then merge) or Kubernetes (indexed job, then merge)
    #[arg(id = "launch", long = "launch", value_name = "SCHEDULER")]
    pub scheduler: Option<Scheduler>,
    /// Print what would be submitted
    #[arg(long, requires = "launch")]
    pub dry_run: bool,
    /// Shards of a launch [default: 8]
    #[arg(long, value_name = "N", requires = "launch")]
    pub shards: Option<usize>,
    /// An option of both Slurm jobs, such as --partition=main; give it several times
    #[arg(
        long,
        value_name = "OPTION",
        requires = "launch",
        allow_hyphen_values = true
    )]
    pub sbatch_option: Vec<String>,
    /// Kubernetes: image with moeplan in it
    #[arg(
        long,
        value_name = "IMAGE",
        default_value = "moeplan:latest",
        hide_short_help = true
    )]
    pub image: String,
    /// Kubernetes: claim of the volume that holds the sweep file and the result, mounted at /work
    #[arg(
        long,
        value_name = "CLAIM",
        default_value = "moeplan",
        hide_short_help = true
    )]
    pub volume_claim: String,
}

/// `merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// All shards of one sweep, in any order
    #[arg(value_name = "SHARD", required = true)]
    pub shards: Vec<PathBuf>,
}

/// `model`.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Which.
    #[command(flatten, next_help_heading = "Model")]
    pub model: ModelSettings,
    /// dense, fairseq, tutel or a TOML file; give it several times, flags refine all [default: dense,
    /// fairseq, tutel]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Strategy")]
    pub strategy: Vec<String>,
    /// Where.
    #[command(flatten, next_help_heading = "Cluster")]
    pub cluster: ClusterSettings,
    /// Refinements of the strategies.
    #[command(flatten, next_help_heading = "Strategy")]
    pub refine: StrategySettings,
    /// Where tokens go.
    #[command(flatten, next_help_heading = "Routing")]
    pub routing: RoutingSettings,
    /// forward (inference), or training [default: training]
    #[arg(long, value_name = "PHASE", help_heading = "Model")]
    pub phase: Option<Phase>,
}

/// `balance`.
#[derive(Debug, Clone, Args)]
pub struct BalanceArgs {
    /// How.
    #[command(flatten, next_help_heading = "Balancing")]
    pub balance: BalanceSettings,
    /// What.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
}

/// `goodput`.
#[derive(Debug, Clone, Args)]
pub struct GoodputArgs {
    /// What goes wrong.
    #[command(flatten, next_help_heading = "The real world")]
    pub world: WorldSettings,
    /// fairseq, tutel or a TOML file; flags refine it [default: tutel]
    #[arg(long, value_name = "NAME|FILE", help_heading = "Strategy")]
    pub strategy: Option<String>,
    /// What.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
}

/// `dash`.
#[derive(Debug, Clone, Args)]
pub struct DashArgs {
    /// A run file (--record of simulate, compare, execute), or a sweep's CSV or journal [default: simulate
    /// what the flags say, and show it as it goes on]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How it is shown.
    #[command(flatten, next_help_heading = "Dashboard")]
    pub dash: DashSettings,
    /// fairseq, tutel or a TOML file; give it several times, flags refine all [default: fairseq, tutel]
    #[arg(
        long,
        value_name = "NAME|FILE",
        help_heading = "Strategy",
        conflicts_with = "ladder"
    )]
    pub strategy: Vec<String>,
    /// The feature ladder of the paper's Figure 14, one feature more each
    #[arg(long, help_heading = "Strategy")]
    pub ladder: bool,
    /// Write every step to this run file as it is done
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub record: Option<PathBuf>,
    /// What is simulated.
    #[command(flatten)]
    pub scenario: ScenarioArgs,
}
