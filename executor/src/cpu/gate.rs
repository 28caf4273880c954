//! The gate of one rank: logits, softmax, top-k, slots; and its gradient.

use super::gemm;
use crate::ExecError;
use crate::assign::Assignment;
use crate::backend::assign;
use crate::task::{Gemm, Matrix};
use moeplan_sim::ir::BufferId;

/// What a gate computes with besides its tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct GateShape {
    pub(super) tokens: usize,
    pub(super) model_dim: usize,
    pub(super) experts: usize,
    pub(super) top_k: usize,
}

/// Experts (and their factors, if recorded) that tokens are sent to whatever the gate says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forced<'a> {
    pub(super) ids: &'a [u32],
    pub(super) scores: Option<&'a [f32]>,
}

/// Matrices of a gate lie in slices of their own: the buffer is not looked at.
const OWN: BufferId = BufferId(0);

/// Probabilities (T, E) of `tokens` (T, D) under `weight` (D, E), with noise (T, E), if any, added to the logits.
pub(super) fn probabilities(
    shape: GateShape,
    tokens: &[f32],
    weight: &[f32],
    noise: Option<&[f32]>,
    scores: &mut [f32],
) -> Result<(), ExecError> {
    let GateShape {
        tokens: t,
        model_dim: d,
        experts: e,
        ..
    } = shape;
    let logits = Gemm {
        m: t,
        n: e,
        k: d,
        a: Matrix::rows(OWN, 0, d),
        b: Matrix::rows(OWN, 0, e),
        c: Matrix::rows(OWN, 0, e),
        accumulate: false,
    };
    gemm::run(&logits, tokens, weight, scores)?;
    for (logit, noise) in scores.iter_mut().zip(noise.unwrap_or_default()) {
        *logit += noise;
    }
    for row in scores.chunks_exact_mut(e) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in row.iter_mut() {
            *value = (*value - largest).exp();
            sum += *value;
        }
        row.iter_mut().for_each(|value| *value /= sum);
    }
    Ok(())
}

/// The `top_k` experts of every token, best first, ties by id.
pub(super) fn choose(shape: GateShape, scores: &[f32]) -> Vec<u32> {
    let mut ids = Vec::with_capacity(shape.tokens * shape.top_k);
    for row in scores.chunks_exact(shape.experts) {
        let first = ids.len();
        for _ in 0..shape.top_k {
            let taken = &ids[first..];
            let mut best: Option<u32> = None;
            for (expert, &score) in row.iter().enumerate() {
                let better = best.is_none_or(|best| score > row[best as usize]);
                if better && !taken.contains(&(expert as u32)) {
                    best = Some(expert as u32);
                }
            }
            // top_k <= E: one is always left.
            ids.push(best.unwrap_or(0));
        }
    }
    ids
}

/// Experts, factors and slots of every token: the probabilities of the choices, divided by their
/// sum where there are several.
pub(super) fn route(
    shape: GateShape,
    scores: &[f32],
    forced: Option<Forced<'_>>,
    prioritized: bool,
) -> Assignment {
    let ids = match forced {
        Some(forced) => forced.ids.to_vec(),
        None => choose(shape, scores),
    };
    let GateShape {
        experts: e,
        top_k: k,
        ..
    } = shape;
    let mut factors = Vec::with_capacity(ids.len());
    for (row, choices) in scores.chunks_exact(e).zip(ids.chunks_exact(k)) {
        let sum: f32 = choices.iter().map(|&id| row[id as usize]).sum();
        let divisor = if k > 1 { sum } else { 1.0 };
        factors.extend(choices.iter().map(|&id| row[id as usize] / divisor));
    }
    if let Some(recorded) = forced.and_then(|forced| forced.scores) {
        factors.copy_from_slice(recorded);
    }
    let best: Vec<f32> = scores
        .chunks_exact(e)
        .map(|row| row.iter().copied().fold(0.0, f32::max))
        .collect();
    assign(ids, factors, &best, k, e, prioritized)
}

