//! Encode and decode: rows between tokens and slots. Each returns the elements it read and wrote.

use crate::assign::Assignment;
use crate::lower::Geometry;
use crate::task::{Dense, Slots};
use std::ops::Deref;

/// Token, copy, chunk and row of every kept copy, in token order.
fn kept<'a>(
    slots: &'a Slots,
    assignment: &'a Assignment,
    geometry: &'a Geometry,
) -> impl Iterator<Item = (usize, usize, usize, usize)> + 'a {
    let placed = assignment.ids.iter().zip(&assignment.locations).enumerate();
    placed.filter_map(move |(copy, (&expert, &location))| {
        let (chunk, row) = slots.map.find(expert as usize, location as usize)?;
        Some((copy / geometry.top_k, copy, chunk, row))
    })
}

/// K0: zero fill, then one row a kept copy.
pub(super) fn scatter(
    source: &[f32],
    chunks: &mut [&mut [f32]],
    slots: &Slots,
    assignment: &Assignment,
    geometry: &Geometry,
    weighted: bool,
) -> usize {
    let d = geometry.model_dim;
    let mut touched = 0;
    for chunk in chunks.iter_mut() {
        chunk.fill(0.0);
        touched += chunk.len();
    }
    for (token, copy, chunk, row) in kept(slots, assignment, geometry) {
        let from = &source[token * d..(token + 1) * d];
        let to = &mut chunks[chunk][row * d..(row + 1) * d];
        if weighted {
            let score = assignment.scores[copy];
            to.iter_mut()
                .zip(from)
                .for_each(|(to, from)| *to = score * from);
        } else {
            to.copy_from_slice(from);
        }
        touched += 2 * d;
    }
    touched
}

/// K1: every token the sum of its kept copies, in the order of its choices.
pub(super) fn gather(
    chunks: &[impl Deref<Target = Vec<f32>>],
    target: &mut [f32],
    slots: &Slots,
    assignment: &Assignment,
    geometry: &Geometry,
    weighted: bool,
) -> usize {
    let (d, k) = (geometry.model_dim, geometry.top_k);
    let mut touched = target.len();
    for (token, to) in target.chunks_exact_mut(d).enumerate() {
        let mut empty = true;
        for copy in token * k..(token + 1) * k {
            let (expert, location) = (assignment.ids[copy], assignment.locations[copy]);
            let Some((chunk, row)) = slots.map.find(expert as usize, location as usize) else {
                continue;
            };
            let from = &chunks[chunk][row * d..(row + 1) * d];
            let score = if weighted {
                assignment.scores[copy]
            } else {
                1.0
            };
            if empty {
                to.iter_mut()
                    .zip(from)
                    .for_each(|(to, from)| *to = score * from);
            } else {
                to.iter_mut()
                    .zip(from)
                    .for_each(|(to, from)| *to += score * from);
            }
            empty = false;
            touched += d;
        }
        if empty {
            to.fill(0.0);
        }
    }
    touched
}

/// Sums run in lanes, so that they vectorise; the order is fixed.
const LANES: usize = 16;

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// K2: dot products of a token's gradient with the rows of its kept copies; zero for dropped ones.
pub(super) fn dots(
    gradient: &[f32],
    chunks: &[impl Deref<Target = Vec<f32>>],
    target: &mut [f32],
    slots: &Slots,
    assignment: &Assignment,
    geometry: &Geometry,
) -> usize {
    let d = geometry.model_dim;
    target[..assignment.ids.len()].fill(0.0);
    let mut touched = 0;
    for (token, copy, chunk, row) in kept(slots, assignment, geometry) {
        target[copy] = dot(
            &gradient[token * d..(token + 1) * d],
            &chunks[chunk][row * d..(row + 1) * d],
        );
        touched += 2 * d;
    }
    touched
}

