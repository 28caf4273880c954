//! A whole model's step as one program: its parts in order, its MoE layers by the code that compiles a
//! lone layer, then everything backward, gradients summed as they come, and the optimizer.

mod gradients;
mod part;

use self::gradients::Gradients;
use super::tensors::{Shapes, Weights};
use super::{Load, Plan, Source, backward, check, forward};
use crate::ir::{BufferId, OpKind, Pass, PerRank, Program, ProgramBuilder, Scope, Stage, Stream};
use crate::model::{Cut, MemorySaving, ModelSpec, Part, Section, Work};
use crate::spec::{Phase, ResolvedLayer, SpecError};
use std::ops::Range;

/// How one MoE layer of a model is run.
#[derive(Debug, Clone, Copy)]
pub struct MoeRun<'a> {
    /// The layer on its world, with all tokens of a GPU's items.
    pub layer: &'a ResolvedLayer,
    /// Its routing under the plan's capacity.
    pub load: &'a Load,
    /// All choices made.
    pub plan: Plan,
}

/// Everything a model's program is compiled from.
#[derive(Debug, Clone, Copy)]
pub struct ModelSource<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// One an MoE layer, in order.
    pub moe: &'a [MoeRun<'a>],
    /// Items of a GPU, in one micro-batch.
    pub items: u64,
    /// W.
    pub world_size: u64,
    /// m: GPUs a node.
    pub gpus_per_node: u64,
    /// Forward only, or a training step.
    pub phase: Phase,
    /// What is done to need less memory.
    pub saving: MemorySaving,
    /// GPUs, side by side in a node, that share everything but experts.
    pub tensor_parallel: u64,
}

/// Compiles one step of a model: data parallel around its MoE layers, whose experts are spread over
/// all GPUs. Gradients of experts are not summed: no two GPUs hold the same.
///
/// In a tensor-parallel group every GPU has its own tokens wherever whole tokens are needed, as in MoE layers, and all GPUs
/// gather those of the group where they share a weight (sequence parallelism, arXiv 2205.05198).
///
/// # Errors
/// A plan that a layer cannot run, or nodes that do not divide the world.
pub fn compile_model(source: ModelSource<'_>) -> Result<Program, SpecError> {
    let mut layers = source.moe.iter().map(|run| source.of(run));
    layers.try_for_each(|layer| check(&layer))?;
    let mut writer = Writer::new(source);
    let done = writer.forward();
    if source.phase == Phase::Training {
        writer.backward(done);
        for _ in 1..source.saving.micro_batches {
            writer.gradients.next_micro_batch();
            let done = writer.forward();
            writer.backward(done);
        }
        writer.reduce_uncut();
        writer.update();
    }
    Ok(writer.builder.finish())
}

impl<'a> ModelSource<'a> {
    fn of(&self, run: &MoeRun<'a>) -> Source<'a> {
        Source {
            layer: run.layer,
            gpus_per_node: self.gpus_per_node,
            plan: run.plan,
            load: run.load,
            phase: self.phase,
        }
    }
}

/// What the backward pass needs of a part.
enum Kept {
    /// What a dense part saved.
    Dense(Option<BufferId>),
    /// What an MoE layer saved.
    Moe(Box<forward::Saved>),
}

/// What is left of a run of parts when their forward pass is done.
enum Left {
    /// What each part saved.
    All(Vec<Kept>),
    /// Their input alone: they run again before their backward pass.
    Input(BufferId),
}

struct Writer<'a> {
    source: ModelSource<'a>,
    builder: ProgramBuilder,
    weights: BufferId,
    /// MoE layers: how each runs, its shapes and weights.
    moe: Vec<(Source<'a>, Shapes, Weights)>,
    gradients: Gradients,
}

impl<'a> Writer<'a> {
    fn new(source: ModelSource<'a>) -> Self {
        let (world, node) = (source.world_size as usize, source.gpus_per_node as usize);
        // The program's type is that of its MoE layers; everything else states its own.
        let dtype = source.moe.first().map(|run| run.layer.spec.dtype);
        let dtype = dtype.unwrap_or(source.model.dtype);
        let mut builder = ProgramBuilder::new(world, node, dtype);
        let parameters = source.parameters();
        let width = source.model.dtype.bytes();
        let weights = builder.persistent("parameters", parameters * width);
        if source.phase == Phase::Training {
            let state = if width == 2 { 12 } else { 8 };
            let bytes = (parameters * state).div_ceil(source.shards());
            builder.persistent("optimizer state (Adam)", bytes);
        }
        let moe = source.moe.iter().map(|run| {
            let (layer, r) = (run.layer, run.plan.adaptive_r);
            let weights = Weights::allocate(&mut builder, layer, r, source.phase);
            let run = source.of(run);
            (run, Shapes::new(&run), weights)
        });
        Writer {
            moe: moe.collect(),
            source,
            builder,
            weights,
            gradients: Gradients::default(),
        }
    }

