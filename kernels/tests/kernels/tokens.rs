//! Encode, decode, score gradient, dense tensors.

use crate::device::{Case, Device, assert_close, case, cases, input, output, round, routing};
use moeplan_kernels::{
    Decode, DenseBoolean, DenseChoices, DenseMask, DenseScores, Encode, ScoreGradient,
};
use proptest::prelude::*;

/// Tokens, choices, channels: tails of every vector width, and wide enough for several rounds of a warp.
fn shapes() -> impl Strategy<Value = (usize, usize, usize)> {
    let channels = prop_oneof![1usize..40, Just(64), Just(128), 250usize..300, Just(512)];
    (1usize..40, 1usize..5, channels)
}

fn encode(case: Case, (tokens, top_k, d): (usize, usize, usize), scored: bool) {
    let mut device = Device::new(case);
    let r = routing(&mut device, tokens, top_k);
    let x = device.random(tokens * d);
    let (x_at, places) = (device.reals(&x), device.i64s(&r.places(d)));
    let scores = device.f32s(&r.scores);
    let bytes = device.real_bytes(r.slots * d);
    let slots = device.zeroed(bytes);
    device.launch(&Encode {
        tokens: input(x_at),
        places: input(places),
        scores: scored.then(|| input(scores)),
        slots: output(slots),
        num_tokens: tokens as i64,
        top_k: top_k as i32,
        model_dim: d as i64,
    });
    let mut want = vec![0.0f32; r.slots * d];
    for (copy, &row) in r.rows.iter().enumerate().filter(|(_, row)| **row >= 0) {
        let score = if scored { r.scores[copy] } else { 1.0 };
        for i in 0..d {
            want[row as usize * d + i] = round(case.real, score * x[copy / top_k * d + i]);
        }
    }
    let got = device.read_reals(slots);
    assert!(
        got.iter()
            .zip(&want)
            .all(|(a, b)| a.to_bits() == b.to_bits()),
        "one rounding, so bit for bit"
    );
}

fn decode(case: Case, (tokens, top_k, d): (usize, usize, usize), scored: bool, accumulate: bool) {
    let mut device = Device::new(case);
    let r = routing(&mut device, tokens, top_k);
    let (z, before) = (device.random(r.slots * d), device.random(tokens * d));
    let (z_at, places, scores) = (
        device.reals(&z),
        device.i64s(&r.places(d)),
        device.f32s(&r.scores),
    );
    let bytes = device.real_bytes(tokens * d);
    let y = if accumulate {
        device.reals(&before)
    } else {
        device.allocate(bytes)
    };
    device.launch(&Decode {
        slots: input(z_at),
        places: input(places),
        scores: scored.then(|| input(scores)),
        tokens: output(y),
        num_tokens: tokens as i64,
        top_k: top_k as i32,
        model_dim: d as i64,
        accumulate,
    });
    let mut want = vec![0.0f64; tokens * d];
    for token in 0..tokens {
        for i in 0..d {
            let start = if accumulate {
                f64::from(before[token * d + i])
            } else {
                0.0
            };
            want[token * d + i] = start
                + (0..top_k)
                    .filter(|choice| r.rows[token * top_k + choice] >= 0)
                    .map(|choice| {
                        let copy = token * top_k + choice;
                        let score = if scored {
                            f64::from(r.scores[copy])
                        } else {
                            1.0
                        };
                        score * f64::from(z[r.rows[copy] as usize * d + i])
                    })
                    .sum::<f64>();
        }
    }
    let got = device.read_reals(y);
    assert_close(case.real, &got, &want, &[top_k as f64], "decode");
}

fn score_gradient(case: Case, (tokens, top_k, d): (usize, usize, usize)) {
    let mut device = Device::new(case);
    let r = routing(&mut device, tokens, top_k);
    let (dy, z) = (device.random(tokens * d), device.random(r.slots * d));
    let (dy_at, z_at, places) = (
        device.reals(&dy),
        device.reals(&z),
        device.i64s(&r.places(d)),
    );
    let gradient = device.allocate(tokens * top_k * 4);
    device.launch(&ScoreGradient {
        output_gradient: input(dy_at),
        slots: input(z_at),
        places: input(places),
        gradient: output(gradient),
        num_tokens: tokens as i64,
        top_k: top_k as i32,
        model_dim: d as i64,
    });
    let want: Vec<f64> = (0..tokens * top_k)
        .map(|copy| match r.rows[copy] {
            -1 => 0.0,
            row => (0..d)
                .map(|i| f64::from(dy[copy / top_k * d + i]) * f64::from(z[row as usize * d + i]))
                .sum(),
        })
        .collect();
    let got = device.read_f32s(gradient);
    assert_close(
        moeplan_kernels::Real::F32,
        &got,
        &want,
        &[d as f64 / 10.0],
        "score gradient",
    );
}

fn dense(case: Case, tokens: usize, top_k: usize) {
    let mut device = Device::new(case);
    let r = routing(&mut device, tokens, top_k);
    let (columns_of, scores) = (device.i64s(&r.places(1)), device.f32s(&r.scores));
    let (count, real) = (tokens * r.slots, case.real.bytes() as usize);
    let by_choice = device.allocate(count * top_k * real);
    let (t, k, columns) = (tokens as i64, top_k as i32, r.slots as i64);
    device.launch(&DenseChoices {
        columns_of: input(columns_of),
        scores: input(scores),
        weights: output(by_choice),
        num_tokens: t,
        top_k: k,
        columns,
    });
    let mut want = vec![0.0f32; top_k * count];
    for (copy, &row) in r.rows.iter().enumerate().filter(|(_, row)| **row >= 0) {
        let (token, choice) = (copy / top_k, copy % top_k);
        want[choice * count + token * r.slots + row as usize] = round(case.real, r.scores[copy]);
    }
    assert_eq!(device.read_reals(by_choice), want);
    // Picking from those tensors gives the scores back.
    let gradient = device.allocate(tokens * top_k * 4);
    device.launch(&DenseScores {
        weights_gradient: input(by_choice),
        columns_of: input(columns_of),
        gradient: output(gradient),
        num_tokens: t,
        top_k: k,
        columns,
    });
    let picked = r.rows.iter().zip(&r.scores);
    let picked: Vec<f32> = picked
        .map(|(&row, &score)| {
            if row < 0 {
                0.0
            } else {
                round(case.real, score)
            }
        })
        .collect();
    assert_eq!(device.read_f32s(gradient), picked);

    let (boolean, mask) = (device.allocate(count), device.allocate(count * real));
    device.launch(&DenseBoolean {
        weights: input(by_choice),
        boolean: output(boolean),
        count: count as i64,
    });
    device.launch(&DenseMask {
        boolean: input(boolean),
        mask: output(mask),
        count: count as i64,
    });
    let want: Vec<f32> = want[..count]
        .iter()
        .map(|&w| f32::from(u8::from(w != 0.0)))
        .collect();
    assert_eq!(device.read_reals(mask), want);
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn encode_scatters_rows(case in case(), shape in shapes(), scored: bool) {
        encode(case, shape, scored);
    }

    #[test]
    fn decode_sums_weighted_rows(case in case(), shape in shapes(), scored: bool, accumulate: bool) {
        decode(case, shape, scored, accumulate);
    }

    #[test]
    fn score_gradient_is_a_dot_product(case in case(), shape in shapes()) {
        score_gradient(case, shape);
    }

    #[test]
    fn dense_tensors_hold_each_score_at_its_column(case in case(), tokens in 1usize..40, top_k in 1usize..5) {
        dense(case, tokens, top_k);
    }
}
