//! How long the network takes to answer: `cargo bench -p moeplan-sim --bench flow`.
#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]

use criterion::{Criterion, criterion_group, criterion_main};
use moeplan_sim::network::drain;
use moeplan_sim::network::fabric::{Fabric, Leaves, Routing};
use moeplan_sim::network::traffic::Traffic;
use moeplan_sim::units::Bandwidth;
use std::hint::black_box;
use std::time::Instant;

fn gb(gigabytes: f64) -> Bandwidth {
    Bandwidth::from_bytes_per_second(gigabytes * 1e9).expect("a positive constant")
}

fn fabric(world_size: u32) -> Fabric {
    Fabric::new(world_size, 8, gb(300.0), gb(25.0)).expect("full nodes of 8")
}

fn oversubscribed(world_size: u32, routing: Routing) -> Fabric {
    let leaves = Leaves {
        nodes_per_leaf: 16,
        oversubscription: 1.5,
        spines: 8,
        routing,
    };
    fabric(world_size)
        .with_leaves(leaves)
        .expect("plausible leaves")
}

/// Each row has its own volume, and every 16th column is `heat` times the others. All entries
/// have noise of a factor of three.
fn uneven(n: u32, heat: u64) -> Traffic {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 44
    };
    let mut bytes = Vec::with_capacity((n * n) as usize);
    for _ in 0..n {
        let volume = 50 + random() % 100;
        for column in 0..n {
            let hot = if column % 16 == 3 { heat } else { 1 };
            bytes.push(volume * hot * (64 + random() % 128));
        }
    }
    Traffic::matrix(bytes)
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow");
    group.sample_size(10);
    let mut case = |name: &str, fabric: &Fabric, traffic: &Traffic| {
        group.bench_function(name, |b| {
            b.iter(|| drain(black_box(fabric), black_box(traffic)));
        });
    };
    for n in [256, 1024, 2048] {
        case(
            &format!("hot columns, {n} ranks"),
            &fabric(n),
            &uneven(n, 10),
        );
    }
    case(
        "no hot columns, 2048 ranks",
        &fabric(2048),
        &uneven(2048, 1),
    );
    for routing in [Routing::Adaptive, Routing::Static] {
        let fabric = oversubscribed(2048, routing);
        case(
            &format!("{routing:?} leaves, 2048 ranks"),
            &fabric,
            &uneven(2048, 10),
        );
    }
    for n in [2048, 65_536] {
        case(
            &format!("uniform, {n} ranks"),
            &fabric(n),
            &Traffic::uniform(1 << 16),
        );
    }
    group.finish();
}

/// Prints time over pairs relative to 512 ranks: at most 1 means no worse than linear in pairs.
#[expect(clippy::print_stdout, reason = "a bench reports on stdout")]
fn scaling(_: &mut Criterion) {
    let seconds = |n| {
        let (fabric, traffic) = (fabric(n), uneven(n, 10));
        let run = |_| {
            let start = Instant::now();
            black_box(drain(&fabric, &traffic)).expect("a square matrix");
            start.elapsed().as_secs_f64()
        };
        (0..5).map(run).fold(f64::INFINITY, f64::min)
    };
    let base = seconds(512);
    for n in [1024, 2048] {
        let (time, pairs) = (seconds(n) / base, f64::from(n / 512).powi(2));
        let per_pair = time / pairs;
        println!("512 -> {n} ranks: time x{time:.1}, pairs x{pairs:.0}, per pair x{per_pair:.2}");
    }
}

criterion_group!(benches, bench, scaling);
criterion_main!(benches);
