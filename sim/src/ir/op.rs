//! Operations as plain data. Every `match` on [`OpKind`] lists all variants, so that a new
//! operation does not build until both interpreters handle it.

use super::{BufferId, PerRank, TrafficId, share_of_chunk};
use crate::spec::{DType, Encode, Gate};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::sync::Arc;

/// Index of an operation in [`Program::ops`](super::Program).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpId(pub u32);

impl OpId {
    /// As an index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Forward or backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    /// Gate to decode.
    Forward,
    /// Decode to gate.
    Backward,
}

/// The part of the layer an operation belongs to: the rows of every report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Logits, softmax, top-k, slot locations.
    Gate,
    /// Tokens into the dispatch buffer.
    Encode,
    /// First All-to-All.
    Dispatch,
    /// Expert FFN.
    Expert,
    /// Second All-to-All.
    Combine,
    /// Expert outputs back to tokens.
    Decode,
    /// All-gather of weights and reduce-scatter of their gradients (r = 0, or r < W/E).
    Weights,
    /// Attention of a whole model, with its projections and norms.
    Attention,
    /// Everything else of a whole model around its MoE layers: dense feed-forwards, embeddings, head.
    Dense,
    /// Gradients of what every GPU holds, summed over all GPUs.
    AllReduce,
    /// The optimizer's pass over parameters and states.
    Optimizer,
}

impl Stage {
    /// The stages of an MoE layer, in its order.
    pub const ALL: [Stage; 7] = [
        Stage::Gate,
        Stage::Encode,
        Stage::Dispatch,
        Stage::Expert,
        Stage::Combine,
        Stage::Decode,
        Stage::Weights,
    ];

    /// The stages that only a whole model has.
    pub const MODEL: [Stage; 4] = [
        Stage::Attention,
        Stage::Dense,
        Stage::AllReduce,
        Stage::Optimizer,
    ];

    /// Name in tables and JSON keys.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Gate => "gate",
            Stage::Encode => "encode",
            Stage::Dispatch => "dispatch",
            Stage::Expert => "expert",
            Stage::Combine => "combine",
            Stage::Decode => "decode",
            Stage::Weights => "weights",
            Stage::Attention => "attention",
            Stage::Dense => "dense",
            Stage::AllReduce => "all_reduce",
            Stage::Optimizer => "optimizer",
        }
    }
}

/// The in-order queue of a GPU that an operation is enqueued on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Kernels.
    Compute,
    /// Collectives and the copies that prepare them.
    Communication,
}

/// Which ranks take part in a collective together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All ranks.
    World,
    /// `size` ranks that are `stride` apart: rank = outer·size·stride + i·stride + inner.
    ///
    /// `stride` 1 and `size` m is a node, `stride` m a rail.
    Strided {
        /// Ranks in a group.
        size: u32,
        /// Distance between neighbours of a group.
        stride: u32,
    },
}

impl Scope {
    /// Ranks in a group.
    pub fn group_size(self, world_size: usize) -> usize {
        match self {
            Scope::World => world_size,
            Scope::Strided { size, .. } => size as usize,
        }
    }

    /// The group `rank` belongs to; groups are numbered from 0.
    pub fn group_of(self, rank: usize) -> usize {
        match self {
            Scope::World => 0,
            Scope::Strided { size, stride } => {
                let (size, stride) = (size as usize, stride as usize);
                rank / (size * stride) * stride + rank % stride
            }
        }
    }

    /// The ranks of the group of `rank`, ascending.
    pub fn members(self, rank: usize, world_size: usize) -> impl Iterator<Item = usize> {
        (0..self.group_size(world_size)).map(move |index| self.peer(rank, index))
    }

    /// Place of `rank` in its group.
    pub fn index_in_group(self, rank: usize) -> usize {
        match self {
            Scope::World => rank,
            Scope::Strided { size, stride } => rank / stride as usize % size as usize,
        }
    }

    /// The rank in place `index` of the group of `rank`.
    pub fn peer(self, rank: usize, index: usize) -> usize {
        match self {
            Scope::World => index,
            Scope::Strided { stride, .. } => {
                rank + index * stride as usize - self.index_in_group(rank) * stride as usize
            }
        }
    }
}

