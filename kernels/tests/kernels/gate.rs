//! Softmax, top-k and their backward.

use crate::device::{Case, Device, assert_close, case, cases, input, output};
use moeplan_kernels::{GateChosen, GateGradient, GateSoftmax, GateTopK, Real};
use proptest::prelude::*;
use rand::Rng;

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = logits
        .iter()
        .map(|&l| f64::from(l - largest).exp())
        .collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|v| v / sum).collect()
}

/// Experts by falling score, ties to the lower expert.
fn best(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(k);
    order
}

fn gate(
    case: Case,
    tokens: usize,
    experts: usize,
    top_k: usize,
    normalize: bool,
    ties: bool,
    balanced: bool,
) {
    let mut device = Device::new(case);
    let logits: Vec<f32> = (0..tokens * experts)
        .map(|_| match ties {
            true => device.rng.random_range(0..3) as f32,
            false => device.rng.random_range(-8.0..8.0),
        })
        .collect();
    let (t, e, k) = (tokens as i64, experts as i32, top_k as i32);
    let scores_at = device.f32s(&logits);
    device.launch(&GateSoftmax {
        logits: input(scores_at),
        scores: output(scores_at),
        num_tokens: t,
        num_experts: e,
    });
    let scores = device.read_f32s(scores_at);
    let want: Vec<f64> = logits.chunks(experts).flat_map(softmax).collect();
    assert_close(Real::F32, &scores, &want, &[0.1], "scores");

    let (experts_at, chosen_at) = (
        device.allocate(tokens * top_k * 4),
        device.allocate(tokens * top_k * 4),
    );
    device.launch(&GateTopK {
        scores: input(scores_at),
        experts: output(experts_at),
        num_tokens: t,
        num_experts: e,
        top_k: k,
    });
    device.launch(&GateChosen {
        scores: input(scores_at),
        experts: input(experts_at),
        chosen: output(chosen_at),
        num_tokens: t,
        num_experts: e,
        top_k: k,
        normalize,
    });
    let (chosen_experts, chosen) = (device.read_i32s(experts_at), device.read_f32s(chosen_at));
    for token in 0..tokens {
        let row = &scores[token * experts..][..experts];
        let want = best(row, top_k);
        let got: Vec<usize> = chosen_experts[token * top_k..][..top_k]
            .iter()
            .map(|&e| e as usize)
            .collect();
        assert_eq!(got, want, "token {token}");
        let sum: f32 = if normalize {
            want.iter().map(|&e| row[e]).sum()
        } else {
            1.0
        };
        for (i, &e) in want.iter().enumerate() {
            assert!((chosen[token * top_k + i] - row[e] / sum).abs() <= 1e-6);
        }
    }

    let gradient: Vec<f32> = (0..tokens * top_k)
        .map(|_| device.rng.random_range(-1.0..1.0))
        .collect();
    let balance: Vec<f32> = (0..experts)
        .map(|_| device.rng.random_range(-1.0..1.0))
        .collect();
    let (gradient_at, balance_at) = (device.f32s(&gradient), device.f32s(&balance));
    let logits_gradient = device.allocate(tokens * experts * 4);
    device.launch(&GateGradient {
        scores: input(scores_at),
        experts: input(experts_at),
        chosen_gradient: input(gradient_at),
        balance: balanced.then(|| input(balance_at)),
        logits_gradient: output(logits_gradient),
        num_tokens: t,
        num_experts: e,
        top_k: k,
        normalize,
    });
    let got = device.read_f32s(logits_gradient);
    let h = 1e-5;
    for token in 0..tokens.min(4) {
        let logits: Vec<f64> = logits[token * experts..][..experts]
            .iter()
            .map(|&l| f64::from(l))
            .collect();
        let chosen: Vec<usize> = chosen_experts[token * top_k..][..top_k]
            .iter()
            .map(|&e| e as usize)
            .collect();
        // The function whose gradient it is: chosen scores times their gradients, plus the balance term.
        let value = |logits: &[f64]| -> f64 {
            let largest = logits.iter().copied().fold(f64::MIN, f64::max);
            let e: Vec<f64> = logits.iter().map(|l| (l - largest).exp()).collect();
            let sum: f64 = e.iter().sum();
            let s: Vec<f64> = e.iter().map(|v| v / sum).collect();
            let all: f64 = if normalize {
                chosen.iter().map(|&e| s[e]).sum()
            } else {
                1.0
            };
            let of_choice =
                |(i, &e): (usize, &usize)| s[e] / all * f64::from(gradient[token * top_k + i]);
            let of_balance: f64 = s.iter().zip(&balance).map(|(s, &b)| s * f64::from(b)).sum();
            chosen.iter().enumerate().map(of_choice).sum::<f64>()
                + if balanced { of_balance } else { 0.0 }
        };
        for e in 0..experts {
            let (mut up, mut down) = (logits.clone(), logits.clone());
            up[e] += h;
            down[e] -= h;
            let want = (value(&up) - value(&down)) / (2.0 * h);
            let error = (f64::from(got[token * experts + e]) - want).abs();
            assert!(
                error < 1e-5,
                "token {token} expert {e}: {} against {want}",
                got[token * experts + e]
            );
        }
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn gate_chooses_and_differentiates(
        case in case(),
        tokens in 1usize..20,
        experts in prop_oneof![1usize..40, Just(64), Just(100)],
        top_k in 1usize..6,
        normalize: bool,
        ties: bool,
        balanced: bool,
    ) {
        gate(case, tokens, experts, top_k.min(experts), normalize, ties, balanced);
    }
}

#[test]
fn even_nan_scores_give_distinct_experts() {
    let mut device = Device::new(Case {
        real: Real::F32,
        order: 0,
        seed: 0,
    });
    let scores = device.f32s(&[0.1, f32::NAN, 0.3, f32::NAN]);
    let experts = device.allocate(16);
    device.launch(&GateTopK {
        scores: input(scores),
        experts: output(experts),
        num_tokens: 1,
        num_experts: 4,
        top_k: 4,
    });
    assert_eq!(device.read_i32s(experts), [1, 3, 2, 0]);
}
