//! What a run file holds. Times are in nanoseconds.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// Stages of a layer, in the order of [`moeplan_sim::ir::Stage::ALL`].
pub const STAGES: usize = 7;
/// Most groups that the experts of a step are summed up in.
pub const MOST_BINS: usize = 128;
/// What a load equal to the mean is written as.
pub const MEAN_LOAD: f64 = 256.0;
/// Hottest experts kept of a step.
pub const HOTTEST: usize = 8;

/// What the run is, before its first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Header {
    /// Version of the program that ran.
    pub version: String,
    /// The command.
    pub command: String,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Whether times were measured on a machine, not simulated.
    pub measured: bool,
    /// Names of the strategies, in order.
    pub strategies: Vec<String>,
    /// Steps that were asked for.
    pub steps: u64,
    /// W.
    pub gpus: u64,
    /// m.
    pub gpus_per_node: u64,
    /// E.
    pub experts: u64,
    /// Token copies that a GPU routes a step, of the first step.
    pub copies_per_gpu: u64,
    /// Tokens of a GPU and step.
    pub tokens_per_gpu: u64,
    /// Memory of a GPU.
    pub memory_bytes: u64,
    /// The cluster, in a line.
    pub cluster: String,
    /// The layer, in a line.
    pub layer: String,
    /// Where tokens go, in a line.
    pub routing: String,
    /// The settings in force, and the cluster's constants.
    pub settings: Value,
}

/// One step of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRecord {
    /// Number in the run, from 0.
    pub index: u32,
    /// Number in its recording.
    pub label: u64,
    /// Where its tokens went.
    pub routing: RoutingRecord,
    /// By strategy.
    pub runs: Vec<RunRecord>,
}

/// The routing of a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RoutingRecord {
    /// The least capacity factor that drops no token.
    pub needed_factor: f64,
    /// Load of the busiest expert over the mean.
    pub max_over_mean: f64,
    /// Standard deviation of expert loads over the mean.
    pub variation: f64,
    /// Busiest experts and the copies they get, most first.
    pub hottest: Vec<(u32, u64)>,
    /// Mean load of groups of neighbouring experts, the mean of all being [`MEAN_LOAD`].
    pub bins: Vec<u16>,
}

/// A step under one strategy.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRecord {
    /// Its time.
    pub time: u64,
    /// By stage.
    pub stages: [u64; STAGES],
    /// Communication during which nothing computed.
    pub exposed: u64,
    /// All-to-Alls.
    pub all_to_all: u64,
    /// The compute stream.
    pub compute: u64,
    /// Most memory a GPU needs.
    pub memory_bytes: u64,
    /// Whether it fits.
    pub fits: bool,
    /// Capacity factor in force.
    pub capacity_factor: f64,
    /// Share of token copies dropped.
    pub dropped: f64,
    /// The plan, as people write it.
    pub plan: Arc<str>,
    /// Whether the policy was trying it.
    pub trial: bool,
    /// Time of the best plan, where known.
    pub oracle: Option<u64>,
    /// What the simulator says, beside a measured time.
    pub predicted: Option<u64>,
}

/// One operation of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpInfo {
    /// What it does.
    pub label: Arc<str>,
    /// Index in the stages.
    pub stage: u8,
    /// Whether it belongs to the backward pass.
    pub backward: bool,
    /// Chunk of the pipelining degree.
    pub chunk: u16,
    /// Whether it is on the communication stream.
    pub communication: bool,
}

/// All operations of one rank: start and end by operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// The rank.
    pub rank: u32,
    /// Start and end.
    pub spans: Vec<(u64, u64)>,
}

/// An operation on the critical path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnPath {
    /// The rank whose operation it is.
    pub rank: u32,
    /// Which operation.
    pub op: u32,
    /// Start.
    pub start: u64,
    /// Time before it in which nothing on the path ran.
    pub waited: u64,
    /// Its time.
    pub ran: u64,
}

/// Figures of every rank; one value where all ranks are alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ranks {
    /// When it is done.
    pub finish: Vec<u64>,
    /// Time its compute stream ran.
    pub compute: Vec<u64>,
    /// Time its communication stream ran.
    pub communication: Vec<u64>,
    /// Time it waited for others at collectives.
    pub waited: Vec<u64>,
    /// Most memory.
    pub memory: Vec<u64>,
    /// Token copies its experts multiply.
    pub rows: Vec<u64>,
    /// Bytes it sends over NVLink.
    pub nvlink_out: Vec<u64>,
    /// Bytes it receives over NVLink.
    pub nvlink_in: Vec<u64>,
    /// Bytes it sends through its NIC.
    pub nic_out: Vec<u64>,
    /// Bytes it receives through its NIC.
    pub nic_in: Vec<u64>,
}

