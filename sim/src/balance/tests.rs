use super::*;
use crate::compile::Plan;
use crate::cost::analytic::Analytic;
use crate::hardware::builtin;
use crate::simulate::Scenario;
use crate::spec::{Experts, LayerSpec, Padding, Phase, ResolvedLayer};
use moeplan_traces::RoutingStep;
use proptest::prelude::*;

fn layer(experts: u64, world: u64) -> ResolvedLayer {
    LayerSpec {
        tokens_per_step: 1_024,
        model_dim: 512,
        hidden_dim: 1_024,
        experts: Experts::Total(experts),
        ..LayerSpec::default()
    }
    .resolve(world)
    .unwrap()
}

/// The example of DeepSeek's description: 12 experts, 16 slots on 8 GPUs of 2 nodes, 4 groups.
const DEEPSEEK: [f64; 12] = [
    90.0, 132.0, 40.0, 61.0, 104.0, 165.0, 39.0, 4.0, 73.0, 56.0, 183.0, 86.0,
];

#[test]
fn the_published_example_of_eplb_comes_out() {
    // Copies go to the four heaviest experts of each node's own: 5 and 10 with 1 and 4.
    let slots = eplb::hierarchical(&DEEPSEEK, 4, 2, 8, 2);
    let copies = |expert: u32| slots.iter().filter(|&&slot| slot == expert).count();
    assert_eq!([1, 4, 5, 10].map(copies), [2, 2, 2, 2]);
    assert_eq!(slots.len(), 16);
    // Groups 1 and 2 share a node, as do 0 and 3: 312 + 212 and 262 + 247... packed heaviest first.
    let node = |expert: u32| slots.iter().position(|&slot| slot == expert).unwrap() / 8;
    for group in [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]] {
        let nodes: Vec<usize> = group.iter().map(|&expert| node(expert)).collect();
        assert!(nodes.windows(2).all(|pair| pair[0] == pair[1]), "{slots:?}");
    }
    let arrangement = Arrangement::new(slots, 2, 12);
    let mean = DEEPSEEK.iter().sum::<f64>() / 8.0;
    assert!(arrangement.max_load(&DEEPSEEK) < 1.25 * mean);
}

#[test]
fn replication_splits_the_heaviest() {
    assert_eq!(eplb::replicate(&[8.0, 2.0, 1.0], 6), [4, 1, 1]);
}

#[test]
fn a_swap_of_two_experts_moves_two() {
    let layer = layer(4, 4);
    let old = Arrangement::contiguous(&layer, 1);
    let new = Arrangement::new(vec![1, 0, 2, 3], 1, 4);
    let moved = migration::moves(&old, &new, 4);
    assert_eq!(moved.iter().sum::<u32>(), 2);
    assert_eq!((moved[1], moved[4]), (1, 1));
}

fn steps(world: usize, experts: usize, hot: usize, count: u64) -> Vec<RoutingStep> {
    let row: Vec<u32> = (0..experts)
        .map(|expert| {
            if expert == hot {
                900
            } else {
                1_148 / (experts as u32 - 1)
            }
        })
        .collect();
    (0..count)
        .map(|step| RoutingStep::new(step, 0, 2, experts, row.repeat(world)).unwrap())
        .collect()
}

fn run(policy: &dyn Balancer, phase: Phase) -> Vec<BalancedStep> {
    let layer = layer(16, 16);
    let model = Analytic::new(&builtin("nd-a100-v4-80gb").unwrap()).unwrap();
    let scenario = Scenario {
        layer: &layer,
        gpus_per_node: 8,
        memory_bytes: u64::MAX,
        reserved_bytes: 0,
        model: &model,
        phase,
    };
    let plan = Plan {
        padding: Padding::Dropless,
        ..Plan::PLAIN
    };
    let schedule = Schedule {
        every: 2,
        drift: None,
    };
    let mut run = BalancedRun::new(scenario, policy, schedule, vec![plan]).unwrap();
    let row: u32 = (0..16).map(|e| if e == 3 { 900 } else { 76 }).sum();
    assert_eq!(row, 2_040);
    steps(16, 16, 3, 4)
        .iter()
        .map(|step| run.step(step).unwrap())
        .collect()
}

#[test]
fn copies_pay_where_one_expert_is_hot() {
    let fixed = run(&Contiguous, Phase::Forward);
    for name in ["eplb", "shadowing"] {
        let policy = named(name, 1, 16).unwrap();
        let found = run(&*policy, Phase::Forward);
        // Two steps are seen before anything moves: no policy knows the future.
        assert_eq!(found[1].moved, 0);
        assert!(found[2].moved > 0 && found[2].migration > crate::units::Time::ZERO);
        assert!(
            found[3].max_over_mean < 0.6 * fixed[3].max_over_mean,
            "{name}"
        );
        assert!(found[3].step < fixed[3].step, "{name}");
    }
}

