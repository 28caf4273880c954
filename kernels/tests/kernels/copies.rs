//! Stride copy, repeat, local sum, gather, casts.

use crate::device::{Case, Device, assert_close, case, input, output, round};
use moeplan_kernels::{CastFromFloat, CastToFloat, GatherRows, LocalSum, Repeat, StrideCopy};
use proptest::prelude::*;
use rand::Rng;

fn bytes(device: &mut Device, count: usize) -> Vec<u8> {
    (0..count).map(|_| device.rng.random()).collect()
}

fn stride_copy(case: Case, outer: usize, rows: usize, columns: usize, block: usize) {
    let mut device = Device::new(case);
    let from = bytes(&mut device, outer * rows * columns * block);
    let (from_at, to) = (device.bytes(&from), device.allocate(from.len()));
    let copy = StrideCopy {
        from: input(from_at),
        to: output(to),
        outer: outer as i64,
        rows: rows as i64,
        columns: columns as i64,
        block_bytes: block as i64,
    };
    device.launch(&copy);
    let got = device.read_bytes(to);
    for o in 0..outer {
        for row in 0..rows {
            for column in 0..columns {
                let source = ((o * rows + row) * columns + column) * block;
                let target = ((o * columns + column) * rows + row) * block;
                assert_eq!(got[target..target + block], from[source..source + block]);
            }
        }
    }
    // Transposed twice it is what it was.
    let back = device.allocate(from.len());
    device.launch(&StrideCopy {
        from: input(to),
        to: output(back),
        rows: columns as i64,
        columns: rows as i64,
        ..copy
    });
    assert_eq!(device.read_bytes(back), from);
}

fn repeat_and_sum(case: Case, blocks: usize, copies: usize, elements: usize, in_place: bool) {
    let mut device = Device::new(case);
    let blocks = if in_place { 1 } else { blocks };
    let x = device.random(blocks * elements);
    let all = device.real_bytes(blocks * copies * elements);
    // In place the first copy is the source, at the head of a buffer for all.
    let (from, to) = match in_place {
        false => (device.reals(&x), device.allocate(all)),
        true => {
            let mut padded = x.clone();
            padded.resize(copies * elements, 0.0);
            let at = device.reals(&padded);
            (at, at)
        }
    };
    device.launch(&Repeat {
        from: input(from),
        to: output(to),
        blocks: blocks as i64,
        copies: copies as i32,
        block_bytes: device.real_bytes(elements) as i64,
    });
    let want: Vec<f32> = x
        .chunks(elements)
        .flat_map(|block| block.repeat(copies))
        .collect();
    assert_eq!(device.read_reals(to), want);

    let sum_bytes = device.real_bytes(blocks * elements);
    let sum = if in_place {
        to
    } else {
        device.allocate(sum_bytes)
    };
    device.launch(&LocalSum {
        from: input(to),
        to: output(sum),
        blocks: blocks as i64,
        copies: copies as i32,
        elements: elements as i64,
    });
    let want: Vec<f64> = x.iter().map(|&v| f64::from(v) * copies as f64).collect();
    let got = device.read_reals(sum);
    assert_close(
        case.real,
        &got[..blocks * elements],
        &want,
        &[copies as f64],
        "sum",
    );
}

fn gather(case: Case, sources: usize, rows: usize, row_bytes: usize) {
    let mut device = Device::new(case);
    let from = bytes(&mut device, sources * row_bytes);
    let index: Vec<i32> = (0..rows)
        .map(|_| device.rng.random_range(-1..sources as i32))
        .collect();
    let (from_at, index_at, to) = (
        device.bytes(&from),
        device.i32s(&index),
        device.allocate(rows * row_bytes),
    );
    device.launch(&GatherRows {
        from: input(from_at),
        to: output(to),
        index: input(index_at),
        rows: rows as i64,
        row_bytes: row_bytes as i64,
    });
    let want: Vec<u8> = index
        .iter()
        .flat_map(|&i| match i {
            -1 => vec![0; row_bytes],
            i => from[i as usize * row_bytes..][..row_bytes].to_vec(),
        })
        .collect();
    assert_eq!(device.read_bytes(to), want);
}

fn cast(case: Case, count: usize, accumulate: bool) {
    let mut device = Device::new(case);
    let x = device.random(count);
    let (from, to) = (device.reals(&x), device.allocate(count * 4));
    device.launch(&CastToFloat {
        from: input(from),
        to: output(to),
        count: count as i64,
    });
    assert_eq!(device.read_f32s(to), x);
    let fine: Vec<f32> = (0..count)
        .map(|_| device.rng.random_range(-70_000.0f32..70_000.0) * 0.9)
        .collect();
    let fine_at = device.f32s(&fine);
    let target = device.reals(&x);
    device.launch(&CastFromFloat {
        from: input(fine_at),
        to: output(target),
        count: count as i64,
        accumulate,
    });
    let want: Vec<f32> = fine
        .iter()
        .zip(&x)
        .map(|(f, x)| round(case.real, if accumulate { x + f } else { *f }))
        .collect();
    assert_eq!(device.read_reals(target), want);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn stride_copy_transposes_blocks(
        case in case(), outer in 1usize..4, rows in 1usize..6, columns in 1usize..6,
        block in prop_oneof![1usize..70, Just(256), Just(5000)],
    ) {
        stride_copy(case, outer, rows, columns, block);
    }

    #[test]
    fn repeated_blocks_sum_to_multiples(
        case in case(), blocks in 1usize..5, copies in 1usize..5, elements in 1usize..300, in_place: bool,
    ) {
        repeat_and_sum(case, blocks, copies, elements, in_place);
    }

    #[test]
    fn gather_follows_the_index(case in case(), sources in 1usize..30, rows in 1usize..30, row_bytes in 1usize..300) {
        gather(case, sources, rows, row_bytes);
    }

    #[test]
    fn casts_round_once(case in case(), count in 1usize..600, accumulate: bool) {
        // Beyond 65504 fp16 has infinity only; the oracle of `half` says the same, so keep to finite ones.
        prop_assume!(case.real != moeplan_kernels::Real::F16 || count < 600);
        cast(case, count, accumulate);
    }
}
