//! Routing made from a specification.

use moeplan_traces::{
    Curve, Domains, Popularity, RoutingSpec, RoutingStep, StepStats, Transitions, Workload,
    total_variation,
};
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
    check("w2,burst=4", "`burst`");
    check("w0:3", "`w0`");
    check("w8", "`popularity`");
    check("power:1", "`power`");
    check("zipf:1,phase=0", "`phase`");
    check("zipf:1,phase=-1", "`phase`");
    check("zipf:1,burst=99999999999999999999", "`burst`");
    check("zipf:1,own=0.5", "`own`");
    check("zipf:1,domains=0", "`domains`");
    check("zipf:1,domains=4294967297", "`domains`");
    check("zipf:1,domains=2,own=inf", "`own`");
    check("zipf:1,over=10", "`over`");
    check("zipf:1,capacity=3", "`capacity`");
    check("zipf:1,capacity=3..2", "`capacity`");
    check("zipf:1,capacity=0..2", "`capacity`");
    check("zipf:1,capacity=1..NaN", "`capacity`");
    check("zipf:1,balance=-3", "`balance`");
    check("zipf:1,affinity=1.1", "`affinity`");
    check("zipf:1,ragged=2", "`ragged`");
    check("zipf:1,", "`options`");
    check("zipf:1,=", "`options`");
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

/// The expert max/mean of the proposal's own tables (NVIDIA/Megatron-LM#7488: 8 experts): what its
/// definitions come to, with fewer tokens and so more noise there than here.
#[test]
fn workloads_are_as_uneven_as_proposed() {
    let heat = |name: &str, step: u64, top_k: u32| {
        let made = spec(name).generate(&shape(4, 8, 16_384, top_k), 1, step, 0);
        made.unwrap().max_over_mean()
    };
    for (name, step, top_k, expected) in [
        ("w0", 0, 2, 1.0),
        // 3 of 4 tokens choose both hot experts: 8 * (0.75 / 2 + 0.25 / 8). Published: 3.312, 3.219.
        ("w1", 0, 2, 3.25),
        ("w2", 0, 2, 3.25),
        ("w6", 5, 2, 3.25),
        // Four hot experts: 8 * (0.75 / 4 + 0.25 / 8). Published: 1.781, 1.770, 1.770.
        ("w1", 0, 4, 1.75),
        ("w2", 0, 4, 1.75),
        ("w6", 0, 4, 1.75),
        // Published: 2.156 and 2.000.
        ("w5", 0, 2, 2.0),
        ("w5", 0, 4, 2.0),
        ("w4", 0, 2, 1.0),
        ("w7", 0, 2, 1.0),
        // 8 * (0.5 / 2 + 0.5 / 8) in the fourth step.
        ("w7", 3, 2, 2.5),
    ] {
        let found = heat(name, step, top_k);
        assert!(
            (found / expected - 1.0).abs() < 0.03,
            "{name} {step} {top_k}: {found}"
        );
    }
    // Half of the experts take 7 of 8 tokens.
    let spread = spec("w3")
        .generate(&shape(4, 8, 16_384, 2), 1, 0, 0)
        .unwrap();
    let loads = spread.expert_loads();
    assert!(
        loads.iter().step_by(2).all(|&load| load > 25_000),
        "{loads:?}"
    );
}

#[test]
fn workloads_put_their_heat_where_they_say() {
    let loads = |name: &str, step: u64| {
        let made = spec(name).generate(&shape(4, 16, 4096, 2), 1, step, 0);
        made.unwrap().expert_loads()
    };
    let hot = |loads: &[u64]| -> Vec<usize> {
        let mean = loads.iter().sum::<u64>() / 16;
        (0..16).filter(|&e| loads[e] > 2 * mean).collect()
    };
    assert_eq!(hot(&loads("w2", 0)), [0, 1, 2, 3]);
    assert_eq!(hot(&loads("w1", 0)).len(), 4);
    assert_ne!(hot(&loads("w1", 0)), [0, 1, 2, 3]);
    assert_eq!(hot(&loads("w6", 2)), [0, 1, 2, 3]);
    assert_eq!(hot(&loads("w6", 3)), [4, 5, 6, 7]);
    assert_eq!(hot(&loads("w6", 12)), [0, 1, 2, 3]);
    assert!(loads("w5", 0)[..8].iter().all(|&load| load == 0));
}

#[test]
fn ragged_ranks_lack_their_part() {
    let step = spec("zipf:0,ragged=0.7").generate(&shape(9, 8, 1000, 2), 1, 0, 0);
    let step = step.unwrap();
    let tokens: Vec<u32> = (0..9).map(|rank| step.tokens(rank)).collect();
    assert_eq!(tokens, [1000, 900, 800, 700, 600, 500, 400, 300, 1000]);
}

