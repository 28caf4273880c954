//! Program -> tasks: every operation of every rank, with all addresses worked out.

mod expert;
mod geometry;
mod rows;
mod weights;

pub use geometry::{Chunk, Geometry, Piece, Placed, SlotMap, total};
pub use weights::WeightLayout;

use crate::ExecError;
use crate::cosine::CosineLayout;
use crate::task::{Dense, Slots, Task};
use moeplan_sim::ir::{BufferId, Elementwise, Gradient, Lifetime, Op, OpId, OpKind, Pass, Program};
use moeplan_sim::spec::{DType, Encode};
use moeplan_traces::RoutingStep;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A buffer as it is allocated.
#[derive(Debug, Clone, PartialEq)]
pub struct BufferPlan {
    /// What it holds.
    pub name: String,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Number type: the layer's, or the gate's FP32.
    pub dtype: DType,
    /// Elements, by rank.
    pub elements: Vec<usize>,
}

impl BufferPlan {
    /// Bytes on `rank`.
    pub fn bytes(&self, rank: usize) -> usize {
        self.elements[rank] * self.dtype.bytes() as usize
    }
}

/// The buffers a run starts from and leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// (T, D).
    pub tokens: BufferId,
    /// (D, E), or the parts of a cosine gate.
    pub gate: BufferId,
    /// This rank's slice of all expert weights.
    pub experts: BufferId,
    /// (T, D).
    pub output: BufferId,
    /// Of a training step.
    pub backward: Option<BackwardRoles>,
}

/// The same for the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardRoles {
    /// (T, D), given.
    pub output_gradient: BufferId,
    /// (T, D).
    pub token_gradient: BufferId,
    /// As the gate.
    pub gate_gradient: BufferId,
    /// As the slice of weights.
    pub expert_gradient: BufferId,
    /// (T, k) in front.
    pub score_gradient: BufferId,
}

/// A program with all addresses.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// Sizes.
    pub geometry: Geometry,
    /// What every rank does, by operation and rank.
    pub tasks: Vec<Vec<Vec<Task>>>,
    /// The program's buffers.
    pub buffers: Vec<BufferPlan>,
    /// Which buffer is what.
    pub roles: Roles,
}

/// Lowers `program`, compiled for `routing`.
///
/// # Errors
/// A program that is no whole layer or was compiled for another routing step, and sizes that
/// disagree with what its operations touch.
pub fn lower(program: &Program, routing: &RoutingStep) -> Result<Lowered, ExecError> {
    let geometry = Geometry::new(program, routing)?;
    let roles = roles(program)?;
    let of_gate = of_gate(program, &roles);
    let buffers = program.buffers.iter().enumerate().map(|(index, buffer)| {
        let dtype = match of_gate.contains(&BufferId(index as u32)) {
            true => DType::Fp32,
            false => program.dtype,
        };
        let elements = |rank| buffer.bytes.get(rank).div_ceil(dtype.bytes()) as usize;
        BufferPlan {
            name: buffer.name.to_string(),
            lifetime: buffer.lifetime,
            dtype,
            elements: (0..program.world_size).map(elements).collect(),
        }
    });
    let buffers = buffers.collect();
    let mut lowering = Lowering {
        program,
        geometry,
        buffers,
        rows: BTreeMap::new(),
        saved: BTreeMap::new(),
        gathered: BTreeSet::new(),
    };
    let tasks = program
        .iter()
        .map(|(id, op)| lowering.op(id, op))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Lowered {
        roles,
        geometry: lowering.geometry,
        buffers: lowering.buffers,
        tasks,
    })
}

/// Buffers of the gate, which computes in FP32 whatever the layer's number type.
fn of_gate(program: &Program, roles: &Roles) -> BTreeSet<BufferId> {
    let gates = program
        .ops
        .iter()
        .filter(|op| matches!(op.kind, OpKind::Gate { .. }));
    let written = gates.flat_map(|op| op.writes.iter().copied());
    let score_gradient = roles.backward.map(|roles| roles.score_gradient);
    let token_gradient = roles.backward.map(|roles| roles.token_gradient);
    let of_gate = written.chain([roles.gate]).chain(score_gradient);
    of_gate
        .filter(|&buffer| Some(buffer) != token_gradient)
        .collect()
}

