//! The same question has the same answer, whatever the threads and however often it is asked.

use moeplan_sim::compile::Routing;
use moeplan_sim::policy::{Decided, Runner};
use moeplan_sim::spec::{Experts, Padding, Policy, Strategy};
use moeplan_tests::{Testbed, routing, small_layer, tutel};
use rayon::ThreadPoolBuilder;

/// Everything a run of several steps tells, as text; with the order of events, by plan and time.
fn run(strategy: &Strategy, seed: u64) -> String {
    let bed = Testbed::default();
    let layer = small_layer(Experts::PerGpu(0.5)).resolve(32).unwrap();
    let mut runner = Runner::new(bed.scenario(&layer), strategy.clone(), true).unwrap();
    let steps: Vec<Decided> = (0..4)
        .map(|step| {
            let routing = routing(&layer, "zipf:0.8", seed + step);
            runner.step(&Routing::Step(&routing)).unwrap()
        })
        .collect();
    assert!(
        steps
            .iter()
            .all(|decided| decided.step.stats.order_hash != 0)
    );
    format!("{steps:?}")
}

/// Checks that `strategy` decides and simulates the same on 1, 2 and 7 threads, and twice in a row.
fn check(strategy: &Strategy) {
    let on = |threads| {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| run(strategy, 1))
    };
    let first = on(1);
    for threads in [1, 2, 7] {
        assert!(on(threads) == first, "differs on {threads} threads");
    }
    assert!(run(strategy, 100) != first, "the seed changes nothing");
}

#[test]
fn a_padded_search_is_the_same_on_every_number_of_threads() {
    // The smallest factor that drops nothing, so that the capacity follows the routing.
    check(&Strategy {
        capacity_factor: Some(0.0),
        ..tutel(Padding::Capacity)
    });
}

#[test]
fn a_dropless_search_is_the_same_on_every_number_of_threads() {
    check(&tutel(Padding::Dropless));
}

#[test]
fn the_dictionary_learns_the_same_on_every_number_of_threads() {
    check(&Strategy {
        policy: Policy::Dictionary,
        ..tutel(Padding::Dropless)
    });
}

#[test]
fn the_order_of_events_is_part_of_the_answer() {
    let bed = Testbed::default();
    let layer = small_layer(Experts::PerGpu(1.0)).resolve(16).unwrap();
    let hash = |seed| {
        let step = routing(&layer, "zipf:0.8", seed);
        let plan = moeplan_sim::compile::Plan {
            padding: Padding::Dropless,
            ..moeplan_tests::plan()
        };
        let trace = bed.simulate(&layer, plan, &Routing::Step(&step));
        (trace.step.stats.order_hash, trace.timeline)
    };
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1).0, hash(2).0);
}
