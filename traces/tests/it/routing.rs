//! The numbers of a step, on cases solvable by hand.

use moeplan_traces::{RoutingStep, Shape, StepStats, TraceError};

fn step() -> RoutingStep {
    // Two ranks, four experts, top-2, four tokens each.
    RoutingStep::new(7, 1, 2, 4, vec![4, 2, 1, 1, 2, 2, 2, 2]).unwrap()
}

#[test]
fn counts_and_loads() {
    let step = step();
    assert_eq!((step.step(), step.layer(), step.top_k()), (7, 1, 2));
    assert_eq!((step.source_ranks(), step.num_experts()), (2, 4));
    assert_eq!(step.counts(1), [2, 2, 2, 2]);
    assert_eq!((step.tokens(0), step.tokens(1)), (4, 4));
    assert_eq!(step.expert_loads(), [6, 4, 3, 3]);
    assert_eq!(step.total(), 16);
}

#[test]
fn capacity_and_drops() {
    let step = step();
    // k * T / E = 2 slots at f = 1; the fullest cell holds 4.
    assert_eq!(step.needed_capacity_factor(), 2.0);
    assert_eq!(step.dropped(2), 2);
    assert_eq!(step.dropped(4), 0);
    // 6 of a mean of 4.
    assert_eq!(step.max_over_mean(), 1.5);
}

#[test]
fn statistics() {
    let stats = StepStats::of(&step());
    // Loads 6, 4, 3, 3 around 4: squares 4 + 0 + 1 + 1, over 4 experts.
    assert_eq!(stats.coefficient_of_variation, 1.5_f64.sqrt() / 4.0);
    assert_eq!(stats.dropped, [2.0 / 16.0]);
    let even = RoutingStep::uniform(&shape(3, 8, 16, 2), 0, 0).unwrap();
    let stats = StepStats::of(&even);
    assert_eq!(stats.entropy_bits, 3.0);
    assert_eq!(stats.needed_capacity_factor, 1.0);
    assert_eq!(stats.dropped, [0.0]);
}

#[test]
fn uniform_spreads_what_does_not_divide() {
    let even = RoutingStep::uniform(&shape(3, 4, 5, 1), 0, 0).unwrap();
    assert_eq!(even.counts(0), [2, 1, 1, 1]);
    assert_eq!(even.counts(1), [1, 2, 1, 1]);
    assert_eq!(even.expert_loads(), [4, 4, 4, 3]);
}

#[test]
fn steps_without_tokens_have_plain_numbers() {
    let empty = RoutingStep::new(0, 0, 2, 4, vec![0; 8]).unwrap();
    let stats = StepStats::of(&empty);
    assert_eq!(stats.needed_capacity_factor, 0.0);
    assert_eq!(stats.entropy_bits, 0.0);
    assert_eq!(stats.coefficient_of_variation, 0.0);
    assert_eq!(stats.max_over_mean, 0.0);
    assert_eq!(empty.shape(), None);
}

#[test]
fn impossible_steps_are_refused() {
    let check = |top_k, experts, counts: Vec<u32>, words: &str| {
        let error = RoutingStep::new(0, 0, top_k, experts, counts).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    check(2, 4, vec![1, 1, 1], "one or more rows of 4 experts");
    check(2, 4, vec![], "one or more rows of 4 experts");
    check(0, 4, vec![1, 1, 1, 1], "1 to 4");
    check(5, 4, vec![1, 1, 1, 1], "1 to 4");
    check(2, 4, vec![1, 1, 1, 0], "divisible by top_k = 2");
    // Two tokens, but three copies for one expert.
    check(2, 4, vec![3, 1, 0, 0], "at most 2 copies");
    check(1, 2, vec![u32::MAX, 1], "at most 4294967295 tokens");
}

#[test]
fn impossible_shapes_are_refused() {
    let check = |shape: Shape, field: &str| match shape.check().unwrap_err() {
        TraceError::Invalid { place, .. } => assert_eq!(place.field.as_deref(), Some(field)),
        io => panic!("{io}"),
    };
    check(shape(0, 1, 1, 1), "ranks");
    check(shape(1, 0, 1, 1), "experts");
    check(shape(1, 1, 0, 1), "tokens_per_rank");
    check(shape(1, 1, 1, 2), "top_k");
    check(shape(1, 1, 1, 0), "top_k");
    check(shape(usize::MAX, 2, 1, 1), "ranks");
}

pub(crate) fn shape(ranks: usize, experts: usize, tokens_per_rank: u32, top_k: u32) -> Shape {
    Shape {
        ranks,
        experts,
        tokens_per_rank,
        top_k,
    }
}
