//! The fast solvers against the oracle, closed forms, and what must hold for any network.

use super::fabric::{Fabric, Leaves, LinkClass, Routing};
use super::load::Loads;
use super::traffic::{Scope, Traffic};
use super::{Drained, drain, drain_in_steps, reference};
use crate::units::{Bandwidth, Time};
use proptest::prelude::*;

fn gb(gigabytes: f64) -> Bandwidth {
    Bandwidth::from_bytes_per_second(gigabytes * 1e9).unwrap()
}

/// Two to eight nodes of one to eight GPUs with every feature of the fabric on or off.
fn any_fabric() -> impl Strategy<Value = Fabric> {
    let leaves = (1u32..4, 1.0..3.0, 1u32..4, any::<bool>()).prop_map(
        |(nodes_per_leaf, oversubscription, spines, adaptive)| Leaves {
            nodes_per_leaf,
            oversubscription,
            spines,
            routing: if adaptive {
                Routing::Adaptive
            } else {
                Routing::Static
            },
        },
    );
    let nodes = (1u32..=8, prop_oneof![Just(1u32), Just(2), Just(4), Just(8)]);
    let caps = (
        proptest::option::of(5.0..200.0),
        proptest::option::of(0.5..12.0),
    );
    (nodes, proptest::option::of(leaves), caps, 20.0..300.0).prop_map(
        |((nodes, g), leaves, (local, remote), nvlink)| {
            let fabric = Fabric::new(nodes * g, g, gb(nvlink), gb(10.0)).unwrap();
            let fabric = fabric.with_flow_caps(local.map(gb), remote.map(gb));
            leaves.map_or(fabric.clone(), |l| fabric.with_leaves(l).unwrap())
        },
    )
}

/// The shapes of a matrix that have broken a solver before, or might.
#[derive(Debug, Clone, Copy)]
enum Shape {
    Noise,
    Sparse,
    HeavyTail,
    HotColumn,
    HotRow,
    Outer,
    OneFlow,
}

const SHAPES: [Shape; 7] = [
    Shape::Noise,
    Shape::Sparse,
    Shape::HeavyTail,
    Shape::HotColumn,
    Shape::HotRow,
    Shape::Outer,
    Shape::OneFlow,
];

