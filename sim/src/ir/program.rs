//! The program and the builder that checks it.

use super::{
    Buffer, BufferId, Expert, Few, Gradient, Lifetime, Op, OpId, OpKind, Pass, PerRank, Placement,
    Stage, Stream, Traffic, TrafficId,
};
use crate::spec::DType;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;

/// One step of one MoE layer on all ranks: operations in issue order, buffers, byte matrices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// W.
    pub world_size: usize,
    /// m: GPUs that share a node.
    pub gpus_per_node: usize,
    /// Number type of tensors.
    pub dtype: DType,
    /// Operations in the order the host issues them, a topological order.
    pub ops: Vec<Op>,
    /// Allocations.
    pub buffers: Vec<Buffer>,
    /// Byte matrices of the exchanges.
    pub traffic: Vec<Traffic>,
    /// Where rows and weights sit, for a program of a whole layer.
    pub placement: Option<Placement>,
}

impl Program {
    /// The operations with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (OpId, &Op)> {
        self.ops
            .iter()
            .enumerate()
            .map(|(index, op)| (OpId(index as u32), op))
    }

    /// The byte matrix of an exchange.
    pub fn traffic(&self, id: TrafficId) -> &Traffic {
        &self.traffic[id.0 as usize]
    }

    /// Floating-point operations of all kernels of `rank` (matrix products only).
    pub fn flops(&self, rank: usize) -> f64 {
        self.ops
            .iter()
            .flat_map(|op| op.kind.work(op.pass, rank, self.dtype))
            .map(|work| work.flops())
            .sum()
    }

    /// Token copies that the experts of `rank` multiply, forward.
    pub fn expert_rows(&self, rank: usize) -> u64 {
        self.ops
            .iter()
            .filter_map(|op| match &op.kind {
                OpKind::ExpertGemm {
                    matrix: Expert::Up,
                    gradient: Gradient::Output,
                    rows,
                    ..
                } => Some(rows.total(rank)),
                _ => None,
            })
            .sum()
    }

    /// Bytes `rank` sends to other ranks in all exchanges.
    pub fn bytes_sent(&self, rank: usize) -> u64 {
        self.ops
            .iter()
            .filter_map(|op| match op.kind {
                OpKind::Exchange { traffic, .. } => Some(traffic),
                _ => None,
            })
            .map(|id| self.traffic(id).sent_by(rank, self.world_size))
            .sum()
    }

    /// Bytes of all buffers alive at the worst moment of the step, by buffer liveness in issue
    /// order: what an allocator that frees at the last use needs. Also names the live buffers.
    pub fn peak_memory(&self, rank: usize) -> (u64, Vec<(&str, u64)>) {
        let lives = self.lives();
        // Bytes that come to life and die with each operation, summed up as the step goes on.
        let mut change = vec![(0u64, 0u64); self.ops.len() + 1];
        for (buffer, life) in self.buffers.iter().zip(&lives) {
            let bytes = *buffer.bytes.get(rank);
            let Some(life) = life else { continue };
            change[life.start].0 = change[life.start].0.saturating_add(bytes);
            change[life.end].1 = change[life.end].1.saturating_add(bytes);
        }
        let (mut worst, mut most, mut now) = (0, 0u64, 0u128);
        for (index, (born, dead)) in change[..self.ops.len()].iter().enumerate() {
            now = now + u128::from(*born) - u128::from(*dead);
            let bytes = u64::try_from(now).unwrap_or(u64::MAX);
            if bytes >= most {
                (worst, most) = (index, bytes);
            }
        }
        let live = self.buffers.iter().zip(&lives);
        let live = live.filter(|(_, life)| life.as_ref().is_some_and(|life| life.contains(&worst)));
        let live = live.map(|(buffer, _)| (buffer.name.as_ref(), *buffer.bytes.get(rank)));
        (most, live.collect())
    }

    /// The bytes of [`peak_memory`](Program::peak_memory) of the rank that has most.
    pub fn largest_peak_memory(&self) -> u64 {
        // What each operation adds, and takes once the one before is done: on all ranks alike, and by rank.
        let mut alike = vec![0i128; self.ops.len() + 1];
        let mut apart = Vec::new();
        for (buffer, life) in self.buffers.iter().zip(self.lives()) {
            let Some(life) = life else { continue };
            match &buffer.bytes {
                PerRank::Same(bytes) => {
                    alike[life.start] += i128::from(*bytes);
                    alike[life.end] -= i128::from(*bytes);
                }
                PerRank::Each(bytes) => {
                    apart.extend([(life.start, 1, bytes), (life.end, -1, bytes)])
                }
            }
        }
        apart.sort_by_key(|&(op, ..)| op);
        let mut apart = apart.into_iter().peekable();
        let (mut same, mut each) = (0, vec![0i128; self.world_size]);
        let (mut uneven, mut most) = (0, 0);
        for (index, change) in alike[..self.ops.len()].iter().enumerate() {
            same += change;
            let mut changed = false;
            while let Some((_, sign, bytes)) = apart.next_if(|&(op, ..)| op == index) {
                changed = true;
                let sums = each.iter_mut().zip(bytes);
                sums.for_each(|(sum, bytes)| *sum += sign * i128::from(*bytes));
            }
            if changed {
                uneven = each.iter().copied().max().unwrap_or(0);
            }
            most = most.max(same + uneven);
        }
        u64::try_from(most).unwrap_or(u64::MAX)
    }

    /// Bytes of rank 0 that are there for the whole step; all ranks have as many.
    pub fn persistent_bytes(&self) -> u64 {
        let buffers = self.buffers.iter();
        let persistent = buffers.filter(|buffer| buffer.lifetime == Lifetime::Persistent);
        persistent.fold(0, |sum: u64, buffer| {
            sum.saturating_add(*buffer.bytes.get(0))
        })
    }

    /// From which operation on each buffer is there, and from which on no more; none of buffers that neighbouring
    /// layers own or nobody uses.
    fn lives(&self) -> Vec<Option<Range<usize>>> {
        let mut lives: Vec<Option<Range<usize>>> = vec![None; self.buffers.len()];
        for (index, op) in self.ops.iter().enumerate() {
            for id in op.reads.iter().chain(&op.writes) {
                let life = lives[id.0 as usize].get_or_insert(index..index);
                life.end = index + 1;
            }
        }
        for (buffer, life) in self.buffers.iter().zip(&mut lives) {
            match buffer.lifetime {
                Lifetime::Persistent => *life = Some(0..self.ops.len()),
                Lifetime::External => *life = None,
                Lifetime::Transient => {}
            }
        }
        lives
    }
}

