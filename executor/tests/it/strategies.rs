//! Strategies change where and when, never what.

use crate::any::any_step;
use crate::fixture::{cosine, layer, plan, relative, run, wide};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::{Executed, Inputs, Routing};
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{AllToAll, Encode, Layout};
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
    fn every_plan_is_the_layer(case in any_step()) {
        case.hold(&mut Cpu::new()).unwrap();
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
