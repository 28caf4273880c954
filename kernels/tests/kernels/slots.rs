//! Slot locations: first choices before second choices, in token or given order.

use crate::device::{Case, Device, case, input, output};
use moeplan_kernels::{SLOT_TILE, SlotAssign, SlotCount, SlotRows, SlotScan, slot_tiles};
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

fn check(case: Case, s: Shape, prioritized: bool, capacity: usize, degree: usize) {
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
    let (totals, locations, rows) = (
        device.allocate(s.experts * 4),
        device.allocate(copies * 4),
        device.allocate(copies * 4),
    );
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

    let chunk_rows = capacity;
    let capacity = chunk_rows * degree;
    let mut slot_rows = SlotRows {
        experts: input(experts_at),
        locations: input(locations),
        starts: None,
        rows: output(rows),
        copies: copies as i64,
        num_experts: e,
        capacity: capacity as i64,
        chunk_rows: chunk_rows as i64,
    };
    device.launch(&slot_rows);
    let padded = |copy: usize| match want[copy] as usize {
        location if location >= capacity => -1,
        location => {
            let (chunk, within) = (location / chunk_rows, location % chunk_rows);
            ((chunk * s.experts + experts[copy] as usize) * chunk_rows + within) as i32
        }
    };
    assert_eq!(
        device.read_i32s(rows),
        (0..copies).map(padded).collect::<Vec<_>>()
    );

    let starts: Vec<i64> = (0..s.experts)
        .map(|e| want_totals[..e].iter().map(|&n| i64::from(n)).sum())
        .collect();
    slot_rows.starts = Some(input(device.i64s(&starts)));
    device.launch(&slot_rows);
    let mut dropless = device.read_i32s(rows);
    for copy in 0..copies {
        assert_eq!(
            i64::from(dropless[copy]),
            starts[experts[copy] as usize] + i64::from(want[copy])
        );
    }
    dropless.sort_unstable();
    assert!(
        dropless.iter().enumerate().all(|(i, &row)| i as i32 == row),
        "a permutation"
    );
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
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn slots_follow_choice_and_order(
        case in case(),
        tokens in prop_oneof![1usize..70, 250usize..600],
        experts in 1usize..50,
        top_k in 1usize..4,
        prioritized: bool,
        capacity in 1usize..20,
        degree in 1usize..4,
    ) {
        let shape = Shape { tokens, experts, top_k: top_k.min(experts) };
        check(case, shape, prioritized, capacity, degree);
    }
}
