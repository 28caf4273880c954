//! Slot locations: first choices before second choices, in token or given order.

use crate::device::{Case, Device, case, cases, input, output};
use moeplan_kernels::{SLOT_TILE, SlotAssign, SlotCount, SlotPlaces, SlotScan, slot_tiles};
use proptest::prelude::*;
use rand::Rng;

#[derive(Debug, Clone, Copy)]
struct Shape {
    tokens: usize,
    experts: usize,
    top_k: usize,
}

/// Distinct experts a token, the lower ones favoured; high ones stay empty.
fn choices(device: &mut Device, s: Shape) -> Vec<i32> {
    (0..s.tokens)
        .flat_map(|_| {
            let first = device
                .rng
                .random_range(0..s.experts)
                .min(device.rng.random_range(0..s.experts));
            (0..s.top_k).map(move |i| ((first + i) % s.experts) as i32)
        })
        .collect()
}

fn oracle(experts: &[i32], order: &[i32], s: Shape) -> (Vec<i32>, Vec<i32>) {
    let mut locations = vec![-1; experts.len()];
    let mut counts = vec![0; s.experts];
    for choice in 0..s.top_k {
        for &token in order {
            let copy = token as usize * s.top_k + choice;
            let count = &mut counts[experts[copy] as usize];
            locations[copy] = *count;
            *count += 1;
        }
    }
    (locations, counts)
}

/// How an expert's slots are cut.
#[derive(Debug, Clone, Copy)]
struct Split {
    /// Slots of an expert and group.
    capacity: usize,
    degree: usize,
    groups: usize,
    padded: bool,
}

fn check(case: Case, s: Shape, prioritized: bool, split: Split) {
    let mut device = Device::new(case);
    let experts = choices(&mut device, s);
    let mut order: Vec<i32> = (0..s.tokens as i32).collect();
    if prioritized {
        for i in (1..s.tokens).rev() {
            order.swap(i, device.rng.random_range(0..=i));
        }
    }
    let (want, want_totals) = oracle(&experts, &order, s);
    let copies = s.tokens * s.top_k;
    let tiles = slot_tiles(copies as i64);
    let (experts_at, order_at) = (device.i32s(&experts), device.i32s(&order));
    let order = prioritized.then(|| input(order_at));
    let counts = device.zeroed(tiles as usize * s.experts * 4);
    let (totals, locations) = (device.allocate(s.experts * 4), device.allocate(copies * 4));
    let (t, e, k) = (s.tokens as i64, s.experts as i32, s.top_k as i32);
    device.launch(&SlotCount {
        experts: input(experts_at),
        order,
        counts: output(counts),
        num_tokens: t,
        top_k: k,
        choices: k,
        num_experts: e,
        tile: SLOT_TILE,
    });
    device.launch(&SlotScan {
        counts: output(counts),
        totals: output(totals),
        tiles,
        num_experts: e,
    });
    device.launch(&SlotAssign {
        experts: input(experts_at),
        order,
        counts: output(counts),
        locations: output(locations),
        num_tokens: t,
        top_k: k,
        num_experts: e,
        tile: SLOT_TILE,
    });
    assert_eq!(device.read_i32s(totals), want_totals);
    assert_eq!(device.read_i32s(locations), want);

    places(
        &mut device,
        s,
        &experts,
        &want,
        (experts_at, locations),
        split,
    );
}

/// Where slots lie: chunk after chunk, and in a chunk expert after expert and group after group.
fn places(
    device: &mut Device,
    s: Shape,
    experts: &[i32],
    locations: &[i32],
    at: (u64, u64),
    split: Split,
) {
    let Split {
        capacity,
        degree,
        groups,
        padded,
    } = split;
    let d = 3i64;
    let own_group = device.rng.random_range(0..groups);
    let rows_of = |expert: usize, group: usize| match (padded, group == own_group) {
        (true, _) => capacity,
        (false, true) => experts.iter().filter(|&&e| e as usize == expert).count(),
        (false, false) => 0,
    };
    // Every slot by (expert, group, index), in the order of memory.
    let mut slots = std::collections::BTreeMap::new();
    let (mut firsts, mut bases) = (Vec::new(), Vec::new());
    for chunk in 0..degree {
        for expert in 0..s.experts {
            for group in 0..groups {
                bases.push(slots.len() as i64 * d);
                // Any cut will do, also one of chunks that are not equal and may be empty.
                let bound = |chunk| (rows_of(expert, group) * chunk + expert % degree) / degree;
                firsts.push(bound(chunk) as i64);
                for index in bound(chunk)..bound(chunk + 1) {
                    slots.insert((expert, group, index), slots.len() as i64 * d);
                }
            }
        }
    }
    let rows: Vec<i64> = (0..s.experts * groups)
        .map(|i| rows_of(i / groups, i % groups) as i64)
        .collect();
    let limit = if padded {
        capacity * groups
    } else {
        usize::MAX >> 1
    };
    let [rows_at, firsts_at, bases_at] = [&rows, &firsts, &bases].map(|table| device.i64s(table));
    let places = device.allocate(experts.len() * 8);
    device.launch(&SlotPlaces {
        experts: input(at.0),
        locations: input(at.1),
        rows: input(rows_at),
        firsts: input(firsts_at),
        bases: input(bases_at),
        places: output(places),
        copies: experts.len() as i64,
        num_experts: s.experts as i32,
        groups: groups as i32,
        degree: degree as i32,
        limit: limit as i64,
        own_group: if padded { -1 } else { own_group as i32 },
        model_dim: d,
    });
    let want: Vec<i64> = (0..experts.len())
        .map(|copy| {
            let (expert, location) = (experts[copy] as usize, locations[copy] as usize);
            let (group, index) = match padded {
                true => (location / capacity, location % capacity),
                false => (own_group, location),
            };
            slots.get(&(expert, group, index)).copied().unwrap_or(-1)
        })
        .collect();
    assert_eq!(device.read_i64s(places), want);
}

#[test]
fn first_choices_alone_are_counted_for_the_balancing_loss() {
    let mut device = Device::new(Case {
        real: moeplan_kernels::Real::F32,
        order: 0,
        seed: 1,
    });
    let experts = device.i32s(&[0, 2, 2, 1, 0, 1]);
    let (counts, totals) = (device.zeroed(12), device.allocate(12));
    device.launch(&SlotCount {
        experts: input(experts),
        order: None,
        counts: output(counts),
        num_tokens: 3,
        top_k: 2,
        choices: 1,
        num_experts: 3,
        tile: SLOT_TILE,
    });
    device.launch(&SlotScan {
        counts: output(counts),
        totals: output(totals),
        tiles: 1,
        num_experts: 3,
    });
    assert_eq!(device.read_i32s(totals), [2, 0, 1]);
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn slots_follow_choice_and_order(
        case in case(),
        tokens in prop_oneof![1usize..70, 250usize..600],
        experts in 1usize..50,
        top_k in 1usize..4,
        prioritized: bool,
        capacity in 1usize..20,
        degree in 1usize..4,
        groups in 1usize..4,
        padded: bool,
    ) {
        let shape = Shape { tokens, experts, top_k: top_k.min(experts) };
        check(case, shape, prioritized, Split { capacity, degree, groups, padded });
    }
}
