//! What is allocated is what the memory model says.

use crate::fixture::{cosine, layer, memory_ratios, plan, run};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::{Inputs, Routing};
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{Encode, Layout, Padding};

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
