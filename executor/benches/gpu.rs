//! On a GPU, by its own clock: products by cuBLAS against our own kernel, encode and decode against a copy in its memory,
//! dense against sparse, 2DH against linear, dropless against padded. Read ratios, not times. Says SKIPPED where there is
//! no GPU.
//!
//! `cargo bench -p moeplan-executor --bench gpu`

#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]
#![expect(clippy::print_stdout, reason = "says what it skips")]

mod step;

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use moeplan_executor::cuda::{Cuda, Settings};
use moeplan_sim::compile::Plan;
use moeplan_sim::ir::{Elementwise, OpKind};
use moeplan_sim::spec::{AllToAll, DType, Encode, Padding};
use std::time::Duration;
use step::{Bench, Sizes, Wanted, is_decode, is_encode, timed};

/// A step whose ranks run one after the other, so that every operation has the GPU for itself.
fn gpu(ranks: u64, sizes: &Sizes, dtype: DType, plan: Plan, without_blas: bool) -> Option<Bench> {
    let settings = Settings {
        ranks_apart: true,
        without_blas,
        ..Settings::default()
    };
    match Cuda::probe(settings) {
        Ok(cuda) => {
            let gpus_per_node = (ranks / 2).max(1);
            let backend = Box::new(cuda);
            Some(Bench::new(
                backend,
                ranks,
                sizes,
                dtype,
                plan,
                gpus_per_node,
            ))
        }
        Err(why) => {
            println!("SKIPPED: {why}");
            None
        }
    }
}

fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("products");
    group.sampling_mode(SamplingMode::Flat);
    let sizes = Sizes(4096, 1024, 2048);
    for dtype in [DType::Fp32, DType::Bf16] {
        for (name, without_blas) in [("cuBLAS", false), ("own kernel", true)] {
            let Some(mut bench) = gpu(1, &sizes, dtype, Plan::PLAIN, without_blas) else {
                return;
            };
            let wanted = |kind: &OpKind, _| matches!(kind, OpKind::ExpertGemm { .. });
            let flops = bench.program.flops(0);
            group.throughput(Throughput::Elements(flops as u64));
            let id = BenchmarkId::new(name, dtype);
            group.bench_function(id, timed(|| bench.run(wanted).1));
        }
    }
    group.finish();
}

fn rows(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rows");
    group.sampling_mode(SamplingMode::Flat);
    for dtype in [DType::Fp32, DType::Bf16] {
        let sizes = Sizes(8192, 2048, 512);
        let Some(mut bench) = gpu(1, &sizes, dtype, Plan::PLAIN, false) else {
            return;
        };
        let dots = |kind: &OpKind, _| matches!(kind, OpKind::ScoreGradient { .. });
        let bias = |kind: &OpKind, _| {
            matches!(
                kind,
                OpKind::Elementwise {
                    what: Elementwise::BiasGradient(_),
                    ..
                }
            )
        };
        // What a rank sends itself is a copy in the GPU's memory.
        let copy = |kind: &OpKind, _| matches!(kind, OpKind::Exchange { .. });
        let wanted: [(&str, Wanted<'_>); 5] = [
            ("encode", &is_encode),
            ("decode", &is_decode),
            ("score gradient", &dots),
            ("bias gradient", &bias),
            ("copy", &copy),
        ];
        for (name, wanted) in wanted {
            group.throughput(Throughput::Bytes(bench.bytes(wanted)));
            let id = BenchmarkId::new(name, dtype);
            group.bench_function(id, timed(|| bench.run(wanted).1));
        }
    }
    group.finish();
}

fn strategies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("strategies");
    group.sampling_mode(SamplingMode::Flat);
    for (name, plan) in [
        ("sparse linear", Plan::PLAIN),
        (
            "dense linear",
            Plan {
                encode: Encode::Dense,
                ..Plan::PLAIN
            },
        ),
        (
            "sparse 2dh",
            Plan {
                all_to_all: AllToAll::TwoDh,
                ..Plan::PLAIN
            },
        ),
        (
            "sparse dropless",
            Plan {
                padding: Padding::Dropless,
                ..Plan::PLAIN
            },
        ),
    ] {
        let Some(mut bench) = gpu(8, &Sizes(2048, 1024, 1024), DType::Bf16, plan, false) else {
            return;
        };
        group.bench_function(name, timed(|| bench.run(|_, _| true).1));
    }
    group.finish();
}

/// A sample is a whole step with its copies from and to the host, of which the GPU's time is a small part.
fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(1))
}

criterion_group! {
    name = benches;
    config = config();
    targets = products, rows, strategies
}
criterion_main!(benches);
