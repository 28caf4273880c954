//! Whole steps at 2,048 GPUs: `cargo bench -p moeplan-sim --bench simulate`. Goals on two cores: an
//! uneven All-to-All 0.3 s, a step of degree 8 forward and backward 1 s, a search over all (r, d, a)
//! 10 s. Nothing is kept from one iteration to the next.
#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]

use criterion::measurement::WallTime;
use criterion::{BatchSize, BenchmarkGroup, Criterion, criterion_group, criterion_main};
use moeplan_sim::compile::{Load, Payload, Plan, Routing, all_to_all};
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::cost::price::price;
use moeplan_sim::hardware::{Hardware, builtin};
use moeplan_sim::policy::Runner;
use moeplan_sim::simulate::{Scenario, simulate_step};
use moeplan_sim::spec::{
    AllToAll, Encode, Experts, LayerSpec, Layout, Padding, Phase, ResolvedLayer, Strategy,
};
use moeplan_traces::{RoutingStep, Shape, shipped};
use std::sync::Arc;

const GPUS: u64 = 2_048;

fn hardware() -> Hardware {
    builtin("nd-a100-v4-80gb").expect("a built-in preset")
}

fn model() -> Analytic {
    Analytic::new(&hardware()).expect("a built-in preset")
}

/// The layer of the paper's whole-layer experiment with `per_gpu` experts a GPU.
fn layer(per_gpu: f64) -> ResolvedLayer {
    let layer = LayerSpec {
        experts: Experts::PerGpu(per_gpu),
        ..LayerSpec::default()
    };
    layer.resolve(GPUS).expect("a layer of the paper")
}

/// A step of the shipped trace, scaled to `layer`.
fn digits(layer: &ResolvedLayer) -> RoutingStep {
    let trace = shipped("digits").expect("the shipped trace");
    let shape = Shape {
        ranks: layer.world_size as usize,
        experts: layer.num_experts as usize,
        tokens_per_rank: layer.tokens() as u32,
        top_k: layer.spec.top_k,
    };
    let step = trace.steps.first().expect("a trace has steps");
    step.resample(&shape, 0).expect("a shape of the paper")
}

fn scenario<'a>(layer: &'a ResolvedLayer, model: &'a Analytic) -> Scenario<'a> {
    let hardware = hardware();
    Scenario {
        layer,
        gpus_per_node: hardware.node.gpus,
        memory_bytes: hardware.memory_bytes(),
        reserved_bytes: hardware.reserved_bytes(),
        model,
        phase: Phase::Training,
    }
}

/// An uneven matrix of rows: volumes by source, hot columns, noise.
fn uneven() -> Arc<Vec<u32>> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 58
    };
    let rows = (0..GPUS * GPUS).map(|pair| {
        let hot = if pair % 16 == 3 { 10 } else { 1 };
        ((1 + random()) * hot) as u32
    });
    Arc::new(rows.collect())
}

fn exchange(group: &mut BenchmarkGroup<'_, WallTime>) {
    let rows = uneven();
    group.bench_function("uneven linear all-to-all", |b| {
        b.iter_batched(
            model,
            |model| {
                let payload = Payload::Matrix {
                    rows: rows.clone(),
                    row_bytes: 4_096,
                };
                let program = all_to_all(AllToAll::Linear, &payload, GPUS as usize, 8);
                price(&program, &model)
            },
            BatchSize::PerIteration,
        );
    });
}

fn step(group: &mut BenchmarkGroup<'_, WallTime>, padding: Padding, all_to_all: AllToAll) {
    let layer = layer(2.0);
    let routing = digits(&layer);
    let plan = Plan {
        encode: Encode::Sparse,
        all_to_all,
        layout: Layout::Flexible,
        padding,
        forward_degree: 8,
        backward_degree: 8,
        adaptive_r: 1,
    };
    let model = model();
    group.bench_function(format!("step, degree 8, {padding}, {all_to_all}"), |b| {
        b.iter(|| {
            let load = Load::new(&layer, 1.0, padding, &Routing::Step(&routing));
            simulate_step(&scenario(&layer, &model), plan, &load)
        });
    });
}

fn search(group: &mut BenchmarkGroup<'_, WallTime>, padding: Padding, per_gpu: f64) {
    let layer = layer(per_gpu);
    let routing = digits(&layer);
    let strategy = Strategy {
        padding,
        ..Strategy::tutel()
    };
    let model = model();
    group.bench_function(format!("search, {padding}, {per_gpu} experts a GPU"), |b| {
        b.iter(|| {
            let mut runner = Runner::new(scenario(&layer, &model), strategy.clone(), true)
                .expect("plans the layer can run");
            runner.step(&Routing::Step(&routing))
        });
    });
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("simulate 2048 GPUs");
    group.sample_size(10);
    exchange(&mut group);
    for padding in [Padding::Capacity, Padding::Dropless] {
        for all_to_all in [AllToAll::Linear, AllToAll::TwoDh] {
            step(&mut group, padding, all_to_all);
        }
        for per_gpu in [2.0, 0.25] {
            search(&mut group, padding, per_gpu);
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