/// Writes a program operation by operation and derives its dependencies from the buffers.
#[derive(Debug)]
pub struct ProgramBuilder {
    program: Program,
    writer: Vec<Few<OpId>>,
    readers: Vec<Few<OpId>>,
    stage: Stage,
    pass: Pass,
    chunk: u16,
}

impl ProgramBuilder {
    /// An empty program for `world_size` ranks.
    pub fn new(world_size: usize, gpus_per_node: usize, dtype: DType) -> Self {
        let program = Program {
            world_size,
            gpus_per_node,
            dtype,
            ops: Vec::new(),
            buffers: Vec::new(),
            traffic: Vec::new(),
            placement: None,
        };
        ProgramBuilder {
            program,
            writer: Vec::new(),
            readers: Vec::new(),
            stage: Stage::Gate,
            pass: Pass::Forward,
            chunk: 0,
        }
    }

    /// Operations pushed from here on belong to this stage, pass and chunk.
    pub fn at(&mut self, stage: Stage, pass: Pass, chunk: usize) -> &mut Self {
        (self.stage, self.pass, self.chunk) = (stage, pass, chunk as u16);
        self
    }

    /// States where rows and weights sit.
    pub fn place(&mut self, placement: Placement) {
        self.program.placement = Some(placement);
    }