#[test]
fn power_law_shares_have_its_tail() {
    // P(x > a) of the density x^-2 between 1 and E: (1/a - 1/E) / (1 - 1/E).
    let experts = 4096;
    let step = spec("power:2").generate(&shape(1, experts, 1 << 22, 1), 3, 0, 0);
    let loads = step.unwrap().expert_loads();
    let mut sorted = loads.clone();
    sorted.sort_unstable();
    let median = sorted[experts / 2] as f64;
    // The median of x is 2, so this many are above four medians: 1/8.
    let above = sorted
        .iter()
        .filter(|&&load| load as f64 > 4.0 * median)
        .count();
    let part = above as f64 / experts as f64;
    assert!((0.105..0.145).contains(&part), "{part}");
}

#[test]
fn phases_and_bursts_change_popularity() {
    let loads = |text: &str, step: u64| {
        let made = spec(text).generate(&shape(4, 16, 4096, 1), 1, step, 0);
        made.unwrap().expert_loads()
    };
    let apart = |a: &[u64], b: &[u64]| {
        let share = |of: &[u64]| of.iter().map(|&c| c as f64 / 16_384.0).collect::<Vec<_>>();
        total_variation(&share(a), &share(b))
    };
    let phased = |step| loads("zipf:1.5,phase=10", step);
    assert!(apart(&phased(0), &phased(9)) < 0.02);
    assert!(apart(&phased(9), &phased(10)) > 0.2);
    let burst = |step| {
        let step = spec("zipf:1.5,burst=4").generate(&shape(4, 16, 4096, 1), 1, step, 0);
        step.unwrap().max_over_mean()
    };
    assert!(burst(0) < 1.1 && burst(2) < 1.1 && burst(3) > 4.0 && burst(4) < 1.1);
}

#[test]
fn a_balancing_loss_halves_the_unevenness() {
    let excess = |step| {
        let made = spec("hot:0.5,balance=10").generate(&shape(8, 16, 8192, 1), 1, step, 0);
        made.unwrap().max_over_mean() - 1.0
    };
    for step in [10, 20, 30] {
        let ratio = excess(step - 10) / excess(step);
        assert!((1.9..2.1).contains(&ratio), "{step}: {ratio}");
    }
}

/// The paper's Figure 1: the needed capacity moves up to 4.38 times within a run.
#[test]
fn capacity_moves_as_far_as_asked_by_another_curve_in_each_layer() {
    let shape = shape(1, 64, 1 << 20, 1);
    let curve = |layer| -> Vec<f64> {
        let made = spec("zipf:1,capacity=1.5..6.57,over=50");
        let steps = (0..50).map(|step| made.generate(&shape, 7, step, layer).unwrap());
        steps.map(|step| step.needed_capacity_factor()).collect()
    };
    let (first, second) = (curve(0), curve(1));
    for layer in [&first, &second] {
        let least = layer.iter().copied().fold(f64::INFINITY, f64::min);
        let most = layer.iter().copied().fold(0.0, f64::max);
        assert!((most / least / 4.38 - 1.0).abs() < 0.05, "{least} {most}");
    }
    let apart = first
        .iter()
        .zip(&second)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(apart > 1.0, "{apart}");
}

#[test]
fn domains_make_ranks_unlike() {
    let unlike = |text: &str| {
        let made = spec(text)
            .generate(&shape(8, 16, 65_536, 1), 1, 0, 0)
            .unwrap();
        StepStats::of(&made).source_divergence
    };
    assert!(unlike("zipf:1") < 0.01);
    let (some, all) = (
        unlike("zipf:1,domains=4,own=0.3"),
        unlike("zipf:1,domains=4,own=1"),
    );
    // A mixture's distance from the mean grows in proportion to what is each domain's own.
    assert!((some / all - 0.3).abs() < 0.03, "{some} {all}");
}

#[test]
fn tokens_follow_to_partners_as_far_as_asked() {
    // With all tokens following, loads of the next layer are those of this one, permuted.
    let layers = spec("zipf:1.2,affinity=1").generate_step(&shape(2, 16, 65_536, 1), 1, 0, 2, None);
    let layers = layers.unwrap();
    let sorted = |layer: usize| {
        let mut loads = layers[layer].expert_loads();
        loads.sort_unstable();
        loads
    };
    for (a, b) in sorted(0).into_iter().zip(sorted(1)) {
        assert!(
            (a as f64 - b as f64).abs() < 5.0 * (a.max(b) as f64).sqrt() + 5.0,
            "{a} {b}"
        );
    }
    assert_ne!(layers[0].expert_loads(), layers[1].expert_loads());
}

