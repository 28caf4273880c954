//! A step to be timed, on any backend.

use moeplan_executor::{Backend, Inputs, Routing as Routed, execute, tokens_of_step};
use moeplan_sim::compile::{Load, Plan, Routing, Source, compile};
use moeplan_sim::cost::one_gpu::work_on_one_gpu;
use moeplan_sim::ir::{OpKind, Pass, Program};
use moeplan_sim::spec::{DType, Experts, Gate, LayerSpec, Phase, ResolvedLayer};
use moeplan_traces::TokenStep;
use std::time::Duration;

/// A step and what runs it.
pub(crate) struct Bench {
    layer: ResolvedLayer,
    inputs: Inputs,
    tokens: TokenStep,
    pub(crate) program: Program,
    backend: Box<dyn Backend>,
}

/// Which operations are timed.
pub(crate) type Wanted<'a> = &'a dyn Fn(&OpKind, Pass) -> bool;

/// Sizes of a layer: T, D and H.
pub(crate) struct Sizes(pub(crate) u64, pub(crate) u64, pub(crate) u64);

impl Bench {
    /// A training step of two experts a rank, top-2.
    pub(crate) fn new(
        mut backend: Box<dyn Backend>,
        ranks: u64,
        sizes: &Sizes,
        dtype: DType,
        plan: Plan,
        gpus_per_node: u64,
    ) -> Bench {
        let spec = LayerSpec {
            tokens_per_step: sizes.0,
            model_dim: sizes.1,
            hidden_dim: sizes.2,
            experts: Experts::PerGpu(2.0),
            top_k: 2,
            capacity_factor: 1.0,
            dtype,
            gate: Gate::Linear,
        };
        let layer = spec.resolve(ranks).expect("a layer that resolves");
        let inputs = Inputs::random(&layer, 0, Routed::Gate);
        let tokens = tokens_of_step(&mut *backend, &layer, &inputs).expect("inputs that fit");
        let counts = tokens.counts();
        let load = Load::new(&layer, 1.0, plan.padding, &Routing::Step(&counts));
        let program = compile(Source {
            layer: &layer,
            gpus_per_node,
            plan,
            load: &load,
            phase: Phase::Training,
        })
        .expect("a plan the layer can run");
        Bench {
            layer,
            inputs,
            tokens,
            program,
            backend,
        }
    }

    /// Bytes that rank 0 reads and writes in the operations that `wanted` picks, as the program states them.
    pub(crate) fn bytes(&self, wanted: impl Fn(&OpKind, Pass) -> bool) -> u64 {
        let ops = self.program.ops.iter();
        let work = ops
            .filter(|op| wanted(&op.kind, op.pass))
            .flat_map(|op| work_on_one_gpu(&self.program, op, 0));
        work.map(|work| work.bytes()).sum()
    }

    /// Step time, and time of cores or of the GPU of the operations that `wanted` picks, in seconds.
    pub(crate) fn run(&mut self, wanted: impl Fn(&OpKind, Pass) -> bool) -> (f64, f64) {
        let ran = execute(
            &self.program,
            &self.layer,
            &mut *self.backend,
            &self.inputs,
            &self.tokens,
        )
        .expect("a step that runs");
        let picked = self
            .program
            .iter()
            .filter(|(_, op)| wanted(&op.kind, op.pass));
        let busy = picked.map(|(id, _)| {
            ran.busy[id.index()]
                .iter()
                .map(|time| time.as_secs_f64())
                .sum::<f64>()
        });
        (ran.timeline.step_time().as_secs_f64(), busy.sum())
    }
}

/// Times what `seconds` says instead of the wall around it: a step without drawing inputs.
pub(crate) fn timed(mut seconds: impl FnMut() -> f64) -> impl FnMut(&mut criterion::Bencher<'_>) {
    move |bencher| {
        bencher.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| Duration::from_secs_f64(seconds()))
                .sum()
        });
    }
}

/// Picks encoding.
pub(crate) fn is_encode(kind: &OpKind, pass: Pass) -> bool {
    matches!((kind, pass), (OpKind::Encode { .. }, Pass::Forward))
}

/// Picks decoding.
pub(crate) fn is_decode(kind: &OpKind, pass: Pass) -> bool {
    matches!((kind, pass), (OpKind::Decode { .. }, Pass::Forward))
}