    /// A buffer that lives from its first use to its last.
    pub fn buffer(&mut self, name: impl Into<Cow<'static, str>>, bytes: PerRank<u64>) -> BufferId {
        self.allocate(name.into(), bytes, Lifetime::Transient)
    }

    /// A buffer that a neighbouring layer owns.
    pub fn external(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        bytes: PerRank<u64>,
    ) -> BufferId {
        self.allocate(name.into(), bytes, Lifetime::External)
    }

    /// A buffer that lives for the whole step.
    pub fn persistent(&mut self, name: impl Into<Cow<'static, str>>, bytes: u64) -> BufferId {
        self.allocate(name.into(), PerRank::Same(bytes), Lifetime::Persistent)
    }

    fn allocate(
        &mut self,
        name: Cow<'static, str>,
        bytes: PerRank<u64>,
        lifetime: Lifetime,
    ) -> BufferId {
        let id = BufferId(self.program.buffers.len() as u32);
        self.program.buffers.push(Buffer {
            name,
            bytes,
            lifetime,
        });
        self.writer.push(Few::new());
        self.readers.push(Few::new());
        id
    }

    /// Gives `buffer` a size that was not known when it was made.
    pub fn resize(&mut self, buffer: BufferId, bytes: u64) {
        self.program.buffers[buffer.0 as usize].bytes = PerRank::Same(bytes);
    }

    /// Number type of tensors.
    pub fn dtype(&self) -> DType {
        self.program.dtype
    }

    /// Registers a byte matrix; equal ones are stored once.
    pub fn traffic(&mut self, traffic: Traffic) -> TrafficId {
        let same = |known: &Traffic| match (known, &traffic) {
            (
                Traffic::Matrix {
                    rows: a,
                    scope: s,
                    chunk: i,
                    chunks: n,
                    ..
                },
                Traffic::Matrix {
                    rows: b,
                    scope: t,
                    chunk: j,
                    chunks: m,
                    ..
                },
            ) => std::sync::Arc::ptr_eq(a, b) && (s, i, n) == (t, j, m),
            (Traffic::Uniform { .. }, Traffic::Uniform { .. }) => *known == traffic,
            (Traffic::Matrix { .. }, Traffic::Uniform { .. })
            | (Traffic::Uniform { .. }, Traffic::Matrix { .. }) => false,
        };
        let index = self
            .program
            .traffic
            .iter()
            .position(same)
            .unwrap_or_else(|| {
                self.program.traffic.push(traffic.clone());
                self.program.traffic.len() - 1
            });
        TrafficId(index as u32)
    }

    /// Appends an operation. It waits for the last writers of what it reads, and for the last
    /// readers and writers of what it writes.
    pub fn push(
        &mut self,
        stream: Stream,
        kind: OpKind,
        reads: &[BufferId],
        writes: &[BufferId],
    ) -> OpId {
        let id = OpId(self.program.ops.len() as u32);
        let mut after: Few<OpId> = Few::new();
        for buffer in reads {
            after.extend_from_slice(&self.writer[buffer.0 as usize]);
        }
        for buffer in writes {
            let buffer = buffer.0 as usize;
            for touched in [&mut self.writer[buffer], &mut self.readers[buffer]] {
                after.extend_from_slice(touched);
                touched.clear();
            }
        }
        after.sort_unstable();
        after.dedup();
        for buffer in reads {
            self.readers[buffer.0 as usize].push(id);
        }
        for buffer in writes {
            self.writer[buffer.0 as usize].push(id);
        }
        self.program.ops.push(Op {
            kind,
            stage: self.stage,
            pass: self.pass,
            chunk: self.chunk,
            stream,
            after,
            reads: Few::from_slice(reads),
            writes: Few::from_slice(writes),
        });
        id
    }

    /// The finished program.
    pub fn finish(self) -> Program {
        self.program
    }
}
