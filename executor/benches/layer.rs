//! The CPU layer against a plain product of the same FLOPs, encode and decode against memcpy, dense
//! against sparse, linear against 2DH. Read ratios, not times.
//!
//! `cargo bench -p moeplan-executor --bench layer`

#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]

mod step;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use moeplan_executor::cpu::Cpu;
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{AllToAll, DType, Encode};
use ndarray::Array2;
use std::hint::black_box;
use step::{Bench, Sizes, Wanted, is_decode, is_encode, timed};

fn cpu(ranks: u64, sizes: &Sizes, plan: Plan, gpus_per_node: u64) -> Bench {
    let backend = Box::new(Cpu::new());
    Bench::new(backend, ranks, sizes, DType::Fp32, plan, gpus_per_node)
}

fn against_gemm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("layer");
    group.sample_size(10);
    for dim in [512_u64, 1024] {
        let mut layer = cpu(1, &Sizes(1024, dim, dim), Plan::PLAIN, 1);
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
    let mut bench = cpu(1, &Sizes(4096, 1024, 64), Plan::PLAIN, 1);
    let kinds: [(&str, Wanted<'_>); 2] = [("encode", &is_encode), ("decode", &is_decode)];
    for (name, wanted) in kinds {
        group.throughput(Throughput::Bytes(bench.bytes(wanted)));
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
        ..Plan::PLAIN
    };
    let two_dh = Plan {
        all_to_all: AllToAll::TwoDh,
        ..Plan::PLAIN
    };
    for (name, plan) in [
        ("sparse linear", Plan::PLAIN),
        ("dense linear", dense),
        ("sparse 2dh", two_dh),
    ] {
        let mut bench = cpu(8, &Sizes(256, 256, 256), plan, 4);
        group.bench_function(name, timed(|| bench.run(|_, _| false).0));
    }
    group.finish();
}

criterion_group!(benches, against_gemm, rows, strategies);
criterion_main!(benches);