struct Lowering<'a> {
    program: &'a Program,
    geometry: Geometry,
    buffers: Vec<BufferPlan>,
    /// Rows each buffer holds, by rank.
    rows: BTreeMap<BufferId, Vec<Vec<Placed>>>,
    /// Buffers of the forward pass that the backward pass reads: their chunk.
    saved: BTreeMap<BufferId, Chunk>,
    /// Buffers in which the blocks of every expert lie together.
    gathered: BTreeSet<BufferId>,
}

impl Lowered {
    /// Buffers of the own rank that each operation uses, each once.
    pub fn uses(&self, program: &Program, rank: usize) -> Vec<Vec<BufferId>> {
        let ops = program.ops.iter().zip(&self.tasks);
        ops.map(|(op, tasks)| {
            let of_tasks = tasks[rank].iter().flat_map(Task::buffers);
            let stated = op.reads.iter().chain(&op.writes).copied();
            let used: BTreeSet<BufferId> = of_tasks.chain(stated).collect();
            used.into_iter().collect()
        })
        .collect()
    }

    /// Buffers that are read when the step is over.
    pub fn results(&self) -> Vec<BufferId> {
        let backward = self.roles.backward.iter().flat_map(|roles| {
            [
                roles.token_gradient,
                roles.gate_gradient,
                roles.expert_gradient,
                roles.score_gradient,
            ]
        });
        [self.roles.output].into_iter().chain(backward).collect()
    }
}

