//! Runs of copies and sums, casts.

use crate::device::{Case, Device, assert_close, case, cases, input, output, round};
use moeplan_kernels::{CastFromFloat, CastToFloat, CopyRun, CopyRuns, Real, SumRun, SumRuns};
use proptest::prelude::*;
use rand::Rng;

/// Transposes blocks, as the stride copies of 2DH do, from as many buffers as there are rows.
fn transpose(case: Case, rows: usize, columns: usize, block: usize) {
    let mut device = Device::new(case);
    let sources: Vec<Vec<u8>> = (0..rows)
        .map(|_| (0..columns * block).map(|_| device.rng.random()).collect())
        .collect();
    let at: Vec<u64> = sources.iter().map(|s| device.bytes(s)).collect();
    let target = device.allocate(rows * columns * block);
    let runs: Vec<CopyRun> = (0..rows * columns)
        .map(|i| {
            let (row, column) = (i / columns, i % columns);
            CopyRun {
                source: at[row] as i64 + (column * block) as i64,
                at: ((column * rows + row) * block) as i64,
                bytes: block as i64,
            }
        })
        .collect();
    let table = device.i64s(&CopyRun::table(&runs));
    device.launch(&CopyRuns {
        target: output(target),
        runs: input(table),
        num_runs: runs.len() as i32,
        longest: block as i64,
    });
    let got = device.read_bytes(target);
    for row in 0..rows {
        for column in 0..columns {
            let here = &got[(column * rows + row) * block..][..block];
            assert_eq!(here, &sources[row][column * block..][..block]);
        }
    }
}

/// Copies 64 bytes to byte `at` of as many, so that one lies beside them.
fn misplaced(at: i64) {
    let mut device = Device::new(Case {
        real: Real::F32,
        order: 0,
        seed: 0,
    });
    let (source, target) = (device.zeroed(64), device.zeroed(64));
    let run = CopyRun {
        source: source as i64,
        at,
        bytes: 64,
    };
    let table = device.i64s(&CopyRun::table(&[run]));
    device.launch(&CopyRuns {
        target: output(target),
        runs: input(table),
        num_runs: 1,
        longest: 64,
    });
}

#[test]
#[should_panic(expected = "out of bounds")]
fn a_byte_past_the_end_is_caught() {
    misplaced(1);
}

#[test]
#[should_panic(expected = "out of bounds")]
fn a_byte_before_the_start_is_caught() {
    misplaced(-1);
}

fn sums(case: Case, lengths: &[usize], sources: usize) {
    let mut device = Device::new(case);
    let total: usize = lengths.iter().sum();
    let parts: Vec<Vec<f32>> = (0..sources).map(|_| device.random(total)).collect();
    let at: Vec<u64> = parts.iter().map(|p| device.reals(p)).collect();
    let bytes = device.real_bytes(total);
    let target = device.allocate(bytes);
    let (mut runs, mut addresses, mut first) = (Vec::new(), Vec::new(), 0usize);
    for &elements in lengths {
        runs.push(SumRun {
            at: first as i64,
            elements: elements as i64,
            first: addresses.len() as i64,
            sources: sources as i64,
        });
        let offset = device.real_bytes(first) as i64;
        addresses.extend(at.iter().map(|&at| at as i64 + offset));
        first += elements;
    }
    let (table, list) = (device.i64s(&SumRun::table(&runs)), device.i64s(&addresses));
    device.launch(&SumRuns {
        target: output(target),
        runs: input(table),
        sources: input(list),
        num_runs: runs.len() as i32,
        longest: lengths.iter().copied().max().unwrap_or(0) as i64,
    });
    let want: Vec<f64> = (0..total)
        .map(|i| parts.iter().map(|p| f64::from(p[i])).sum())
        .collect();
    let got = device.read_reals(target);
    assert_close(case.real, &got, &want, &[sources as f64], "sum");
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
    // Large, small and subnormal for fp16, and everything between.
    let fine: Vec<f32> = (0..count)
        .map(|_| {
            device.rng.random_range(-1.0f32..1.0) * 2f32.powi(device.rng.random_range(-26..16))
        })
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
    #![proptest_config(cases(48))]

    #[test]
    fn copies_transpose_blocks(
        case in case(), rows in 1usize..6, columns in 1usize..6,
        block in prop_oneof![1usize..70, Just(256), Just(5000), Just(40_000)],
    ) {
        transpose(case, rows, columns, block);
    }

    #[test]
    fn sums_add_sources_in_order(
        case in case(), lengths in prop::collection::vec(0usize..200, 1..5), sources in 1usize..6,
    ) {
        sums(case, &lengths, sources);
    }

    #[test]
    fn casts_round_once(case in case(), count in prop_oneof![1usize..600, 1usize..20_000], accumulate: bool) {
        cast(case, count, accumulate);
    }
}
