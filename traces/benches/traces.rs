//! Statistics and generation of one step of a large cluster.
#![expect(missing_docs, reason = "criterion's macros define public functions")]
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moeplan_traces::{RoutingSpec, Shape, StatsBuilder, StepStats};
use std::hint::black_box;

fn traces(criterion: &mut Criterion) {
    let shape = Shape {
        ranks: 1024,
        experts: 512,
        tokens_per_rank: 4096,
        top_k: 2,
    };
    let spec: RoutingSpec = "zipf:1,domains=8".parse().unwrap();
    let step = spec.generate(&shape, 1, 0, 0).unwrap();
    let bytes = 4 * step.all_counts().len() as u64;

    let mut group = criterion.benchmark_group("stats");
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("step, drops at three factors", |bench| {
        bench.iter(|| StepStats::at(black_box(&step), &[1.0, 1.25, 2.0]));
    });
    group.throughput(Throughput::Bytes(8 * bytes));
    group.bench_function("builder, 8 steps, drops at one factor", |bench| {
        bench.iter(|| {
            let mut builder = StatsBuilder::new(&[1.0], &[1]);
            (0..8).for_each(|_| builder.push(black_box(&step)));
            builder.finish()
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("generate");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(bytes));
    for text in ["zipf:1", "zipf:1,domains=8", "w2", "zipf:1,capacity=1.5..6"] {
        let spec: RoutingSpec = text.parse().unwrap();
        group.bench_function(text, |bench| {
            bench.iter(|| spec.generate(&shape, 1, black_box(3), 0));
        });
    }
    group.finish();
}

criterion_group!(benches, traces);
criterion_main!(benches);