    fn forward(&mut self) -> Vec<(Range<usize>, Left)> {
        let mut flow = self.builder.external("input", PerRank::Same(0));
        let mut done = Vec::new();
        for parts in self.source.runs_of_parts() {
            let input = self.checkpoint(&parts);
            let (kept, output) = self.run(parts.clone(), flow, input);
            flow = output;
            done.push((parts, input.map_or(Left::All(kept), Left::Input)));
        }
        done
    }

    /// The copy of what enters a block that runs again; `None` where `parts` keep what they need.
    fn checkpoint(&mut self, parts: &Range<usize>) -> Option<BufferId> {
        let source = self.source;
        if !source.saving.recompute || source.phase == Phase::Forward {
            return None;
        }
        let parts = &source.model.parts[parts.clone()];
        parts.first()?.block?;
        let mut products = parts
            .iter()
            .filter(|part| matches!(part.work, Work::Linear(_)));
        let bytes = products.find_map(|part| source.saved(part))?;
        let buffer = self.builder.buffer("block input", PerRank::Same(bytes));
        Some(buffer)
    }

    /// Emits the forward pass of `parts` on `flow`; returns what each keeps, and the output. With `checkpoint`
    /// nothing is kept but that copy of the input.
    fn run(
        &mut self,
        parts: Range<usize>,
        mut flow: BufferId,
        checkpoint: Option<BufferId>,
    ) -> (Vec<Kept>, BufferId) {
        let mut moe = self.source.moe_before(parts.start)..;
        let mut kept = Vec::with_capacity(parts.len());
        let mut copied = checkpoint;
        for part in &self.source.model.parts[parts] {
            self.builder.at(stage(part), Pass::Forward, 0);
            let (output, keeps) = match part.work {
                Work::Gather { elements } => (self.gather(elements, flow), Kept::Dense(None)),
                Work::Scatter { elements } => (self.scatter(elements, flow), Kept::Dense(None)),
                Work::Moe(_) => {
                    let layer = moe.next().expect("numbers do not end");
                    let (source, shapes, weights) = &self.moe[layer];
                    let (saved, output) =
                        forward::emit(&mut self.builder, source, shapes, weights, flow);
                    (output, Kept::Moe(Box::new(saved)))
                }
                _ => {
                    let keeps = checkpoint.is_none();
                    let (output, saved) = self.dense(part, flow, keeps, copied.take());
                    (output, Kept::Dense(saved))
                }
            };
            flow = output;
            kept.push(keeps);
        }
        (kept, flow)
    }

    /// The forward pass of a dense part, which also writes `copy`; returns its output and, if it `keeps` any, what it does.
    fn dense(
        &mut self,
        part: &Part,
        flow: BufferId,
        keeps: bool,
        copy: Option<BufferId>,
    ) -> (BufferId, Option<BufferId>) {
        let Some(kernels) = self.source.kernels(part) else {
            return (flow, None);
        };
        let output = self.output(part, flow);
        let saved = self.source.saved(part).filter(|_| keeps);
        let saved = saved.map(|bytes| {
            self.builder
                .buffer("kept for backward", PerRank::Same(bytes))
        });
        let mut writes = vec![output];
        writes.extend(copy);
        writes.extend(saved);
        let reads = [flow, self.weights];
        let kind = self.source.op(kernels);
        self.builder.push(Stream::Compute, kind, &reads, &writes);
        (output, saved)
    }

    /// The tokens of all GPUs that share what follows.
    fn gather(&mut self, elements: u64, flow: BufferId) -> BufferId {
        let gather = |scope, bytes| OpKind::AllGather { scope, bytes };
        self.meet(elements, self.source.tensor_parallel, gather, flow)
    }

    /// The sum of what they make of them, of the own tokens.
    fn scatter(&mut self, elements: u64, flow: BufferId) -> BufferId {
        self.meet(
            elements,
            1,
            |scope, bytes| OpKind::ReduceScatter { scope, bytes },
            flow,
        )
    }

    /// A collective of the GPUs that share weights, which leaves every GPU with the `elements` of so many; nothing where
    /// none share any.
    fn meet(
        &mut self,
        elements: u64,
        left: u64,
        kind: impl Fn(Scope, u64) -> OpKind,
        flow: BufferId,
    ) -> BufferId {
        let group = self.source.tensor_parallel;
        if group == 1 {
            return flow;
        }
        let bytes = self.source.bytes(elements);
        let scope = self.source.sharing();
        let output = PerRank::Same(bytes.saturating_mul(left));
        let output = self.builder.buffer("tokens of the group", output);
        let kind = kind(scope, bytes.saturating_mul(group));
        self.builder
            .push(Stream::Communication, kind, &[flow], &[output]);
        output
    }

