//! Strategies change where and when, never what.

use crate::fixture::{agree, cosine, layer, plan, relative, run, wide};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::oracle::layer as oracle;
use moeplan_executor::{Executed, Inputs, Routing};
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{AllToAll, Encode, Layout, Padding};
use moeplan_traces::{RoutingSpec, Shape};
use proptest::prelude::*;

fn difference(a: &Executed, b: &Executed) -> f64 {
    let mut worst: f64 = 0.0;
    for (a, b) in a.ranks.iter().zip(&b.ranks) {
        for (a, b) in [
            (&a.output, &b.output),
            (&a.token_gradient, &b.token_gradient),
            (&a.gate_gradient, &b.gate_gradient),
        ] {
            worst = worst.max(relative(wide(a), wide(b)));
        }
    }
    for (a, b) in a.expert_gradients.iter().zip(&b.expert_gradients) {
        for (a, b) in [
            (&a.up, &b.up),
            (&a.up_bias, &b.up_bias),
            (&a.down, &b.down),
            (&a.down_bias, &b.down_bias),
        ] {
            worst = worst.max(relative(wide(a), wide(b)));
        }
    }
    worst
}

/// Outputs do not depend on how rows travel: not by a bit. Weight gradients sum the same rows in
/// the order of the layout.
#[test]
fn rows_that_travel_otherwise_are_the_same_bits() {
    let layer = layer(16, 16, (8, 16), 16, 2, 1.0);
    let inputs = Inputs::random(&layer, 11, Routing::Gate);
    let mut backend = Cpu::new();
    let base = run(&layer, 8, plan(), &inputs, &mut backend).unwrap().ran;
    for all_to_all in AllToAll::ALL {
        for gpus_per_node in [8, 4] {
            let plan = Plan {
                all_to_all: *all_to_all,
                ..plan()
            };
            let ran = run(&layer, gpus_per_node, plan, &inputs, &mut backend)
                .unwrap()
                .ran;
            assert_eq!(ran.ranks, base.ranks, "{all_to_all} {gpus_per_node}");
            assert_eq!(
                ran.expert_gradients, base.expert_gradients,
                "{all_to_all} {gpus_per_node}"
            );
        }
    }
    for (layout, degree) in [
        (Layout::Conventional, 1),
        (Layout::Flexible, 2),
        (Layout::Conventional, 2),
    ] {
        let plan = Plan {
            layout,
            forward_degree: degree,
            backward_degree: degree,
            ..plan()
        };
        let ran = run(&layer, 8, plan, &inputs, &mut backend).unwrap().ran;
        for (ran, base) in ran.ranks.iter().zip(&base.ranks) {
            assert_eq!(ran.output, base.output, "{layout} d={degree}");
            assert_eq!(
                ran.token_gradient, base.token_gradient,
                "{layout} d={degree}"
            );
        }
        assert!(difference(&ran, &base) <= 1e-6);
    }
}

#[test]
fn runs_repeat_bit_for_bit() {
    let layer = layer(8, 20, (8, 16), 4, 2, 0.0);
    let inputs = Inputs::random(&layer, 12, Routing::Gate);
    let plan = Plan {
        forward_degree: 4,
        backward_degree: 2,
        all_to_all: AllToAll::TwoDh,
        ..plan()
    };
    let mut backend = Cpu::new();
    let first = run(&layer, 4, plan, &inputs, &mut backend).unwrap().ran;
    for _ in 0..5 {
        let again = run(&layer, 4, plan, &inputs, &mut backend).unwrap().ran;
        assert_eq!(again.ranks, first.ranks);
        assert_eq!(again.expert_gradients, first.expert_gradients);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any plan gives what the definitions give, for any shape, skew and world; byte and FLOP
    /// counts are those of the program, or `execute` fails.
    #[test]
    fn every_plan_is_the_layer(
        world in prop::sample::select(vec![1_u64, 2, 3, 4, 6, 8, 16]),
        per_node in 0_usize..4,
        per_gpu in prop::sample::select(vec![0.25, 0.5, 1.0, 2.0]),
        tokens in 1_u64..20,
        top_k in 1_u32..4,
        factor in prop::sample::select(vec![0.0, 0.5, 1.0, 2.0, -1.0]),
        skew in prop::sample::select(vec!["", "zipf:1.5", "hot:0.3"]),
        algorithm in prop::sample::select(AllToAll::ALL.to_vec()),
        layout in prop::sample::select(Layout::ALL.to_vec()),
        encode in prop::sample::select(Encode::ALL.to_vec()),
        padding in prop::sample::select(Padding::ALL.to_vec()),
        degrees in (prop::sample::select(vec![1_u64, 2, 4, 3]), prop::sample::select(vec![1_u64, 2, 4, 8])),
        r_index in 0_usize..8,
        prioritized: bool,
        cosine_gate: bool,
        seed in 0_u64..1000,
    ) {
        let experts = (per_gpu * world as f64).max(1.0) as u64;
        prop_assume!(world.is_multiple_of(experts) || experts.is_multiple_of(world));
        let top_k = top_k.min(experts as u32);
        let linear = layer(world, tokens, (24, 48), experts, top_k, factor);
        let layer = if cosine_gate { cosine(linear, 16) } else { linear };
        let nodes: Vec<u64> = (1..=world).filter(|m| world % m == 0).collect();
        let gpus_per_node = nodes[per_node % nodes.len()];
        let valid = layer.valid_adaptive_r();
        let plan = Plan {
            encode,
            all_to_all: algorithm,
            layout,
            padding,
            forward_degree: degrees.0,
            backward_degree: degrees.1,
            adaptive_r: valid[r_index % valid.len()],
        };
        let routing = match skew {
            "" => Routing::Gate,
            spec => {
                let shape = Shape { ranks: world as usize, experts: experts as usize, tokens_per_rank: tokens as u32, top_k };
                let spec: RoutingSpec = spec.parse().unwrap();
                let counts = spec.generate(&shape, seed, 0, 0).unwrap();
                Routing::Forced(moeplan_executor::assign::tokens_of(&counts).unwrap())
            }
        };
        let mut inputs = Inputs::random(&layer, seed, routing);
        inputs.prioritized = prioritized;
        let case = run(&layer, gpus_per_node, plan, &inputs, &mut Cpu::new()).unwrap();
        agree(&case, &oracle(&layer, &inputs, case.limit), 1e-5);
    }

    /// All plans of one step agree with each other to 1e-6 of the norm.
    #[test]
    fn plans_agree_with_each_other(seed in 0_u64..1000, r in 0_usize..4, degree in prop::sample::select(vec![1_u64, 2, 4]), dense: bool, cosine_gate: bool) {
        let linear = layer(16, 12, (16, 32), 4, 2, 1.0);
        let layer = if cosine_gate { cosine(linear, 8) } else { linear };
        let inputs = Inputs::random(&layer, seed, Routing::Gate);
        let mut backend = Cpu::new();
        let base = run(&layer, 8, plan(), &inputs, &mut backend).unwrap().ran;
        let plan = Plan {
            adaptive_r: [0, 1, 2, 4][r],
            forward_degree: degree,
            backward_degree: degree,
            encode: if dense { Encode::Dense } else { Encode::Sparse },
            all_to_all: AllToAll::TwoDh,
            ..plan()
        };
        let ran = run(&layer, 8, plan, &inputs, &mut backend).unwrap().ran;
        prop_assert!(difference(&ran, &base) <= 1e-6, "{}", difference(&ran, &base));
    }
}