/// How an exchange is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// NCCL sends and receives in one group call, a kernel of its own.
    Grouped,
    /// A phase of a fused MSCCL kernel, Simple protocol: no launch of its own after the first phase.
    FusedSimple,
    /// A phase of a fused MSCCL kernel, LL128 protocol: low latency, 120 of 128 bytes are payload.
    FusedLl128,
}

/// Which matrix product of the expert FFN, `y = act(x·W1 + b1)·W2 + b2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expert {
    /// (rows, D) by (D, H).
    Up,
    /// (rows, H) by (H, D).
    Down,
}

/// What a product computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gradient {
    /// The output, in the forward pass.
    Output,
    /// The gradient of the input.
    Input,
    /// The gradient of the weight.
    Weight,
}

/// Rows that the experts of one rank multiply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpertRows {
    /// `experts` local experts, each over `blocks` separate blocks of `rows` rows: one batched GEMM.
    Padded {
        /// Local experts.
        experts: u64,
        /// Blocks per expert: W in the conventional layout, 1 in the flexible one.
        blocks: u64,
        /// Rows of a block.
        rows: u64,
    },
    /// Uneven: one GEMM an expert (dropless).
    Grouped {
        /// Rows by `[rank * experts + local expert]`, over all chunks.
        rows: Arc<Vec<u32>>,
        /// Local experts of a rank.
        experts: u32,
        /// Which chunk this is.
        chunk: u32,
        /// Of how many.
        chunks: u32,
    },
}

impl ExpertRows {
    /// Rows over all local experts of `rank`.
    pub fn total(&self, rank: usize) -> u64 {
        match self {
            ExpertRows::Padded {
                experts,
                blocks,
                rows,
            } => experts * blocks * rows,
            ExpertRows::Grouped { .. } => self.by_expert(rank).sum(),
        }
    }

    /// Rows of each uneven local expert of `rank`; none where rows are padded.
    pub fn by_expert(&self, rank: usize) -> impl Iterator<Item = u64> + '_ {
        let (rows, chunk, chunks): (&[u32], u64, u64) = match self {
            ExpertRows::Padded { .. } => (&[], 0, 1),
            ExpertRows::Grouped {
                rows,
                experts,
                chunk,
                chunks,
            } => {
                let experts = *experts as usize;
                (
                    &rows[rank * experts..(rank + 1) * experts],
                    u64::from(*chunk),
                    u64::from(*chunks),
                )
            }
        };
        rows.iter()
            .map(move |&rows| share_of_chunk(u64::from(rows), chunk, chunks))
    }
}

/// A pass over memory that computes little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Elementwise {
    /// Adds the bias of one FFN matrix: read and write.
    Bias(Expert),
    /// Activation: read and write.
    Activation,
    /// Backward of the activation: reads the gradient and the saved output, writes the gradient.
    ActivationGradient,
    /// Sums rows into a bias gradient: read.
    BiasGradient(Expert),
    /// Copies chunks to the order the next phase of 2DH sends them in (Algorithm 2): read and write.
    StrideCopy,
    /// Repeats the dispatch buffer r times (Section 3.1, r > 1): read once, write r times.
    Repeat {
        /// r.
        copies: u32,
    },
    /// Sums r partial outputs (r > 1): read r times, write once.
    LocalSum {
        /// r.
        copies: u32,
    },
    /// Gathers the W blocks of the conventional layout into one, for a weight gradient: read and write.
    Gather,
}