/// `E · sum_e mean_t(p_te) · fraction_e`, the fraction of first choices, and its gradient by
/// probability, which is the same for every token.
pub(super) fn balance(shape: GateShape, scores: &[f32], ids: &[u32]) -> (f32, Vec<f32>) {
    let GateShape {
        tokens: t,
        experts: e,
        top_k: k,
        ..
    } = shape;
    let mut mean = vec![0.0; e];
    for row in scores.chunks_exact(e) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += value);
    }
    let mut gradient = vec![0.0; e];
    for choices in ids.chunks_exact(k) {
        gradient[choices[0] as usize] += e as f32 / (t * t) as f32;
    }
    let loss = mean
        .iter()
        .zip(&gradient)
        .map(|(sum, factor)| sum * factor)
        .sum();
    (loss, gradient)
}

/// Buffers of the gate's gradient.
#[derive(Debug)]
pub(super) struct GateGradient<'a> {
    /// (T, k): of the factors.
    pub(super) choices: &'a [f32],
    /// (T, E).
    pub(super) scores: &'a [f32],
    /// (T, D).
    pub(super) tokens: &'a [f32],
    /// (D, E).
    pub(super) weight: &'a [f32],
    /// (T, D), added to.
    pub(super) token_gradient: &'a mut [f32],
    /// (D, E).
    pub(super) weight_gradient: &'a mut [f32],
}

/// Gradients of gate weight and tokens. `constant` factors were recorded and get none.
pub(super) fn gradient(
    shape: GateShape,
    assignment: &Assignment,
    constant: bool,
    balance_weight: f32,
    buffers: GateGradient<'_>,
) -> Result<(), ExecError> {
    let GateShape {
        tokens: t,
        model_dim: d,
        experts: e,
        top_k: k,
    } = shape;
    let (_, balance) = balance(shape, buffers.scores, &assignment.ids);
    let mut logits = vec![0.0; t * e];
    let rows = logits
        .chunks_exact_mut(e)
        .zip(buffers.scores.chunks_exact(e));
    for (token, (row, scores)) in rows.enumerate() {
        for (value, factor) in row.iter_mut().zip(&balance) {
            *value = balance_weight * factor;
        }
        if !constant {
            let copies = token * k..(token + 1) * k;
            let (ids, by_factor) = (
                &assignment.ids[copies.clone()],
                &buffers.choices[copies.clone()],
            );
            let factors = &assignment.scores[copies];
            if k > 1 {
                // factor_j = p_j / sum p: d p_j = (d factor_j - sum_i factor_i d factor_i) / sum p.
                let sum: f32 = ids.iter().map(|&id| scores[id as usize]).sum();
                let mean: f32 = factors.iter().zip(by_factor).map(|(f, g)| f * g).sum();
                for (&id, gradient) in ids.iter().zip(by_factor) {
                    row[id as usize] += (gradient - mean) / sum;
                }
            } else {
                row[ids[0] as usize] += by_factor[0];
            }
        }
        // Softmax.
        let mean: f32 = row.iter().zip(scores).map(|(g, p)| g * p).sum();
        for (value, p) in row.iter_mut().zip(scores) {
            *value = p * (*value - mean);
        }
    }
    let logit_rows = Matrix::rows(OWN, 0, e);
    let tokens = Gemm {
        m: t,
        n: d,
        k: e,
        a: logit_rows,
        b: Matrix::rows(OWN, 0, e).transposed(),
        c: Matrix::rows(OWN, 0, d),
        accumulate: true,
    };
    gemm::run(&tokens, &logits, buffers.weight, buffers.token_gradient)?;
    let weight = Gemm {
        m: d,
        n: e,
        k: t,
        a: Matrix::rows(OWN, 0, d).transposed(),
        b: logit_rows,
        c: Matrix::rows(OWN, 0, e),
        accumulate: false,
    };
    gemm::run(&weight, buffers.tokens, &logits, buffers.weight_gradient)
}