#[test]
fn copies_sum_their_gradients_in_training_only() {
    let policy = named("shadowing", 1, 16).unwrap();
    let zero = crate::units::Time::ZERO;
    assert!(run(&*policy, Phase::Training)[3].copies > zero);
    assert_eq!(run(&*policy, Phase::Forward)[3].copies, zero);
}

fn policies() -> Vec<Box<dyn Balancer>> {
    POLICIES
        .iter()
        .map(|name| named(name, 2, 8).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn every_copy_of_a_token_keeps_its_expert(
        counts in prop::collection::vec(0u32..200, 8 * 16),
    ) {
        let layer = layer(16, 8);
        let rows: Vec<u32> = counts.chunks(16).flat_map(|row| {
            // Whole tokens: the last expert takes what a top-2 gate of 2,000 tokens has left.
            let mut row = row.to_vec();
            let sum: u32 = row[..15].iter().sum();
            row[15] = 200 + sum % 2;
            row
        }).collect();
        let Ok(step) = RoutingStep::new(0, 0, 2, 16, rows) else { return Ok(()) };
        let loads: Vec<f64> = step.expert_loads().iter().map(|&load| load as f64).collect();
        let by_node = loads.clone();
        for policy in policies() {
            let slots_per_rank = 2 + policy.extra_slots();
            let current = Arrangement::contiguous(&layer, slots_per_rank);
            let arranged = policy.arrange(&Past {
                layer: &layer, gpus_per_node: 8, slots_per_rank, loads: &loads, by_node: &by_node, current: &current,
            });
            prop_assert_eq!(arranged.experts().len(), 8 * slots_per_rank);
            let routed = arranged.apply(&step).unwrap();
            let mut back = vec![0u64; 16];
            for (slot, load) in routed.expert_loads().iter().enumerate() {
                back[arranged.experts()[slot] as usize] += load;
            }
            prop_assert_eq!(back, step.expert_loads());
            for source in 0..8 {
                let sent: u32 = step.counts(source).iter().sum();
                prop_assert_eq!(routed.counts(source).iter().sum::<u32>(), sent);
            }
        }
    }

    /// The greedy packing alone can be worse than contiguous experts; what is adopted never is.
    #[test]
    fn no_policy_that_balances_is_worse_than_contiguous_on_what_it_saw(
        weights in prop::collection::vec(0u32..200, 8 * 16),
        extra_slots in 0usize..3,
    ) {
        let layer = layer(16, 8);
        let rows = weights.chunks(16).flat_map(|row| {
            // A top-2 gate: an expert gets a copy of a token at most.
            let mut row = row.to_vec();
            row[15] = row[..15].iter().sum::<u32>() % 2;
            let most = row.iter().copied().max().unwrap_or(0);
            row[14] += most;
            row[13] += most;
            row
        });
        let step = RoutingStep::new(0, 0, 2, 16, rows.collect());
        prop_assume!(step.is_ok());
        let step = step.unwrap();
        let seen: Vec<f64> = step.expert_loads().iter().map(|&load| load as f64).collect();
        let model = Analytic::new(&builtin("nd-a100-v4-80gb").unwrap()).unwrap();
        let scenario = Scenario {
            layer: &layer,
            gpus_per_node: 8,
            memory_bytes: u64::MAX,
            reserved_bytes: 0,
            model: &model,
            phase: Phase::Forward,
        };
        let plan = Plan { padding: Padding::Dropless, ..Plan::PLAIN };
        for name in ["eplb", "eplb-hierarchical", "shadowing"] {
            let policy = named(name, extra_slots, 8).unwrap();
            let schedule = Schedule { every: 1, drift: None };
            let mut run = BalancedRun::new(scenario, &*policy, schedule, vec![plan]).unwrap();
            for _ in 0..2 {
                run.step(&step).unwrap();
            }
            let contiguous = Arrangement::contiguous(&layer, run.arrangement().slots_per_rank());
            let (chosen, fixed) = (run.arrangement().max_load(&seen), contiguous.max_load(&seen));
            prop_assert!(chosen <= fixed, "{name}: {chosen} > {fixed}");
        }
    }

    #[test]
    fn packing_keeps_within_the_bound_of_greedy(loads in prop::collection::vec(1.0f64..100.0, 32)) {
        // Heaviest first into bins without limit of number is within 4/3 of the best; with as many a bin the
        // spread stays under the heaviest item.
        let bins = eplb::pack(&loads, 8);
        let mut sums = [0.0; 8];
        for (item, bin) in bins.iter().enumerate() { sums[*bin] += loads[item]; }
        let most = sums.iter().copied().fold(0.0, f64::max);
        let least = sums.iter().copied().fold(f64::INFINITY, f64::min);
        let heaviest = loads.iter().copied().fold(0.0, f64::max);
        prop_assert!(most - least <= heaviest + 1e-9);
    }
}