    /// Where a part writes: passes work in place.
    fn output(&mut self, part: &Part, flow: BufferId) -> BufferId {
        match self.source.output_bytes(part) {
            Some(bytes) => self.builder.buffer("activation", PerRank::Same(bytes)),
            None => flow,
        }
    }

    fn backward(&mut self, done: Vec<(Range<usize>, Left)>) {
        let mut flow = self.builder.external("output gradient", PerRank::Same(0));
        let mut bucket = self.bucket();
        for (parts, left) in done.into_iter().rev() {
            let kept = match left {
                Left::All(kept) => kept,
                Left::Input(input) => self.run(parts.clone(), input, None).0,
            };
            let mut moe = self.source.moe_before(parts.end);
            for (part, kept) in self.source.model.parts[parts].iter().zip(kept).rev() {
                match kept {
                    Kept::Dense(saved) => flow = self.dense_backward(part, saved, flow, bucket),
                    Kept::Moe(saved) => {
                        moe -= 1;
                        let (source, shapes, weights) = &self.moe[moe];
                        let builder = &mut self.builder;
                        flow = backward::emit(builder, source, shapes, weights, *saved, flow);
                        self.accumulate_experts(part, moe);
                    }
                }
                if self.gather_gradients(part) {
                    self.reduce(bucket);
                    bucket = self.bucket();
                }
            }
        }
        self.reduce(bucket);
    }

    /// The backward pass of a dense part; returns the gradient of its input.
    fn dense_backward(
        &mut self,
        part: &Part,
        saved: Option<BufferId>,
        flow: BufferId,
        bucket: BufferId,
    ) -> BufferId {
        self.builder.at(stage(part), Pass::Backward, 0);
        let Some(kernels) = self.source.kernels(part) else {
            return match part.work {
                Work::Gather { elements } => self.scatter(elements, flow),
                Work::Scatter { elements } => self.gather(elements, flow),
                _ => flow,
            };
        };
        let gradient = match self.source.input_bytes(part) {
            Some(bytes) => self.builder.buffer("gradient", PerRank::Same(bytes)),
            None => flow,
        };
        let mut reads = vec![flow, self.weights];
        reads.extend(match part.work {
            // Kept of the own tokens only.
            Work::Linear(linear) if linear.cut == Cut::Outputs => {
                saved.map(|own| self.gather(linear.rows * linear.input, own))
            }
            _ => saved,
        });
        let kind = self.source.op(kernels);
        let writes = [gradient, bucket];
        self.builder.push(Stream::Compute, kind, &reads, &writes);
        gradient
    }
}

impl ModelSource<'_> {
    /// Parts in order, those of a block together.
    fn runs_of_parts(&self) -> Vec<Range<usize>> {
        let mut end = 0;
        let runs = self.model.parts.chunk_by(|a, b| a.block == b.block);
        let run = |parts: &[Part]| {
            let start = end;
            end += parts.len();
            start..end
        };
        runs.map(run).collect()
    }

    /// MoE layers among the first `parts` parts.
    fn moe_before(&self, parts: usize) -> usize {
        let before = self.model.parts[..parts].iter();
        before
            .filter(|part| matches!(part.work, Work::Moe(_)))
            .count()
    }

    /// Parameters that a GPU holds beside experts, but for gates: those are with their layers.
    fn parameters(&self) -> u64 {
        let dense = |part: &&Part| !matches!(part.work, Work::Moe(_));
        let parts = self.model.parts.iter().filter(dense);
        parts
            .map(|part| part.held_parameters(self.tensor_parallel))
            .sum()
    }

    /// Who share weights: neighbours.
    fn sharing(&self) -> Scope {
        Scope::Strided {
            size: self.tensor_parallel as u32,
            stride: 1,
        }
    }

    /// GPUs that hold the same parameters.
    fn replicas(&self) -> u64 {
        self.world_size / self.tensor_parallel
    }

    /// Who they are: those at the same place of their tensor-parallel groups.
    fn data_parallel(&self) -> Scope {
        match self.tensor_parallel {
            1 => Scope::World,
            group => Scope::Strided {
                size: self.replicas() as u32,
                stride: group as u32,
            },
        }
    }

    fn shards_gradients(&self) -> bool {
        self.saving.shard_gradients && self.replicas() > 1
    }

    fn shards(&self) -> u64 {
        if self.saving.shard_states || self.saving.shard_gradients {
            self.replicas()
        } else {
            1
        }
    }
}

const fn stage(part: &Part) -> Stage {
    match part.section {
        Section::Attention => Stage::Attention,
        Section::Dense => Stage::Dense,
    }
}
