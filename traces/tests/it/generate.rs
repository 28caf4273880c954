//! Routing made from a specification.

use moeplan_traces::{Popularity, RoutingSpec, RoutingStep};
use proptest::prelude::*;

use crate::routing::shape;

fn spec(text: &str) -> RoutingSpec {
    text.parse().unwrap()
}

#[test]
fn specifications_parse() {
    assert_eq!(spec("uniform").popularity, Popularity::Uniform);
    assert_eq!(spec("zipf:1.2").popularity, Popularity::Zipf(1.2));
    assert_eq!(spec("hot:0.25").popularity, Popularity::Hot(0.25));
    let drifting = spec("dirichlet:0.3,drift=0.1");
    assert_eq!(drifting.popularity, Popularity::Dirichlet(0.3));
    assert_eq!(drifting.drift, 0.1);
}

#[test]
fn errors_name_the_part() {
    let check = |text: &str, words: &str| {
        let error = text.parse::<RoutingSpec>().unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    };
    check("", "`popularity`");
    check("normal:3", "`popularity`");
    check("uniform:1", "`popularity`");
    check("zipf", "`zipf`");
    check("zipf:", "`zipf`");
    check("zipf:NaN", "`zipf`");
    check("zipf:-1", "`zipf`");
    check("zipf:1e300", "`zipf`");
    check("dirichlet:0", "`dirichlet`");
    check("hot:1.5", "`hot`");
    check("hot:0.5,drift=2", "`drift`");
    check("hot:0.5,drift=NaN", "`drift`");
    check("hot:0.5,speed=2", "`options`");
    check("hot:0.5,drift=0.1,drift=0.1", "`options`");
    check("uniform,drift=0.1", "`drift`");
}

#[test]
fn hot_gives_its_share_to_one_expert() {
    let step = spec("hot:0.25").generate(&shape(16, 32, 4096, 2), 1, 0, 0);
    let step = step.unwrap();
    let loads = step.expert_loads();
    let most = *loads.iter().max().unwrap() as f64 / step.total() as f64;
    assert!((most - 0.25).abs() < 0.005, "{most}");
    assert!((step.max_over_mean() - 8.0).abs() < 0.2);
}

#[test]
fn no_expert_is_chosen_twice_by_a_token() {
    let step = spec("hot:0.9").generate(&shape(4, 8, 100, 2), 1, 0, 0);
    let step = step.unwrap();
    assert!(step.rows().all(|row| row.iter().max() == Some(&100)));
}

#[test]
fn zipf_shares_follow_the_power_law() {
    let step = spec("zipf:1").generate(&shape(16, 8, 65_536, 1), 1, 0, 0);
    let mut loads = step.unwrap().expert_loads();
    loads.sort_unstable_by(|a, b| b.cmp(a));
    for (rank, &load) in (1..).zip(&loads) {
        let ratio = load as f64 * f64::from(rank) / loads[0] as f64;
        assert!((0.98..1.02).contains(&ratio), "{rank}: {ratio}");
    }
}

#[test]
fn drift_moves_the_popular_expert_to_its_neighbour() {
    let hottest = |step: u64| {
        let loads = spec("hot:0.5,drift=0.25")
            .generate(&shape(1, 8, 4096, 1), 1, step, 0)
            .unwrap()
            .expert_loads();
        (0..8).max_by_key(|&e| loads[e]).unwrap()
    };
    assert_eq!(hottest(4), (hottest(0) + 1) % 8);
    assert_eq!(hottest(0), hottest(32));
    // Half way between the two experts they are about equal.
    let half = spec("hot:0.5,drift=0.5").generate(&shape(1, 8, 65_536, 1), 1, 1, 0);
    assert!(half.unwrap().max_over_mean() < 2.4);
}

#[test]
fn uniform_is_exact_and_zipf_zero_is_noisy() {
    let even = shape(4, 32, 1024, 2);
    let exact = spec("uniform").generate(&even, 1, 0, 0).unwrap();
    assert_eq!(exact, RoutingStep::uniform(&even, 0, 0).unwrap());
    let noisy = spec("zipf:0").generate(&even, 1, 0, 0).unwrap();
    let f = noisy.needed_capacity_factor();
    assert!((1.1..1.8).contains(&f), "{f}");
}

#[test]
fn layers_steps_and_seeds_differ() {
    let make = |seed, step, layer| {
        let spec = spec("dirichlet:0.3");
        spec.generate(&shape(2, 16, 64, 2), seed, step, layer)
            .unwrap()
    };
    assert_eq!(make(1, 2, 3), make(1, 2, 3));
    let base = make(1, 2, 3);
    for other in [make(2, 2, 3), make(1, 3, 3), make(1, 2, 4)] {
        assert_ne!(base.all_counts(), other.all_counts());
    }
}

proptest! {
    #[test]
    fn display_round_trips(kind in 0..4, value in 0.001_f64..1.0, drift in 0.0_f64..1.0) {
        let popularity = match kind {
            0 => Popularity::Uniform,
            1 => Popularity::Zipf(value * 10.0),
            2 => Popularity::Dirichlet(value * 100.0),
            _ => Popularity::Hot(value),
        };
        let drift = if kind == 0 { 0.0 } else { drift };
        let spec = RoutingSpec { popularity, drift };
        prop_assert_eq!(spec.to_string().parse::<RoutingSpec>().unwrap(), spec);
    }

    #[test]
    fn parsing_never_panics(text in "\\PC*") {
        let _ = text.parse::<RoutingSpec>();
    }
}