/// Numbers in 0..1, from a xorshift.
fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn matrix(fabric: &Fabric, scope: Scope, shape: Shape, seed: u64) -> Traffic {
    let (rows, columns) = (fabric.world_size(), scope.size(fabric));
    let mut random = uniform(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let by_row: Vec<f64> = (0..rows).map(|_| 0.1 + random()).collect();
    let by_column: Vec<f64> = (0..columns).map(|_| 0.1 + random() * 10.0).collect();
    let (hot_row, hot_column) = (seed as u32 % rows, seed as u32 % columns);
    let pairs = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let bytes = pairs
        .map(|(row, column)| {
            let noise = random();
            let factor = match shape {
                Shape::Noise => noise,
                Shape::Sparse => (noise - 0.7).max(0.0),
                Shape::HeavyTail => noise.powi(5),
                Shape::HotColumn => (0.5 + noise) * if column == hot_column { 10.0 } else { 1.0 },
                Shape::HotRow => (0.5 + noise) * if row == hot_row { 10.0 } else { 1.0 },
                Shape::Outer => (0.5 + noise) * by_row[row as usize] * by_column[column as usize],
                Shape::OneFlow => f64::from(row == hot_row && column == hot_column),
            };
            (factor * 1e7) as u64
        })
        .collect();
    Traffic::Matrix { scope, bytes }
}

fn any_scope() -> impl Strategy<Value = Scope> {
    prop_oneof![3 => Just(Scope::World), 1 => Just(Scope::Node), 1 => Just(Scope::Rail)]
}

fn any_network() -> impl Strategy<Value = (Fabric, Traffic)> {
    let shape = proptest::sample::select(&SHAPES[..]);
    (any_fabric(), any_scope(), shape, any::<u64>()).prop_map(|(fabric, scope, shape, seed)| {
        let traffic = matrix(&fabric, scope, shape, seed);
        (fabric, traffic)
    })
}

/// `got` keeps what it says of its own accuracy.
fn check_close(exact: &Drained, got: &Drained) {
    let (makespan, rank) = (got.relative_error_bound, got.finish_error_bound);
    let total = exact.makespan.as_secs_f64();
    let off = |a: Time, b: Time| (a.as_secs_f64() - b.as_secs_f64()).abs();
    let slack = 2e-12;
    assert!(
        off(exact.makespan, got.makespan) <= makespan * total + slack,
        "makespan {} is not {}",
        got.makespan,
        exact.makespan
    );
    for (r, (&a, &b)) in exact.finish.iter().zip(&got.finish).enumerate() {
        assert!(
            off(a, b) <= rank * total + slack,
            "rank {r}: {b} is not {a} of {}",
            exact.makespan
        );
    }
    assert_eq!(exact.port_bound, got.port_bound);
    assert_eq!(exact.loads, got.loads);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn epochs_agree_with_the_oracle((fabric, traffic) in any_network(), steps in 16u32..200) {
        let exact = reference::drain(&fabric, &traffic).unwrap();
        let got = drain_in_steps(&fabric, &traffic, steps).unwrap();
        check_close(&exact, &got);
    }

    #[test]
    fn classes_agree_with_the_oracle(
        fabric in any_fabric(), scope in any_scope(), bytes_per_pair in 0u64..10_000_000
    ) {
        let traffic = Traffic::Uniform { scope, bytes_per_pair };
        let exact = reference::drain(&fabric, &traffic).unwrap();
        let got = drain(&fabric, &traffic).unwrap();
        check_close(&exact, &got);
    }
}

proptest! {
    #[test]
    fn bytes_are_conserved_and_nobody_beats_a_port((fabric, traffic) in any_network()) {
        let loads = Loads::new(&fabric, &traffic);
        let by_path = Loads::by_path(&fabric, &traffic);
        for class in LinkClass::ALL {
            prop_assert_eq!(loads.of(class), by_path.of(class));
        }
        let rank = |a, b, r: usize| loads.of(a)[r] + loads.of(b)[r];
        let (sent, received) = (traffic.sent(&fabric), traffic.received(&fabric));
        for r in 0..fabric.world_size() as usize {
            prop_assert_eq!(rank(LinkClass::NvlinkOut, LinkClass::NicOut, r), sent[r]);
            prop_assert_eq!(rank(LinkClass::NvlinkIn, LinkClass::NicIn, r), received[r]);
        }
        prop_assert_eq!(sent.iter().sum::<u64>(), received.iter().sum::<u64>());

        let got = drain(&fabric, &traffic).unwrap();
        prop_assert!(got.makespan >= got.port_bound);
        prop_assert_eq!(Some(got.makespan), got.finish.iter().copied().max());
        for (finish, bound) in got.finish.iter().zip(loads.rank_bounds(&fabric)) {
            prop_assert!(*finish >= bound);
        }
        for class in LinkClass::ALL {
            let utilisation = got.utilisation(&fabric, class);
            prop_assert!((0.0..=1.0 + 1e-9).contains(&utilisation), "{utilisation}");
        }
    }

    /// Max-min makespans are not monotone: a transfer can slow one flow to the gain of another.
    /// So the port bound must not fall, and the makespan no further than that of the oracle.
    #[test]
    fn more_bytes_help_no_more_than_they_should((fabric, traffic) in any_network(), at in any::<u32>(), more in 1u64..100_000_000) {
        let Traffic::Matrix { scope, ref bytes } = traffic else { unreachable!() };
        let mut bytes = bytes.clone();
        let at = at as usize % bytes.len();
        bytes[at] += more;
        let grown = Traffic::Matrix { scope, bytes };
        let (before, after) = (drain(&fabric, &traffic).unwrap(), drain(&fabric, &grown).unwrap());
        prop_assert!(after.port_bound >= before.port_bound);
        if after.makespan < before.makespan {
            let [before_exact, after_exact] =
                [&traffic, &grown].map(|t| reference::drain(&fabric, t).unwrap().makespan);
            let slack = before_exact.scale(2.0 * before.relative_error_bound);
            let fall = before.makespan - after.makespan;
            prop_assert!(fall <= before_exact.saturating_sub(after_exact) + slack);
        }
    }

    /// Without leaf links all transfers between nodes slow down by the same factor.
    #[test]
    fn slower_nics_never_help(seed in any::<u64>(), shape in proptest::sample::select(&SHAPES[..]), slower in 0.1..1.0) {
        let fabric = |nic| Fabric::new(32, 4, gb(100.0), gb(nic)).unwrap();
        let traffic = matrix(&fabric(10.0), Scope::World, shape, seed);
        let before = drain(&fabric(10.0), &traffic).unwrap();
        let after = drain(&fabric(10.0 * slower), &traffic).unwrap();
        prop_assert!(after.port_bound >= before.port_bound);
        let least = before.makespan.scale(1.0 - 2.0 * before.relative_error_bound);
        prop_assert!(after.makespan >= least);
    }

    #[test]
    fn names_of_nodes_do_not_matter(seed in any::<u64>(), shape in proptest::sample::select(&SHAPES[..]), turn in 1u32..8) {
        let fabric = Fabric::new(32, 4, gb(100.0), gb(10.0)).unwrap();
        let Traffic::Matrix { scope, bytes } = matrix(&fabric, Scope::World, shape, seed) else { unreachable!() };
        // Node k becomes node 5k + turn of 8: 5 and 8 share no factor.
        let rename = |rank: u32| ((rank / 4 * 5 + turn) % 8 * 4 + rank % 4) as usize;
        let mut renamed = vec![0; bytes.len()];
        for row in 0..32u32 {
            for column in 0..32u32 {
                renamed[rename(row) * 32 + rename(column)] = bytes[(row * 32 + column) as usize];
            }
        }
        let before = drain(&fabric, &Traffic::Matrix { scope, bytes }).unwrap();
        let after = drain(&fabric, &Traffic::Matrix { scope, bytes: renamed }).unwrap();
        let total = before.makespan.as_secs_f64();
        for rank in 0..32u32 {
            let (a, b) = (before.finish[rank as usize], after.finish[rename(rank)]);
            prop_assert!((a.as_secs_f64() - b.as_secs_f64()).abs() <= 2e-3 * total, "{a} {b}");
        }
    }

    /// Powers of two change no rounding, so this is an equality.
    #[test]
    fn four_times_the_bytes_at_four_times_the_speed(seed in any::<u64>(), shape in proptest::sample::select(&SHAPES[..])) {
        let fabric = |x| Fabric::new(16, 4, gb(100.0 * x), gb(10.0 * x)).unwrap();
        let Traffic::Matrix { scope, bytes } = matrix(&fabric(1.0), Scope::World, shape, seed) else { unreachable!() };
        let four = Traffic::Matrix { scope, bytes: bytes.iter().map(|b| b * 4).collect() };
        let one = drain(&fabric(1.0), &Traffic::Matrix { scope, bytes }).unwrap();
        prop_assert_eq!(one.finish, drain(&fabric(4.0), &four).unwrap().finish);
    }
}

#[test]
fn one_flow_takes_its_bytes_over_the_smallest_rate_on_its_way() {
    let check = |fabric: Fabric, src: usize, dst: usize, rate: f64| {
        let mut bytes = vec![0; 64];
        bytes[src * 8 + dst] = 1_000_000_000;
        let got = drain(&fabric, &Traffic::matrix(bytes)).unwrap();
        let expected = 1e9 / (rate * 1e9);
        assert!((got.makespan.as_secs_f64() / expected - 1.0).abs() < 1e-6);
        assert_eq!(
            (got.finish[src], got.finish[dst]),
            (got.makespan, got.makespan)
        );
        assert_eq!(got.finish.iter().filter(|&&t| t > Time::ZERO).count(), 2);
    };
    let fabric = || Fabric::new(8, 4, gb(100.0), gb(10.0)).unwrap();
    check(fabric(), 0, 1, 100.0);
    check(fabric(), 0, 4, 10.0);
    check(
        fabric().with_flow_caps(Some(gb(40.0)), Some(gb(3.0))),
        0,
        1,
        40.0,
    );
    check(
        fabric().with_flow_caps(Some(gb(40.0)), Some(gb(3.0))),
        0,
        4,
        3.0,
    );
    let leaves = Leaves {
        nodes_per_leaf: 1,
        oversubscription: 4.0,
        spines: 1,
        routing: Routing::Adaptive,
    };
    check(fabric().with_leaves(leaves).unwrap(), 0, 4, 2.5);
}

#[test]
fn a_balanced_all_to_all_takes_what_its_slower_ports_take() {
    let check = |n: u32, g: u32, nvlink: f64, nic: f64| {
        let b = 1_000_000;
        let fabric = Fabric::new(n, g, gb(nvlink), gb(nic)).unwrap();
        let expected = gb(nic)
            .time_for(u64::from(n - g) * b)
            .max(gb(nvlink).time_for(u64::from(g - 1) * b));
        let uniform = drain(&fabric, &Traffic::uniform(b)).unwrap();
        assert!(uniform.makespan.saturating_sub(expected) <= Time::from_ps(1));
        assert_eq!(uniform.makespan, uniform.finish[n as usize - 1]);
        if n <= 64 {
            let matrix = Traffic::matrix(vec![b; (n * n) as usize]);
            let dense = drain(&fabric, &matrix).unwrap();
            assert!((dense.makespan.as_secs_f64() / expected.as_secs_f64() - 1.0).abs() < 1e-5);
        }
    };
    check(64, 8, 300.0, 25.0);
    check(16, 8, 5.0, 25.0); // NVLink-bound
    check(8, 8, 300.0, 25.0);
    check(2_048, 8, 300.0, 25.0);
    check(65_536, 8, 300.0, 25.0);
}

#[test]
fn the_bottleneck_has_a_name() {
    let fabric = Fabric::new(8, 2, gb(100.0), gb(10.0)).unwrap();
    let mut bytes = vec![1_000; 64];
    for row in 0..8 {
        bytes[row * 8 + 5] = 50_000;
    }
    let got = drain(&fabric, &Traffic::matrix(bytes)).unwrap();
    let link = got.bottleneck.unwrap();
    assert_eq!(fabric.name(link).to_string(), "nic-in of rank 5");
    assert_eq!(got.bottleneck_bytes, 6 * 50_000);
    assert_eq!(
        drain(&fabric, &Traffic::uniform(0)).unwrap().bottleneck,
        None
    );
}

#[test]
fn a_matrix_of_the_wrong_size_is_an_error() {
    let fabric = Fabric::new(8, 2, gb(100.0), gb(10.0)).unwrap();
    assert!(drain(&fabric, &Traffic::matrix(vec![1; 63])).is_err());
}
