//! What is allocated is what the memory model says.

use crate::common::{layer, plan, run};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::{Inputs, Routing};
use moeplan_sim::compile::Plan;
use moeplan_sim::ir::Lifetime;
use moeplan_sim::spec::{Encode, Layout, Padding};

/// Peak of the buffers alive, within 15 % of the model: without the optimizer's state, which no
/// operation touches, and with the layer's inputs, which its neighbours count.
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
        let layer = layer(4, 96, (64, 96), 16, 2, 1.0);
        let inputs = Inputs::random(&layer, 1, Routing::Gate);
        let case = run(&layer, 4, plan, &inputs, &mut Cpu::new()).unwrap();
        for (rank, &measured) in case.ran.peak_bytes.iter().enumerate() {
            let (model, live) = case.program.peak_memory(rank);
            let optimizer = live.iter().find(|(name, _)| name.starts_with("optimizer"));
            let model = model - optimizer.map_or(0, |(_, bytes)| *bytes);
            let external = case
                .program
                .buffers
                .iter()
                .filter(|b| b.lifetime == Lifetime::External);
            let model = model + external.map(|buffer| *buffer.bytes.get(rank)).sum::<u64>();
            let ratio = measured as f64 / model as f64;
            assert!(
                (0.85..1.15).contains(&ratio),
                "{plan}: {measured} of {model}"
            );
        }
    }
}
