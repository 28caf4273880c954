//! The gate of one rank: logits, softmax, top-k, slots; and its gradient.

use super::{cosine, gemm};
use crate::ExecError;
use crate::assign::Assignment;
use crate::backend::assign;
use crate::cosine::CosineLayout;
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

/// A product of row-major matrices (m, k) and (k, n), stored transposed where said so.
pub(super) fn product(shape: [usize; 3], transposed: [bool; 2], accumulate: bool) -> Gemm {
    let [m, n, k] = shape;
    let matrix = |rows, columns, transposed| match transposed {
        false => Matrix::rows(OWN, 0, columns),
        true => Matrix::rows(OWN, 0, rows).transposed(),
    };
    Gemm {
        m,
        n,
        k,
        a: matrix(m, k, transposed[0]),
        b: matrix(k, n, transposed[1]),
        c: Matrix::rows(OWN, 0, n),
        accumulate,
    }
}

/// Probabilities (T, E) of `tokens` (T, D) under `weight`, (D, E) or of a cosine gate, whose directions are filled; with
/// noise (T, E), if any, added to the logits.
pub(super) fn probabilities(
    shape: GateShape,
    tokens: &[f32],
    weight: &[f32],
    cosine: Option<(CosineLayout, &mut [f32])>,
    noise: Option<&[f32]>,
    scores: &mut [f32],
) -> Result<(), ExecError> {
    match cosine {
        None => {
            let shape = [shape.tokens, shape.experts, shape.model_dim];
            gemm::run(&product(shape, [false; 2], false), tokens, weight, scores)?;
        }
        Some((layout, directions)) => cosine::logits(layout, tokens, weight, directions, scores)?,
    }
    for (logit, noise) in scores.iter_mut().zip(noise.unwrap_or_default()) {
        *logit += noise;
    }
    for row in scores.chunks_exact_mut(shape.experts) {
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

/// Gradient (T, E) of the logits, from `choices` (T, k), that of the factors. `constant` factors were recorded and get
/// none.
pub(super) fn logits_gradient(
    shape: GateShape,
    assignment: &Assignment,
    constant: bool,
    balance_weight: f32,
    choices: &[f32],
    scores: &[f32],
) -> Vec<f32> {
    let GateShape {
        tokens: t,
        experts: e,
        top_k: k,
        ..
    } = shape;
    let (_, balance) = balance(shape, scores, &assignment.ids);
    let mut logits = vec![0.0; t * e];
    let rows = logits.chunks_exact_mut(e).zip(scores.chunks_exact(e));
    for (token, (row, scores)) in rows.enumerate() {
        for (value, factor) in row.iter_mut().zip(&balance) {
            *value = balance_weight * factor;
        }
        if !constant {
            let copies = token * k..(token + 1) * k;
            let (ids, by_factor) = (&assignment.ids[copies.clone()], &choices[copies.clone()]);
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
    logits
}

/// Buffers that the gradient of the logits goes to.
#[derive(Debug)]
pub(super) struct Backward<'a> {
    /// (T, D).
    pub(super) tokens: &'a [f32],
    /// Of the gate.
    pub(super) weight: &'a [f32],
    /// (T, D), added to.
    pub(super) token_gradient: &'a mut [f32],
    /// As the weight.
    pub(super) weight_gradient: &'a mut [f32],
}

/// Gradients of weight (D, E) and tokens of a linear gate, from that of the logits (T, E).
pub(super) fn gradient(
    shape: GateShape,
    by_logits: &[f32],
    backward: Backward<'_>,
) -> Result<(), ExecError> {
    let (t, d, e) = (shape.tokens, shape.model_dim, shape.experts);
    let Backward {
        tokens,
        weight,
        token_gradient,
        weight_gradient,
    } = backward;
    let to_tokens = product([t, d, e], [false, true], true);
    gemm::run(&to_tokens, by_logits, weight, token_gradient)?;
    let to_weight = product([d, e, t], [true, false], false);
    gemm::run(&to_weight, tokens, by_logits, weight_gradient)
}