impl Lowering<'_> {
    fn ranks(&self) -> std::ops::Range<usize> {
        0..self.geometry.world
    }

    fn chunk(&self, op: &Op) -> Chunk {
        Chunk {
            index: op.chunk as usize,
            degree: self.geometry.degree(op.pass),
        }
    }

    /// Tasks of one operation, by rank.
    fn op(&mut self, id: OpId, op: &Op) -> Result<Vec<Vec<Task>>, ExecError> {
        match &op.kind {
            OpKind::Gate { .. } => Ok(self.each(|_| vec![gate(op, self.geometry.cosine)])),
            OpKind::CapacitySync => Ok(self.each(|_| vec![Task::CapacitySync])),
            OpKind::Encode { encode, .. } => self.encode(op, *encode),
            OpKind::Decode { encode, .. } => self.decode(op, *encode),
            OpKind::ScoreGradient { encode, .. } => Ok(self.score_gradient(op, *encode)),
            OpKind::Exchange { traffic, .. } => {
                self.exchange(op, self.program.traffic(*traffic).scope())
            }
            OpKind::ExpertGemm {
                matrix, gradient, ..
            } => self.expert_gemm(op, *matrix, *gradient),
            OpKind::Elementwise { what, .. } => self.elementwise(id, op, *what),
            OpKind::AllGather { scope, .. } => Ok(self.all_gather(op, *scope)),
            OpKind::ReduceScatter { scope, .. } => Ok(self.reduce_scatter(op, *scope)),
            OpKind::AllReduce { .. } | OpKind::Model { .. } => Err(ExecError::Disagrees(
                "whole models are simulated only: expected a program of one MoE layer".into(),
            )),
        }
    }

    fn each(&self, task: impl Fn(usize) -> Vec<Task>) -> Vec<Vec<Task>> {
        self.ranks().map(task).collect()
    }

    fn elementwise(
        &mut self,
        id: OpId,
        op: &Op,
        what: Elementwise,
    ) -> Result<Vec<Vec<Task>>, ExecError> {
        match what {
            Elementwise::Bias(matrix) => Ok(self.bias(op, matrix)),
            Elementwise::BiasGradient(matrix) => Ok(self.bias_gradient(op, matrix)),
            Elementwise::Activation => Ok(self.activation(op)),
            Elementwise::ActivationGradient => Ok(self.activation_gradient(op)),
            Elementwise::StrideCopy => self.stride_copy(id, op),
            Elementwise::Gather => self.gather_blocks(op),
            Elementwise::Repeat { copies } => Ok(self.repeat(op, copies as usize, true)),
            Elementwise::LocalSum { copies } => Ok(self.repeat(op, copies as usize, false)),
        }
    }

    /// States what rows `buffer` holds, and that its size is theirs.
    ///
    /// A dropless program states the sizes of chunks and of what a hierarchical All-to-All holds
    /// on its way as equal shares; what really falls into a chunk differs by rounding. Everything
    /// else has to agree.
    fn hold(
        &mut self,
        buffer: BufferId,
        rows: Vec<Vec<Placed>>,
        width: usize,
    ) -> Result<(), ExecError> {
        let exact = self.geometry.capacity.is_some()
            || (self.geometry.forward_degree == 1
                && self.geometry.backward_degree <= 1
                && self.buffers[buffer.0 as usize].name != "all-to-all staging");
        for (rank, rows) in rows.iter().enumerate() {
            let plan = &mut self.buffers[buffer.0 as usize];
            let (stated, held) = (plan.elements[rank], total(rows) * width);
            if exact && stated != held {
                return Err(ExecError::Disagrees(format!(
                    "`{}` has {stated} elements on rank {rank}, its rows {held}",
                    plan.name
                )));
            }
            plan.elements[rank] = held;
        }
        self.rows.insert(buffer, rows);
        Ok(())
    }

    fn sent(&self, chunk: Chunk, slices: usize) -> Vec<Vec<Placed>> {
        self.ranks()
            .map(|rank| self.geometry.sent(rank, chunk, slices))
            .collect()
    }

    fn received(&self, chunk: Chunk) -> Vec<Vec<Placed>> {
        self.ranks()
            .map(|rank| self.geometry.received(rank, chunk))
            .collect()
    }

    /// The slots of chunk buffers on `rank`.
    fn slots(&self, rank: usize, chunks: &[BufferId]) -> Slots {
        let degree = chunks.len();
        let rows = |index| total(&self.geometry.sent(rank, Chunk { index, degree }, 1));
        Slots {
            chunks: chunks.to_vec(),
            rows: (0..degree).map(rows).collect(),
            map: Arc::new(SlotMap::new(&self.geometry, rank, degree)),
        }
    }

    /// Columns of the dense tensors on `rank`.
    fn dense(&self, rank: usize) -> Dense {
        let mut first = Vec::new();
        let mut columns = 0;
        for expert in 0..self.geometry.experts {
            first.push(columns);
            columns += match self.geometry.capacity {
                Some(capacity) => capacity,
                None => self.geometry.kept[rank * self.geometry.experts + expert],
            };
        }
        Dense {
            first: Arc::new(first),
            columns,
        }
    }

    fn encode(&mut self, op: &Op, encode: Encode) -> Result<Vec<Vec<Task>>, ExecError> {
        let degree = self.geometry.degree(op.pass);
        match op.pass {
            Pass::Forward => {
                let (chunks, dense) = op.writes.split_at(degree);
                self.hold_sent(chunks)?;
                let chunks = chunks.to_vec();
                Ok(self.each(|rank| match encode {
                    Encode::Sparse => vec![Task::Scatter {
                        source: op.reads[0],
                        slots: self.slots(rank, &chunks),
                        weighted: false,
                    }],
                    Encode::Dense => self.dense_encode(rank, op, &chunks, dense),
                }))
            }
            Pass::Backward => {
                let (chunks, dense) = op.reads.split_at(degree);
                Ok(self.each(|rank| match encode {
                    Encode::Sparse => vec![Task::Gather {
                        slots: self.slots(rank, chunks),
                        target: op.writes[0],
                        weighted: false,
                    }],
                    // dense = [combine weights, mask, boolean mask].
                    Encode::Dense => self.gather_slots(rank, dense[1], chunks, op.writes[0]),
                }))
            }
        }
    }

    fn decode(&mut self, op: &Op, encode: Encode) -> Result<Vec<Vec<Task>>, ExecError> {
        let degree = self.geometry.degree(op.pass);
        match op.pass {
            Pass::Forward => {
                let (chunks, dense) = op.reads[1..].split_at(degree);
                Ok(self.each(|rank| match encode {
                    Encode::Sparse => vec![Task::Gather {
                        slots: self.slots(rank, chunks),
                        target: op.writes[0],
                        weighted: true,
                    }],
                    Encode::Dense => self.gather_slots(rank, dense[0], chunks, op.writes[0]),
                }))
            }
            Pass::Backward => {
                self.hold_sent(&op.writes)?;
                Ok(self.each(|rank| match encode {
                    Encode::Sparse => vec![Task::Scatter {
                        source: op.reads[0],
                        slots: self.slots(rank, &op.writes),
                        weighted: true,
                    }],
                    Encode::Dense => self.scatter_slots(rank, op.reads[2], op.reads[0], &op.writes),
                }))
            }
        }
    }

    /// Chunk buffers of the own rows, which are repeated in place where r > 1.
    fn hold_sent(&mut self, chunks: &[BufferId]) -> Result<(), ExecError> {
        let degree = chunks.len();
        for (index, &buffer) in chunks.iter().enumerate() {
            let chunk = Chunk { index, degree };
            let rows = self.sent(chunk, self.geometry.slices());
            self.hold(buffer, rows, self.geometry.model_dim)?;
            if self.geometry.adaptive_r == 0 {
                self.saved.entry(buffer).or_insert(chunk);
            }
        }
        Ok(())
    }

    fn score_gradient(&mut self, op: &Op, encode: Encode) -> Vec<Vec<Task>> {
        let chunks = &op.reads[1..=self.geometry.forward_degree];
        self.each(|rank| match encode {
            Encode::Sparse => vec![Task::RowDots {
                gradient: op.reads[0],
                slots: self.slots(rank, chunks),
                target: op.writes[0],
            }],
            Encode::Dense => self.dense_scores(rank, op, chunks),
        })
    }
}