impl Ranks {
    /// All columns, in the order they are written in.
    pub fn columns(&self) -> [&Vec<u64>; 10] {
        [
            &self.finish,
            &self.compute,
            &self.communication,
            &self.waited,
            &self.memory,
            &self.rows,
            &self.nvlink_out,
            &self.nvlink_in,
            &self.nic_out,
            &self.nic_in,
        ]
    }

    /// All columns, to be filled.
    pub fn columns_mut(&mut self) -> [&mut Vec<u64>; 10] {
        [
            &mut self.finish,
            &mut self.compute,
            &mut self.communication,
            &mut self.waited,
            &mut self.memory,
            &mut self.rows,
            &mut self.nvlink_out,
            &mut self.nvlink_in,
            &mut self.nic_out,
            &mut self.nic_in,
        ]
    }
}

/// The value of `rank` in a column of [`Ranks`].
pub fn of_rank(column: &[u64], rank: usize) -> u64 {
    match column {
        [one] => *one,
        many => many.get(rank).copied().unwrap_or(0),
    }
}

/// All links of one class.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkLoad {
    /// Name of the class.
    pub name: Arc<str>,
    /// Links of the class.
    pub links: u64,
    /// Rate of one, bytes a second.
    pub bytes_per_s: f64,
    /// Bytes over all.
    pub total_bytes: u64,
    /// The busiest links and their bytes, most first.
    pub busiest: Vec<(u32, u64)>,
}

/// Who sends how much to whom, ranks in blocks of equal size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Matrix {
    /// Blocks.
    pub side: u32,
    /// Ranks of a block.
    pub ranks_per_block: u32,
    /// Bytes by `[source block * side + destination block]`.
    pub bytes: Vec<u64>,
}

/// One step of one strategy in full.
#[derive(Debug, Clone, PartialEq)]
pub struct Detail {
    /// Number of the step in the run.
    pub step: u32,
    /// Number of the strategy.
    pub strategy: u16,
    /// Its plan.
    pub plan: Arc<str>,
    /// Its time.
    pub time: u64,
    /// W.
    pub gpus: u32,
    /// m.
    pub gpus_per_node: u32,
    /// The program.
    pub ops: Vec<OpInfo>,
    /// Timelines of some ranks, by rank.
    pub lanes: Vec<Lane>,
    /// The critical path.
    pub path: Vec<OnPath>,
    /// All ranks in figures.
    pub ranks: Ranks,
    /// Links by class.
    pub links: Vec<LinkLoad>,
    /// Traffic of all exchanges.
    pub traffic: Matrix,
    /// Token copies by expert, before any is dropped.
    pub loads: Vec<u64>,
}

impl Detail {
    /// Whether one rank stands for all.
    pub fn is_alike(&self) -> bool {
        self.ranks.finish.len() == 1
    }

    /// The timeline of `rank`, if it is there.
    pub fn lane(&self, rank: usize) -> Option<&Lane> {
        match &self.lanes[..] {
            [one] if self.is_alike() => Some(one),
            lanes => lanes.iter().find(|lane| lane.rank as usize == rank),
        }
    }
}

/// One recorded step of all MoE layers of the trace.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerStep {
    /// Number of the step in its recording.
    pub label: u64,
    /// The least capacity factor that drops nothing, by layer; NaN where the layer was not recorded.
    pub needed_factor: Vec<f64>,
    /// Load by `[layer * bins + group of experts]`, the mean being [`MEAN_LOAD`].
    pub loads: Vec<u16>,
}

/// The MoE layers of the trace, as recorded.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layers {
    /// Numbers of the layers.
    pub layers: Vec<u32>,
    /// Experts of a layer.
    pub experts: u32,
    /// Groups that experts are summed up in.
    pub bins: u32,
    /// By step.
    pub steps: Vec<LayerStep>,
}

/// How the run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Whether it was stopped before its last step.
    pub interrupted: bool,
}

/// One block of a run file.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// First of all.
    Header(Box<Header>),
    /// Further steps, in order.
    Steps(Vec<StepRecord>),
    /// One step in full.
    Detail(Arc<Detail>),
    /// The layers of the trace.
    Layers(Arc<Layers>),
    /// Nothing follows.
    End(End),
}

/// Mean loads of `bins` groups of neighbouring experts; the mean of all is [`MEAN_LOAD`].
pub fn binned(loads: &[u64], bins: usize) -> Vec<u16> {
    let bins = bins.min(loads.len()).max(1);
    let total: u64 = loads.iter().sum();
    let mean = total as f64 / loads.len().max(1) as f64;
    (0..bins)
        .map(|bin| {
            let group = &loads[bin * loads.len() / bins..(bin + 1) * loads.len() / bins];
            let load = group.iter().sum::<u64>() as f64 / group.len().max(1) as f64;
            (load / mean.max(f64::MIN_POSITIVE) * MEAN_LOAD)
                .round()
                .min(f64::from(u16::MAX)) as u16
        })
        .collect()
}