/// Token, choice and column of every kept copy.
fn columns<'a>(
    dense: &'a Dense,
    assignment: &'a Assignment,
    geometry: &'a Geometry,
) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    let placed = assignment.ids.iter().zip(&assignment.locations).enumerate();
    placed.filter_map(move |(copy, (&expert, &location))| {
        let kept = (location as usize) < geometry.limit;
        kept.then(|| {
            (
                copy,
                copy / geometry.top_k,
                dense.first[expert as usize] + location as usize,
            )
        })
    })
}

/// The (T, E, C) tensors of the dense path: combine weights by choice, their sum, its boolean and
/// the mask. Returns bytes: the boolean's elements have one.
pub(super) fn dense_tensors(
    dense: &Dense,
    tensors: [&mut [f32]; 4],
    assignment: &Assignment,
    geometry: &Geometry,
) -> u64 {
    let [by_choice, combine, boolean, mask] = tensors;
    let full = geometry.tokens * dense.columns;
    by_choice.fill(0.0);
    for (copy, token, column) in columns(dense, assignment, geometry) {
        let choice = copy % geometry.top_k;
        by_choice[choice * full + token * dense.columns + column] = assignment.scores[copy];
    }
    let (first, others) = by_choice.split_at(full);
    combine.copy_from_slice(first);
    for choice in others.chunks_exact(full) {
        combine
            .iter_mut()
            .zip(choice)
            .for_each(|(sum, value)| *sum += value);
    }
    let boolean: &mut [u8] = &mut bytemuck::cast_slice_mut(boolean)[..full];
    boolean
        .iter_mut()
        .zip(&*combine)
        .for_each(|(bit, value)| *bit = u8::from(*value != 0.0));
    mask.iter_mut()
        .zip(&*boolean)
        .for_each(|(value, bit)| *value = f32::from(*bit));
    let (full, k) = (full as u64, geometry.top_k as u64);
    4 * full * (k + k + 1) + 5 * full + 5 * full
}

/// Gradients of scores from that of the combine weights, which is copied into the order of the
/// batched product and once a choice, as the authors' einsums do.
pub(super) fn dense_scores(
    dense: &Dense,
    gradients: &mut [f32],
    target: &mut [f32],
    assignment: &Assignment,
    geometry: &Geometry,
) -> usize {
    let full = geometry.tokens * dense.columns;
    let (gradient, others) = gradients.split_at_mut(full);
    let (_, by_choice) = others.split_at_mut(full);
    let mut touched = 0;
    for choice in by_choice.chunks_exact_mut(full) {
        choice.copy_from_slice(gradient);
        touched += 2 * full;
    }
    target[..assignment.ids.len()].fill(0.0);
    for (copy, token, column) in columns(dense, assignment, geometry) {
        let choice = copy % geometry.top_k;
        target[copy] = by_choice[choice * full + token * dense.columns + column];
    }
    touched
}

/// Repeats every block `copies` times, one after the other; last blocks first, so that none is
/// overwritten before it is read. A block is read once and written `copies` times.
pub(super) fn repeat(target: &mut [f32], width: usize, blocks: &[usize], copies: usize) -> usize {
    let total: usize = blocks.iter().sum::<usize>() * width;
    let mut end = total;
    for rows in blocks.iter().rev() {
        let len = rows * width;
        let block = end - len..end;
        for copy in (0..copies).rev() {
            target.copy_within(block.clone(), block.start * copies + copy * len);
        }
        end -= len;
    }
    (1 + copies) * total
}

/// Sums the copies of every block into one, first blocks first.
pub(super) fn local_sum(
    target: &mut [f32],
    width: usize,
    blocks: &[usize],
    copies: usize,
) -> usize {
    let mut sums = vec![0.0; width];
    let mut start = 0;
    for rows in blocks {
        let len = rows * width;
        for row in 0..*rows {
            let first = start * copies + row * width;
            sums.copy_from_slice(&target[first..first + width]);
            for copy in 1..copies {
                let part = &target[first + copy * len..first + copy * len + width];
                sums.iter_mut()
                    .zip(part)
                    .for_each(|(sum, value)| *sum += value);
            }
            let to = start + row * width;
            target[to..to + width].copy_from_slice(&sums);
        }
        start += len;
    }
    (1 + copies) * start
}
