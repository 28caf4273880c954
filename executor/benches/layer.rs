//! The CPU layer against a plain product of the same FLOPs, encode and decode against memcpy, dense
//! against sparse, linear against 2DH. Read ratios, not times.
//!
//! `cargo bench -p moeplan-executor`

#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::{Inputs, Routing as Routed, execute, tokens_of_step};
use moeplan_sim::compile::{Load, Plan, Routing, Source, compile};
use moeplan_sim::ir::{OpKind, Pass, Program};
use moeplan_sim::spec::{AllToAll, DType, Encode, Experts, Gate, LayerSpec, Phase, ResolvedLayer};
use moeplan_traces::TokenStep;
use ndarray::Array2;
use std::hint::black_box;
use std::time::Duration;

fn plan() -> Plan {
    Plan::PLAIN
}

struct Bench {
    layer: ResolvedLayer,
    inputs: Inputs,
    tokens: TokenStep,
    program: Program,
    backend: Cpu,
}

impl Bench {
    fn new(ranks: u64, tokens: u64, dims: (u64, u64), plan: Plan, gpus_per_node: u64) -> Bench {
        let spec = LayerSpec {
            tokens_per_step: tokens,
            model_dim: dims.0,
            hidden_dim: dims.1,
            experts: Experts::PerGpu(2.0),
            top_k: 2,
            capacity_factor: 1.0,
            dtype: DType::Fp32,
            gate: Gate::Linear,
        };
        let layer = spec.resolve(ranks).expect("a layer that resolves");
        let inputs = Inputs::random(&layer, 0, Routed::Gate);
        let mut backend = Cpu::new();
        let tokens = tokens_of_step(&mut backend, &layer, &inputs).expect("inputs that fit");
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

    /// Step time, and core time of the operations that `wanted` picks, in seconds.
    fn run(&mut self, wanted: impl Fn(&OpKind, Pass) -> bool) -> (f64, f64) {
        let ran = execute(
            &self.program,
            &self.layer,
            &mut self.backend,
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
fn timed(mut seconds: impl FnMut() -> f64) -> impl FnMut(&mut criterion::Bencher<'_>) {
    move |bencher| {
        bencher.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| Duration::from_secs_f64(seconds()))
                .sum()
        });
    }
}

fn against_gemm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer");
    group.sample_size(10);
    for dim in [512_u64, 1024] {
        let mut layer = Bench::new(1, 1024, (dim, dim), plan(), 1);
        let flops = layer.program.flops(0);
        group.throughput(Throughput::Elements(flops as u64));
        group.bench_function(
            BenchmarkId::new("step", dim),
            timed(|| layer.run(|_, _| false).0),
        );
        // One product of the same FLOPs with the layer's rows and channels.
        let (m, n, k) = (1024, dim as usize, dim as usize);
        let (a, b) = (Array2::<f32>::ones((m, k)), Array2::<f32>::ones((k, n)));
        let times = flops / (2 * m * n * k) as f64;
        group.bench_function(
            BenchmarkId::new("plain product", dim),
            timed(|| {
                let clock = std::time::Instant::now();
                black_box(black_box(&a).dot(&b));
                clock.elapsed().as_secs_f64() * times
            }),
        );
    }
    group.finish();
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    group.sample_size(10);
    let mut bench = Bench::new(1, 4096, (1024, 64), plan(), 1);
    let bytes = |wanted: fn(&OpKind, Pass) -> bool| -> u64 {
        let ops = bench
            .program
            .ops
            .iter()
            .filter(|op| wanted(&op.kind, op.pass));
        let work = ops.flat_map(|op| op.kind.work(op.pass, 0, DType::Fp32));
        work.map(|work| match work {
            moeplan_sim::ir::Work::Memory { bytes }
            | moeplan_sim::ir::Work::Framework { bytes, .. } => bytes,
            moeplan_sim::ir::Work::Gemm(_) => 0,
        })
        .sum()
    };
    let encode: fn(&OpKind, Pass) -> bool =
        |kind, pass| matches!((kind, pass), (OpKind::Encode { .. }, Pass::Forward));
    let decode: fn(&OpKind, Pass) -> bool =
        |kind, pass| matches!((kind, pass), (OpKind::Decode { .. }, Pass::Forward));
    for (name, wanted, bytes) in [
        ("encode", encode, bytes(encode)),
        ("decode", decode, bytes(decode)),
    ] {
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(name, timed(|| bench.run(wanted).1));
    }
    let source = vec![1.0_f32; 4 << 20];
    let mut target = vec![0.0_f32; 4 << 20];
    group.throughput(Throughput::Bytes(8 * source.len() as u64));
    // Core time, as that of encode and decode.
    let memcpy = timed(|| {
        let clock = cpu_time::ThreadTime::now();
        black_box(&mut target[..]).copy_from_slice(black_box(&source));
        clock.elapsed().as_secs_f64()
    });
    group.bench_function("memcpy", memcpy);
    group.finish();
}

fn strategies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("strategies");
    group.sample_size(10);
    let dense = Plan {
        encode: Encode::Dense,
        ..plan()
    };
    let two_dh = Plan {
        all_to_all: AllToAll::TwoDh,
        ..plan()
    };
    for (name, plan) in [
        ("sparse linear", plan()),
        ("dense linear", dense),
        ("sparse 2dh", two_dh),
    ] {
        let mut bench = Bench::new(8, 256, (256, 256), plan, 4);
        group.bench_function(name, timed(|| bench.run(|_, _| false).0));
    }
    group.finish();
}

criterion_group!(benches, against_gemm, rows, strategies);
criterion_main!(benches);