fn gate(op: &Op, cosine: Option<CosineLayout>) -> Task {
    match op.pass {
        Pass::Forward => Task::Gate {
            tokens: op.reads[0],
            weight: op.reads[1],
            scores: op.writes[0],
            cosine: cosine.map(|layout| (layout, op.writes[1])),
        },
        Pass::Backward => Task::GateGradient {
            choices: op.reads[0],
            scores: op.reads[1],
            tokens: op.reads[2],
            weight: op.reads[3],
            token_gradient: op.writes[0],
            weight_gradient: op.writes[1],
            cosine: cosine.map(|layout| (layout, [op.reads[4], op.writes[2]])),
        },
    }
}

/// Reads the roles of buffers off the operations that use them.
fn roles(program: &Program) -> Result<Roles, ExecError> {
    let find = |pass: Pass, wanted: &dyn Fn(&OpKind) -> bool| {
        program
            .ops
            .iter()
            .find(|op| op.pass == pass && wanted(&op.kind))
    };
    let lacks = || ExecError::Disagrees("the program is not a whole layer".into());
    let gate = |kind: &OpKind| matches!(kind, OpKind::Gate { .. });
    let decode = |kind: &OpKind| matches!(kind, OpKind::Decode { .. });
    let product = |kind: &OpKind| matches!(kind, OpKind::ExpertGemm { .. });
    let weight = |kind: &OpKind| {
        matches!(
            kind,
            OpKind::ExpertGemm {
                gradient: Gradient::Weight,
                ..
            }
        )
    };
    let gather = |kind: &OpKind| matches!(kind, OpKind::AllGather { .. });
    let scatter = |kind: &OpKind| matches!(kind, OpKind::ReduceScatter { .. });
    let scores = |kind: &OpKind| matches!(kind, OpKind::ScoreGradient { .. });
    let first = find(Pass::Forward, &gate).ok_or_else(lacks)?;
    let experts = match find(Pass::Forward, &gather) {
        Some(op) => op.reads[0],
        None => find(Pass::Forward, &product).ok_or_else(lacks)?.reads[1],
    };
    let backward = find(Pass::Backward, &gate).map(|gate| {
        let expert_gradient =
            find(Pass::Backward, &scatter).or_else(|| find(Pass::Backward, &weight));
        let scores = find(Pass::Backward, &scores).ok_or_else(lacks)?;
        Ok(BackwardRoles {
            output_gradient: scores.reads[0],
            token_gradient: gate.writes[0],
            gate_gradient: gate.writes[1],
            expert_gradient: expert_gradient.ok_or_else(lacks)?.writes[0],
            score_gradient: scores.writes[0],
        })
    });
    Ok(Roles {
        tokens: first.reads[0],
        gate: first.reads[1],
        experts,
        output: find(Pass::Forward, &decode).ok_or_else(lacks)?.writes[0],
        backward: backward.transpose()?,
    })
}
