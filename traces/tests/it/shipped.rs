//! The traces that come with the crate.

use moeplan_traces::{RoutingStep, SHIPPED, Shape, StepStats, Trace, shipped};

/// The smallest and the largest needed capacity factor of a layer.
fn needed(trace: &Trace, layer: u32) -> (f64, f64) {
    let steps = trace.steps_of_layer(layer);
    let factors: Vec<f64> = steps.map(RoutingStep::needed_capacity_factor).collect();
    let least = factors.iter().copied().fold(f64::INFINITY, f64::min);
    (least, factors.into_iter().fold(0.0, f64::max))
}

#[test]
fn every_name_loads() {
    for name in SHIPPED {
        let trace = shipped(name).unwrap();
        assert!(!trace.meta.licence.is_empty() && !trace.meta.recorded_by.is_empty());
    }
    let error = shipped("numbers").unwrap_err().to_string();
    assert!(error.contains("digits") && error.contains("numbers"));
}

#[test]
fn digits_is_what_the_readme_says() {
    let trace = shipped("digits").unwrap();
    assert_eq!(trace.layers(), [0, 1, 2]);
    assert_eq!(trace.steps.len(), 3 * 100);
    assert_eq!(trace.meta.tokens_per_rank, Some(512));
    let round = |(least, most): (f64, f64)| format!("{least:.2} {most:.2}");
    assert_eq!(round(needed(&trace, 0)), "2.00 4.47");
    assert_eq!(round(needed(&trace, 1)), "2.38 4.81");
    assert_eq!(round(needed(&trace, 2)), "2.88 10.06");
}

#[test]
fn needed_capacity_moves_while_the_models_learn() {
    for name in SHIPPED {
        let trace = shipped(name).unwrap();
        for layer in trace.layers() {
            let (least, most) = needed(&trace, layer);
            assert!(
                most / least > 1.5,
                "{name}, layer {layer}: {least} to {most}"
            );
        }
    }
}

#[test]
fn the_balancing_loss_evens_loads() {
    // The same model and data, with a weight of 0.01 and with none.
    let mean = |name: &str, layer: u32| {
        let trace = shipped(name).unwrap();
        let steps = trace.steps_of_layer(layer).skip(50);
        steps
            .map(|step| StepStats::of(step).coefficient_of_variation)
            .sum::<f64>()
            / 50.0
    };
    for layer in 0..3 {
        let (with, without) = (mean("digits", layer), mean("digits-free", layer));
        assert!(without > 1.2 * with, "layer {layer}: {with} {without}");
    }
}

#[test]
fn digits_scales_to_a_big_cluster() {
    let trace = shipped("digits").unwrap();
    let target = Shape {
        ranks: 64,
        experts: 128,
        tokens_per_rank: 4096,
        top_k: 2,
    };
    let before = trace.steps[0].needed_capacity_factor();
    let after = trace.steps[0].resample(&target, 1).unwrap();
    // Recorded shares stay; the noise of 64 copies a cell comes on top.
    let ratio = after.needed_capacity_factor() / before;
    assert!((1.0..1.6).contains(&ratio), "{ratio}");
}
