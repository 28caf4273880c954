//! Events a second of the event queue: `cargo bench -p moeplan-sim --bench queue`. Goal: 10 million
//! a core, a push and a pop each.
#![expect(
    missing_docs,
    reason = "criterion_group! makes an undocumented function"
)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use moeplan_sim::engine::EventQueue;
use moeplan_sim::units::Time;
use std::hint::black_box;

/// An event as large as the engine's.
#[derive(Clone, Copy)]
struct Event {
    row: u32,
    generation: u32,
    stream: u8,
}

/// The classic hold model: `waiting` events in the queue; each popped one is followed by another a
/// pseudo-random time later.
fn hold(waiting: u64, events: u64) -> u64 {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 44
    };
    let mut queue = EventQueue::new();
    for row in 0..waiting {
        let event = Event {
            row: row as u32,
            generation: 0,
            stream: 0,
        };
        queue.push(Time::from_ps(random()), event);
    }
    let mut sum = 0;
    for _ in 0..events {
        let Some((now, event)) = queue.pop() else {
            break;
        };
        sum += u64::from(event.row) + u64::from(event.stream);
        let next = Event {
            generation: event.generation + 1,
            ..event
        };
        queue.push(now + Time::from_ps(random()), next);
    }
    sum
}

fn bench(c: &mut Criterion) {
    const EVENTS: u64 = 1_000_000;
    let mut group = c.benchmark_group("queue");
    group
        .sample_size(10)
        .throughput(Throughput::Elements(EVENTS));
    // One rank for all; two streams of 2,048 ranks; of 65,536 ranks.
    for waiting in [2, 4_096, 131_072] {
        group.bench_function(format!("hold, {waiting} waiting"), |b| {
            b.iter(|| hold(black_box(waiting), EVENTS));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