/// Kernels of a model around its MoE layers, on all items of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernels {
    /// (rows, input) by a weight (input, output); backward the gradients of both.
    Linear {
        /// Rows.
        rows: u64,
        /// Input channels.
        input: u64,
        /// Output channels.
        output: u64,
    },
    /// `batch` products (m, k) by (k, n) of activations; backward the gradients of both.
    Product {
        /// Products.
        batch: u64,
        /// Rows.
        m: u64,
        /// Columns.
        n: u64,
        /// The summed extent.
        k: u64,
    },
    /// Attention in one kernel that keeps its scores on chip; backward computes them again.
    FusedAttention {
        /// Heads times sequences.
        batch: u64,
        /// Queries of a sequence.
        queries: u64,
        /// Keys that a query sees on average.
        keys: u64,
        /// Channels of a head: those of queries and keys plus those of values.
        channels: u64,
    },
    /// Passes over memory.
    Pass {
        /// Kernels, forward; the backward pass launches as many.
        kernels: u64,
        /// Bytes read and written, forward.
        forward: u64,
        /// Bytes read and written, backward.
        backward: u64,
    },
}

/// What an operation does. Row counts are token copies; a row has `model_dim` elements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpKind {
    /// Gate: logits, softmax, top-k, slots; backward mirrors it.
    Gate {
        /// Which implementation: Fairseq's one-hot tensors or Tutel's scans.
        encode: Encode,
        /// T.
        tokens: u64,
        /// E.
        experts: u64,
        /// D.
        model_dim: u64,
        /// k.
        top_k: u32,
        /// How logits follow from tokens.
        #[serde(default, skip_serializing_if = "Gate::is_linear")]
        gate: Gate,
    },
    /// Agrees on the step's capacity: an all-reduce MAX of one number and a host synchronisation.
    CapacitySync,
    /// Tokens to dispatch buffer (backward: its gradient to token gradients).
    Encode {
        /// Dense einsum or sparse rows.
        encode: Encode,
        /// T.
        tokens: u64,
        /// Token copies that are routed and not dropped, by rank.
        copies: PerRank<u64>,
        /// Rows of the dispatch buffer, by rank.
        slots: PerRank<u64>,
        /// D.
        model_dim: u64,
    },
    /// Gradient of the scores, from the gradient of the output and the combine buffer (K2).
    ScoreGradient {
        /// Dense einsum or sparse rows.
        encode: Encode,
        /// k.
        top_k: u32,
        /// T.
        tokens: u64,
        /// Token copies that are routed and not dropped, by rank.
        copies: PerRank<u64>,
        /// Rows of the combine buffer, by rank.
        slots: PerRank<u64>,
        /// D.
        model_dim: u64,
    },
    /// Combine buffer to tokens (backward: token gradients to buffer).
    Decode {
        /// Dense einsum or sparse rows.
        encode: Encode,
        /// k.
        top_k: u32,
        /// T.
        tokens: u64,
        /// Token copies that are routed and not dropped, by rank.
        copies: PerRank<u64>,
        /// Rows of the combine buffer, by rank.
        slots: PerRank<u64>,
        /// D.
        model_dim: u64,
    },
    /// One exchange of an All-to-All, or one phase of a hierarchical one.
    Exchange {
        /// Who sends how much to whom.
        traffic: TrafficId,
        /// How it is carried.
        transport: Transport,
        /// Whether it is the first phase of its All-to-All.
        first: bool,
    },
    /// One matrix product of the expert FFN.
    ExpertGemm {
        /// W1 or W2.
        matrix: Expert,
        /// Output, input gradient or weight gradient.
        gradient: Gradient,
        /// Rows.
        rows: ExpertRows,
        /// D.
        model_dim: u64,
        /// H of this rank's slice: H/r.
        hidden_dim: u64,
    },
    /// A pass over memory.
    Elementwise {
        /// Which.
        what: Elementwise,
        /// Elements of the tensor, by rank.
        elements: PerRank<u64>,
    },
    /// All-gather of weight slices.
    AllGather {
        /// Who gathers together.
        scope: Scope,
        /// Bytes of the gathered result.
        bytes: u64,
    },
    /// Reduce-scatter of weight gradients.
    ReduceScatter {
        /// Who reduces together.
        scope: Scope,
        /// Bytes of the full gradient.
        bytes: u64,
    },
    /// All-reduce.
    AllReduce {
        /// Who reduces together.
        scope: Scope,
        /// Bytes of the buffer.
        bytes: u64,
    },
    /// Part of a model around its MoE layers.
    Model {
        /// Which kernels.
        kernels: Kernels,
        /// Number type of their products, which may differ from that of the MoE layers.
        dtype: DType,
    },
}

