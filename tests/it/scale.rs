//! Cost by structure: what is alike is simulated once, and events grow with operations.

use moeplan_sim::compile::{Plan, Routing};
use moeplan_sim::simulate::Trace;
use moeplan_sim::spec::{AllToAll, Experts, Padding};
use moeplan_tests::{Testbed, plan, routing, small_layer};

/// Simulates one step and checks how many ranks were played; no more than three events an operation
/// and rank: when it is issued, when it ends, and when a neighbour changes its speed.
fn check(world_size: u64, plan: Plan, skew: Option<&str>, rows: usize) -> Trace {
    let bed = Testbed::default();
    let layer = small_layer(Experts::PerGpu(1.0))
        .resolve(world_size)
        .unwrap();
    let step = skew.map(|spec| routing(&layer, spec, 7));
    let load = Routing::of(step.as_ref());
    let trace = bed.simulate(&layer, plan, &load);
    let stats = trace.step.stats;
    assert_eq!(stats.rows, rows, "{world_size} GPUs");
    let most = 3 * (trace.program.ops.len() * rows) as u64;
    assert!(
        stats.events <= most,
        "{} events, at most {most} expected",
        stats.events
    );
    trace
}

fn piped(all_to_all: AllToAll, padding: Padding) -> Plan {
    Plan {
        all_to_all,
        padding,
        forward_degree: 8,
        backward_degree: 8,
        ..plan()
    }
}

#[test]
fn a_symmetric_step_plays_one_rank_at_2048_and_65536_gpus() {
    let mut programs = Vec::new();
    for world_size in [2_048, 65_536] {
        for all_to_all in [AllToAll::Linear, AllToAll::TwoDh, AllToAll::ThreeDh] {
            let trace = check(world_size, piped(all_to_all, Padding::Capacity), None, 1);
            programs.push(trace.program.ops.len());
        }
    }
    assert_eq!(programs[..3], programs[3..], "ops do not grow with ranks");
}

#[test]
fn skewed_routing_under_a_capacity_stays_symmetric() {
    let plan = piped(AllToAll::Linear, Padding::Capacity);
    check(1_024, plan, Some("zipf:1.0"), 1);
}

#[test]
fn a_dropless_step_plays_every_rank() {
    let plan = piped(AllToAll::TwoDh, Padding::Dropless);
    let trace = check(256, plan, Some("zipf:0.6"), 256);
    assert_eq!(trace.timeline.rows(), 256);
    let (first, mut others) = (trace.timeline.rank(0), 1..256);
    assert!(
        others.any(|rank| trace.timeline.rank(rank) != first),
        "ranks differ"
    );
}
