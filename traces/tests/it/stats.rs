//! Statistics of traces, on cases solvable by hand.

use moeplan_traces::{
    LAGS, RoutingSpec, RoutingStep, StepStats, TraceStats, jensen_shannon_bits, total_variation,
};

use crate::routing::shape;

/// One rank, top-1: a step of these counts.
fn step(index: u64, counts: &[u32]) -> RoutingStep {
    RoutingStep::new(index, 0, 1, counts.len(), counts.to_vec()).unwrap()
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-12, "{found} {expected}");
}

#[test]
fn numbers_of_a_step() {
    let stats = StepStats::at(&step(0, &[1, 2, 3, 4]), &[0.5, 1.0, 1.2, 1.6, 2.0]);
    // sum_i (2 i - 5) x_i = -3 - 2 + 3 + 12 = 10, over 4 * 10.
    close(stats.gini, 0.25);
    close(stats.top_share, 0.4);
    // A tenth of four experts is one.
    close(stats.top_tenth_share, 0.4);
    close(stats.max_over_mean, 1.6);
    close(stats.needed_capacity_factor, 1.6);
    close(stats.coefficient_of_variation, 1.25_f64.sqrt() / 2.5);
    // Capacity 2, 3, 3, 4 and 5.
    assert_eq!(stats.dropped, [0.3, 0.1, 0.1, 0.0, 0.0]);
    close(stats.source_divergence, 0.0);
    let unlike = RoutingStep::new(0, 0, 1, 2, vec![4, 0, 0, 4]).unwrap();
    close(StepStats::of(&unlike).source_divergence, 0.5);
    let one_has_all = StepStats::of(&step(0, &[0, 0, 8, 0]));
    close(one_has_all.gini, 0.75);
    close(one_has_all.entropy_bits, 0.0);
}

#[test]
fn top_shares_of_many_experts() {
    let counts: Vec<u32> = (1..=40).collect();
    let stats = StepStats::of(&step(0, &counts));
    close(stats.top_tenth_share, (37.0 + 38.0 + 39.0 + 40.0) / 820.0);
}

#[test]
fn loads_that_swap_every_step() {
    let steps: Vec<RoutingStep> = (0..8)
        .map(|s| step(s, if s % 2 == 0 { &[3, 1] } else { &[1, 3] }))
        .collect();
    let stats = TraceStats::of(&steps, &[1.0], &[1, 2, 3, 99]);
    let layer = &stats.layers[0];
    // Shares swing by 1/4 around a mean of 1/2; 7 of 8 products at lag 1, all negative.
    let values: Vec<Option<f64>> = layer.autocorrelation.iter().map(|a| a.value).collect();
    close(values[0].unwrap(), -7.0 / 8.0);
    close(values[1].unwrap(), 6.0 / 8.0);
    close(values[2].unwrap(), -5.0 / 8.0);
    assert_eq!(values[3], None);
    let forecast = layer.forecast.unwrap();
    close(forecast.last_value, 0.5);
    close(forecast.mean, 0.25);
    close(forecast.last_value_skill.unwrap(), -1.0);
    assert!(layer.change_points.is_empty());
    close(layer.max_over_mean_of_sum, 1.0);
    close(layer.max_over_mean.mean, 1.5);
}

#[test]
fn a_jump_is_found_where_it_is() {
    let spec: RoutingSpec = "zipf:1,phase=30".parse().unwrap();
    let made = |step| spec.generate(&shape(4, 16, 512, 2), 5, step, 0).unwrap();
    let steps: Vec<RoutingStep> = (0..90).map(made).collect();
    let stats = TraceStats::of(&steps, &[1.0], &LAGS);
    let found: Vec<u64> = stats.layers[0]
        .change_points
        .iter()
        .map(|c| c.step)
        .collect();
    assert_eq!(found, [30, 60]);
    let popularity = |step: usize| &stats.layers[0].shares[step];
    let jump = total_variation(popularity(29), popularity(30));
    assert!((stats.layers[0].change_points[0].distance - jump).abs() < 0.05);
}

#[test]
fn noise_alone_has_no_change_points() {
    let mut found = 0;
    for seed in 0..100 {
        let spec: RoutingSpec = "zipf:0.8".parse().unwrap();
        let made = |step| spec.generate(&shape(1, 4, 64, 1), seed, step, 0).unwrap();
        let steps: Vec<RoutingStep> = (0..64).map(made).collect();
        found += TraceStats::of(&steps, &[], &[]).layers[0]
            .change_points
            .len();
    }
    assert!(found <= 1, "{found} changes in 100 traces of noise");
}

#[test]
fn loads_that_never_move() {
    let steps: Vec<RoutingStep> = (0..20).map(|s| step(s, &[5, 3, 0])).collect();
    let layer = &TraceStats::of(&steps, &[1.0], &LAGS).layers[0];
    assert!(layer.autocorrelation.iter().all(|a| a.value.is_none()));
    assert!(layer.change_points.is_empty());
    let forecast = layer.forecast.unwrap();
    close(forecast.last_value, 0.0);
    assert_eq!(forecast.last_value_skill, None);
}

#[test]
fn distances_of_distributions() {
    close(total_variation(&[0.5, 0.5], &[1.0, 0.0]), 0.5);
    close(jensen_shannon_bits(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
    close(jensen_shannon_bits(&[0.3, 0.7], &[0.3, 0.7]), 0.0);
    // H(3/4, 1/4) - (1 + 0) / 2.
    let h = 0.75 * (4.0_f64 / 3.0).log2() + 0.25 * 2.0;
    close(jensen_shannon_bits(&[0.5, 0.5], &[1.0, 0.0]), h - 0.5);
}

#[test]
fn distances_of_traces() {
    let one = |counts: &[u32]| TraceStats::of(&[step(0, counts)], &[], &[]);
    let distance = one(&[6, 2, 2]).distance(&one(&[2, 2, 6])).unwrap();
    let layer = &distance.layers[0];
    close(layer.total_variation.unwrap(), 0.4);
    close(layer.sorted_total_variation.unwrap(), 0.0);
    close(layer.correlation.unwrap(), -0.5);
    close(layer.per_step_total_variation.unwrap(), 0.4);
    let unlike = one(&[6, 2, 2]).distance(&one(&[5, 5])).unwrap();
    assert_eq!(unlike.layers[0].total_variation, None);
    let other = RoutingStep::new(0, 3, 1, 3, vec![1, 1, 1]).unwrap();
    let other = TraceStats::of(&[other], &[], &[]);
    assert!(one(&[6, 2, 2]).distance(&other).is_err());
}