impl OpKind {
    /// The ranks that must meet before this operation can start, if it is a collective.
    pub fn scope(&self, traffic: &[super::Traffic]) -> Option<Scope> {
        match self {
            OpKind::Exchange { traffic: id, .. } => Some(traffic[id.0 as usize].scope()),
            OpKind::AllGather { scope, .. }
            | OpKind::ReduceScatter { scope, .. }
            | OpKind::AllReduce { scope, .. } => Some(*scope),
            OpKind::CapacitySync => Some(Scope::World),
            OpKind::Gate { .. }
            | OpKind::Encode { .. }
            | OpKind::Decode { .. }
            | OpKind::ScoreGradient { .. }
            | OpKind::ExpertGemm { .. }
            | OpKind::Elementwise { .. }
            | OpKind::Model { .. } => None,
        }
    }

    /// Whether the host waits for it before it issues anything else.
    pub fn blocks_host(&self) -> bool {
        matches!(self, OpKind::CapacitySync)
    }

    /// A short name for breakdowns and timelines.
    pub fn label(&self) -> &'static str {
        match self {
            OpKind::Gate { .. } => "gate",
            OpKind::CapacitySync => "capacity all-reduce",
            OpKind::Encode {
                encode: Encode::Dense,
                ..
            } => "dense encode",
            OpKind::Encode {
                encode: Encode::Sparse,
                ..
            } => "sparse encode",
            OpKind::Decode {
                encode: Encode::Dense,
                ..
            } => "dense decode",
            OpKind::Decode {
                encode: Encode::Sparse,
                ..
            } => "sparse decode",
            OpKind::ScoreGradient { .. } => "grad scores",
            OpKind::Exchange { .. } => "exchange",
            OpKind::ExpertGemm {
                matrix: Expert::Up,
                gradient,
                ..
            } => match gradient {
                Gradient::Output => "x·W1",
                Gradient::Input => "grad x",
                Gradient::Weight => "grad W1",
            },
            OpKind::ExpertGemm {
                matrix: Expert::Down,
                gradient,
                ..
            } => match gradient {
                Gradient::Output => "h·W2",
                Gradient::Input => "grad h",
                Gradient::Weight => "grad W2",
            },
            OpKind::Elementwise { what, .. } => match what {
                Elementwise::Bias(_) => "bias",
                Elementwise::Activation => "activation",
                Elementwise::ActivationGradient => "grad activation",
                Elementwise::BiasGradient(_) => "grad bias",
                Elementwise::StrideCopy => "stride copy",
                Elementwise::Repeat { .. } => "repeat",
                Elementwise::LocalSum { .. } => "local sum",
                Elementwise::Gather => "gather blocks",
            },
            OpKind::AllGather { .. } => "all-gather",
            OpKind::ReduceScatter { .. } => "reduce-scatter",
            OpKind::AllReduce { .. } => "all-reduce",
            OpKind::Model { kernels, .. } => match kernels {
                Kernels::Linear { .. } => "linear",
                Kernels::Product { .. } => "product",
                Kernels::FusedAttention { .. } => "attention",
                Kernels::Pass { .. } => "pass",
            },
        }
    }
}

/// A list that is nearly always short: programs of whole models have thousands, and an allocation each was half of
/// what compiling them took.
pub type Few<T> = SmallVec<[T; 4]>;

/// One operation of the program, run by every rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// Where it counts in reports.
    pub stage: Stage,
    /// Forward or backward.
    pub pass: Pass,
    /// Chunk of the pipelining degree, from 0.
    pub chunk: u16,
    /// The queue it waits in.
    pub stream: Stream,
    /// Operations of the same rank that must end first (besides earlier ones of the stream).
    pub after: Few<OpId>,
    /// Buffers read.
    pub reads: Few<BufferId>,
    /// Buffers written.
    pub writes: Few<BufferId>,
}