#[test]
fn joint_counts_lead_from_layer_to_layer() {
    // Everything of expert e goes to expert 3 - e, except half of expert 0's.
    let text = "0,\"(0, 3)\",5\n0,\"(0, 0)\",5\n0,\"(1, 2)\",7\n0,\"(2, 1)\",1\n0,\"(3, 0)\",9\n";
    let joint = Transitions::read(text.as_bytes(), "joint.csv").unwrap();
    assert_eq!((joint.experts(), joint.pairs()), (4, 1));
    assert_eq!(joint.marginal(0), [10, 7, 1, 9]);
    let shape = shape(1, 4, 100_000, 1);
    let layers = spec("hot:0.7")
        .generate_step(&shape, 1, 0, 2, Some(&joint))
        .unwrap();
    let (before, after) = (layers[0].expert_loads(), layers[1].expert_loads());
    let expected = [
        before[3] + before[0] / 2,
        before[2],
        before[1],
        before[0] / 2,
    ];
    for (after, expected) in after.iter().zip(expected) {
        assert!(after.abs_diff(expected) < 1500, "{after} {expected}");
    }
    let wrong = |text: &str, words: &str| {
        let error = Transitions::read(text.as_bytes(), "joint.csv")
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    };
    wrong("", "at least one row");
    wrong("0,\"(0, 1)\",5\n0,\"(0, -1)\",5\n", "joint.csv:2");
    wrong("0,\"(0, 99999999)\",5\n", "joint.csv:1");
    wrong("0,1\n", "joint.csv:1");
    let more = moeplan_traces::Shape {
        experts: 8,
        ..shape
    };
    assert!(
        spec("zipf:1")
            .generate_step(&more, 1, 0, 2, Some(&joint))
            .is_err()
    );
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

fn any_popularity() -> impl Strategy<Value = Popularity> {
    prop_oneof![
        Just(Popularity::Uniform),
        (0.0_f64..10.0).prop_map(Popularity::Zipf),
        (0.001_f64..100.0).prop_map(Popularity::Dirichlet),
        (1.001_f64..10.0).prop_map(Popularity::Power),
        (0.0_f64..=1.0).prop_map(Popularity::Hot),
        (0_usize..8).prop_map(|i| Popularity::Workload(Workload::ALL[i])),
    ]
}

/// Zero in half of the cases: the option is not used.
fn part() -> impl Strategy<Value = f64> {
    prop_oneof![Just(0.0), 0.0_f64..=1.0]
}

prop_compose! {
    fn any_spec()(
        popularity in any_popularity(),
        parts in (part(), part(), part()),
        phase in 0_u64..50,
        burst in 0_u64..5,
        domains in proptest::option::of((1_u64..9, 0.0_f64..=1.0)),
        balance in prop_oneof![Just(0.0), 0.5_f64..1e6],
        capacity in proptest::option::of((1.0_f64..4.0, 1.0_f64..4.0, 1_u64..200)),
    ) -> RoutingSpec {
        let (drift, affinity, ragged) = parts;
        let moving = RoutingSpec {
            drift,
            phase,
            burst,
            domains: domains.map(|(count, own)| Domains { count, own }),
            balance,
            capacity: capacity.map(|(least, more, over)| Curve { least, most: least * more, over }),
            affinity,
            ragged,
            ..RoutingSpec::of(popularity)
        };
        match popularity {
            Popularity::Uniform => RoutingSpec::of(popularity),
            Popularity::Workload(_) => RoutingSpec { affinity, ragged, ..RoutingSpec::of(popularity) },
            _ => moving,
        }
    }
}

proptest! {
    #[test]
    fn display_round_trips(spec in any_spec()) {
        let text = spec.to_string();
        prop_assert_eq!(text.parse::<RoutingSpec>().unwrap(), spec, "{}", text);
    }

    #[test]
    fn every_row_is_what_a_gate_can_produce(spec in any_spec(), step in 0_u64..40, seed: u64) {
        let shape = shape(5, 12, 40, 3);
        let layers = spec.generate_step(&shape, seed, step, 2, None).unwrap();
        for (layer, made) in (0..).zip(&layers) {
            // Checks sums and that no expert gets more than one copy of a token.
            let again = RoutingStep::new(step, layer, 3, 12, made.all_counts().to_vec());
            prop_assert_eq!(&again.unwrap(), made);
            prop_assert!((0..5).all(|rank| made.tokens(rank) <= 40));
            if spec.ragged == 0.0 && spec.popularity != Popularity::Workload(Workload::SourceRagged) {
                prop_assert_eq!(made.shape(), Some(shape));
            }
            prop_assert_eq!(&spec.generate(&shape, seed, step, layer).unwrap(), made);
        }
    }

    #[test]
    fn parsing_never_panics(text in "\\PC*") {
        let _ = text.parse::<RoutingSpec>();
    }
}
