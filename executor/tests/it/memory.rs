//! What is allocated is what the memory model says.

use crate::fixture::{cosine, layer, memory_ratios, plan, run};
use moeplan_executor::assign::tokens_of;
use moeplan_executor::cpu::Cpu;
use moeplan_executor::{Inputs, Routing};
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{AllToAll, Encode, Layout, Padding};
use moeplan_traces::{RoutingSpec, Shape};

/// Peak of the buffers alive, within 15 % of the model.
#[test]
fn peak_memory_is_within_15_percent_of_the_model() {
    let dense = Encode::Dense;
    for plan in [
        plan(),
        Plan {
            forward_degree: 4,
            backward_degree: 4,
            ..plan()
        },
        Plan {
            encode: dense,
            ..plan()
        },
        Plan {
            padding: Padding::Dropless,
            ..plan()
        },
        Plan {
            adaptive_r: 0,
            ..plan()
        },
        Plan {
            layout: Layout::Conventional,
            ..plan()
        },
        Plan {
            layout: Layout::Conventional,
            forward_degree: 4,
            backward_degree: 2,
            ..plan()
        },
    ] {
        let linear = layer(4, 96, (64, 96), 16, 2, 1.0);
        for layer in [cosine(linear.clone(), 128), linear] {
            let inputs = Inputs::random(&layer, 1, Routing::Gate);
            let case = run(&layer, 4, plan, &inputs, &mut Cpu::new()).unwrap();
            for ratio in memory_ratios(&case) {
                let gate = layer.spec.gate;
                assert!(
                    (0.85..1.15).contains(&ratio),
                    "{plan}, {gate} gate: {ratio} of the model"
                );
            }
        }
    }
}

/// The same where ranks hold different numbers of rows, at every rank, and in the middle of 2DH.
#[test]
fn peak_memory_of_skewed_dropless_ranks_is_within_15_percent_of_the_model() {
    let layer = layer(8, 96, (64, 96), 16, 2, 1.0);
    let shape = Shape {
        ranks: 8,
        experts: 16,
        tokens_per_rank: 96,
        top_k: 2,
    };
    for skew in ["zipf:1.2", "hot:0.5"] {
        let skew: RoutingSpec = skew.parse().unwrap();
        let tokens = tokens_of(&skew.generate(&shape, 1, 0, 0).unwrap()).unwrap();
        let inputs = Inputs::random(&layer, 1, Routing::Forced(tokens));
        for all_to_all in [AllToAll::Linear, AllToAll::TwoDh, AllToAll::ThreeDh] {
            for (forward_degree, backward_degree) in [(1, 1), (4, 4), (2, 8)] {
                let plan = Plan {
                    padding: Padding::Dropless,
                    all_to_all,
                    forward_degree,
                    backward_degree,
                    ..plan()
                };
                let case = run(&layer, 2, plan, &inputs, &mut Cpu::new()).unwrap();
                for ratio in memory_ratios(&case) {
                    assert!(
                        (0.85..1.15).contains(&ratio),
                        "{skew}, {plan}: {ratio} of the model"
                    );
                }
            }
        }
    }
}
