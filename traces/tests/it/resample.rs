//! Scaling of recorded steps.

use moeplan_traces::{RoutingStep, Shape};
use proptest::prelude::*;

use crate::routing::shape;

/// One rank, eight experts, top-2, 1,000 tokens.
fn skewed() -> RoutingStep {
    let row = vec![800, 400, 300, 200, 100, 100, 60, 40];
    RoutingStep::new(3, 1, 2, 8, row).unwrap()
}

#[test]
fn the_recorded_shape_comes_back_unchanged() {
    let step = skewed();
    assert_eq!(step.resample(&shape(1, 8, 1000, 2), 1).unwrap(), step);
}

#[test]
fn shares_are_kept() {
    // 64 ranks of 4,096 tokens: 2^19 copies, so an expert's share is off by 0.1% of all at most.
    let more = skewed().resample(&shape(64, 8, 4096, 2), 1).unwrap();
    let total = more.total() as f64;
    for (load, recorded) in more.expert_loads().into_iter().zip(skewed().counts(0)) {
        let (share, recorded) = (load as f64 / total, f64::from(*recorded) / 2000.0);
        assert!((share - recorded).abs() < 1.5e-3, "{share} {recorded}");
    }
}

#[test]
fn replicas_share_evenly_and_neighbours_merge() {
    let loads = |experts| {
        let step = skewed().resample(&shape(64, experts, 4096, 2), 1).unwrap();
        let total = step.total() as f64;
        let loads = step.expert_loads().into_iter();
        loads.map(|load| load as f64 / total).collect::<Vec<_>>()
    };
    let split = loads(32);
    for (e, share) in split.iter().enumerate() {
        let recorded = f64::from(skewed().counts(0)[e / 4]) / 2000.0 / 4.0;
        assert!((share - recorded).abs() < 1e-3, "{share} {recorded}");
    }
    let merged = loads(4);
    // 1200 of 2000 is more than one copy a token: cut to 1/2, the rest share the other half.
    for (share, expected) in merged.iter().zip([0.5, 0.3125, 0.125, 0.0625]) {
        assert!((share - expected).abs() < 1.5e-3, "{share} {expected}");
    }
}

#[test]
fn ranks_replay_their_recorded_rank() {
    let step = RoutingStep::new(0, 0, 1, 4, vec![10, 0, 0, 0, 0, 0, 5, 5]).unwrap();
    let more = step.resample(&shape(6, 8, 100, 1), 1).unwrap();
    for rank in 0..6 {
        let (left, right) = more.counts(rank).split_at(4);
        if rank % 2 == 0 {
            assert_eq!((left[0] + left[1], right), (100, &[0; 4][..]));
        } else {
            assert_eq!((left, right.iter().sum::<u32>()), (&[0; 4][..], 100));
        }
    }
}

#[test]
fn counts_have_the_noise_of_independent_tokens() {
    // Expert 0 takes 80% of the tokens, expert 4 10%: variance T p (1 - p) for each.
    for (expert, p) in [(0, 0.8), (4, 0.1)] {
        let mut sum = 0.0;
        let ranks = 2000;
        let step = skewed().resample(&shape(ranks, 8, 500, 2), 9).unwrap();
        for row in step.rows() {
            let off = f64::from(row[expert]) - 500.0 * p;
            sum += off * off;
        }
        let ratio = sum / ranks as f64 / (500.0 * p * (1.0 - p));
        // The variance of 2,000 draws is within 10% at three standard deviations.
        assert!((0.9..1.1).contains(&ratio), "expert {expert}: {ratio}");
    }
}

#[test]
fn needed_capacity_grows_when_tokens_per_expert_get_few() {
    let even = RoutingStep::uniform(&shape(8, 32, 1024, 2), 0, 0).unwrap();
    let many = even.resample(&shape(64, 32, 65_536, 2), 1).unwrap();
    let few = even.resample(&shape(64, 4096, 16_384, 2), 1).unwrap();
    assert!(many.needed_capacity_factor() < 1.1);
    // Eight copies a cell: 2^18 Poisson cells of mean 8 reach 24 or so.
    let f = few.needed_capacity_factor();
    assert!((2.5..4.0).contains(&f), "{f}");
}

#[test]
fn reused_rows_do_not_add_up_in_the_same_experts() {
    // So large that rows are reused: 2,048 ranks of 8,192 copies on 512 experts.
    let even = RoutingStep::uniform(&shape(16, 32, 1024, 2), 0, 0).unwrap();
    let big = even.resample(&shape(2048, 512, 8192, 2), 1).unwrap();
    assert_ne!(big.counts(0), big.counts(1024));
    // Mean load 65,536: independent rows give a coefficient of variation of 0.4%.
    let f = big.max_over_mean();
    assert!(f < 1.03, "{f}");
}

#[test]
fn draws_are_pinned() {
    // Fails when a change moves the drawn numbers, and on a platform that draws others.
    let step = skewed().resample(&shape(2, 8, 16, 2), 42).unwrap();
    assert_eq!(step.all_counts(), PINNED);
    assert_ne!(
        step,
        skewed().resample(&shape(2, 8, 16, 2), 43).unwrap(),
        "the seed matters"
    );
}

const PINNED: [u32; 16] = [15, 6, 3, 3, 3, 2, 0, 0, 12, 7, 4, 3, 0, 3, 2, 1];

prop_compose! {
    fn any_shape()(experts in 1_usize..40)(
        ranks in 1_usize..12,
        experts in Just(experts),
        tokens_per_rank in 1_u32..200,
        top_k in 1..=(experts.min(6) as u32),
    ) -> Shape {
        Shape { ranks, experts, tokens_per_rank, top_k }
    }
}

fn any_step() -> impl Strategy<Value = RoutingStep> {
    (any_shape(), 0.05_f64..5.0, any::<u64>()).prop_map(|(shape, alpha, seed)| {
        let spec: moeplan_traces::RoutingSpec = format!("dirichlet:{alpha}").parse().unwrap();
        spec.generate(&shape, seed, 5, 2).unwrap()
    })
}

proptest! {
    #[test]
    fn rows_are_always_what_a_gate_can_produce(
        step in any_step(),
        target in any_shape(),
        seed: u64,
    ) {
        let scaled = step.resample(&target, seed).unwrap();
        prop_assert_eq!(scaled.shape(), Some(target));
        prop_assert_eq!(&scaled, &step.resample(&target, seed).unwrap());
        // Checks sums and that no expert gets more than one copy of a token.
        let counts = scaled.all_counts().to_vec();
        let (step, layer) = (scaled.step(), scaled.layer());
        let again = RoutingStep::new(step, layer, target.top_k, target.experts, counts);
        prop_assert_eq!(again.unwrap(), scaled);
    }
}
