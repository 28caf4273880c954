//! One function a task, on the buffers of one rank.

use super::World;
use super::cosine;
use super::gate::{self, Backward};
use super::gemm;
use super::memory::RankMemory;
use super::rows;
use crate::ExecError;
use crate::task::{Count, Gemm, RowCopy, Run, Slots, Task};
use moeplan_sim::ir::BufferId;
use std::collections::BTreeMap;
use std::sync::RwLockReadGuard;

const BYTES: u64 = 4;

/// Bytes of memory traffic and nothing else.
fn bytes(elements: usize) -> Count {
    Count {
        bytes: elements as u64 * BYTES,
        ..Count::default()
    }
}

/// Runs `task` on `rank`.
pub(super) fn run(world: &World<'_>, rank: usize, task: &Task) -> Result<Count, ExecError> {
    let memory = &world.ranks[rank];
    let geometry = &world.job.lowered.geometry;
    let d = geometry.model_dim;
    match task {
        Task::Gate {
            tokens,
            weight,
            scores,
            cosine,
        } => {
            let shape = world.gate_shape();
            let (x, w) = (memory.read(*tokens)?, memory.read(*weight)?);
            let mut probabilities = memory.write(*scores)?;
            let mut directions = match cosine {
                Some((layout, buffer)) => Some((*layout, memory.write(*buffer)?)),
                None => None,
            };
            let cosine = directions
                .as_mut()
                .map(|(layout, directions)| (*layout, &mut directions[..]));
            let noise = world.job.inputs.noise(rank);
            gate::probabilities(shape, &x, &w, cosine, noise, &mut probabilities)?;
            let forced = world.forced(rank);
            let assignment =
                gate::route(shape, &probabilities, forced, world.job.inputs.prioritized);
            let (loss, _) = gate::balance(shape, &probabilities, &assignment.ids);
            *world.gate_mut(rank)? = (assignment, loss);
            Ok(flops(geometry.gate_flops()))
        }
        Task::GateGradient {
            choices,
            scores,
            tokens,
            weight,
            token_gradient,
            weight_gradient,
            cosine,
        } => {
            let (choices, scores) = (memory.read(*choices)?, memory.read(*scores)?);
            let (tokens, weight) = (memory.read(*tokens)?, memory.read(*weight)?);
            let mut token_gradient = memory.write(*token_gradient)?;
            let mut weight_gradient = memory.write(*weight_gradient)?;
            let constant = world
                .forced(rank)
                .is_some_and(|forced| forced.scores.is_some());
            let shape = world.gate_shape();
            let by_logits = gate::logits_gradient(
                shape,
                &world.gate(rank)?.0,
                constant,
                world.job.inputs.balance_weight,
                &choices,
                &scores,
            );
            let backward = Backward {
                tokens: &tokens,
                weight: &weight,
                token_gradient: &mut token_gradient,
                weight_gradient: &mut weight_gradient,
            };
            match cosine {
                None => gate::gradient(shape, &by_logits, backward)?,
                Some((layout, [directions, scratch])) => {
                    let directions = memory.read(*directions)?;
                    let mut scratch = memory.write(*scratch)?;
                    cosine::gradient(*layout, &by_logits, &directions, &mut scratch, backward)?;
                }
            }
            Ok(flops(2 * geometry.gate_flops()))
        }
        Task::CapacitySync => {
            let mut largest = 0;
            for rank in 0..world.ranks.len() {
                largest = world
                    .gate(rank)?
                    .0
                    .counts
                    .iter()
                    .copied()
                    .fold(largest, u32::max);
            }
            let limit = geometry.limit as u64;
            // Agreed on or bounded: never more slots than the largest count needs.
            if limit != u64::MAX && limit > u64::from(largest).max(1) {
                return Err(ExecError::Disagrees(format!(
                    "the ranks agreed on {largest} slots an expert, the program has {limit}"
                )));
            }
            Ok(Count::default())
        }
        Task::Scatter {
            source,
            slots,
            weighted,
        } => {
            let source = memory.read(*source)?;
            let writing = slots.chunks.iter().map(|&chunk| memory.write(chunk));
            let mut chunks = writing.collect::<Result<Vec<_>, _>>()?;
            let mut parts: Vec<&mut [f32]> = chunks
                .iter_mut()
                .zip(&slots.rows)
                .map(|(chunk, rows)| &mut chunk[..rows * d])
                .collect();
            let (assignment, _) = &*world.gate(rank)?;
            Ok(bytes(rows::scatter(
                &source, &mut parts, slots, assignment, geometry, *weighted,
            )))
        }
        Task::Gather {
            slots,
            target,
            weighted,
        } => {
            let chunks = read_chunks(memory, slots)?;
            let mut target = memory.write(*target)?;
            let (assignment, _) = &*world.gate(rank)?;
            Ok(bytes(rows::gather(
                &chunks,
                &mut target,
                slots,
                assignment,
                geometry,
                *weighted,
            )))
        }
        Task::RowDots {
            gradient,
            slots,
            target,
        } => {
            let gradient = memory.read(*gradient)?;
            let chunks = read_chunks(memory, slots)?;
            let mut target = memory.write(*target)?;
            let (assignment, _) = &*world.gate(rank)?;
            Ok(bytes(rows::dots(
                &gradient,
                &chunks,
                &mut target,
                slots,
                assignment,
                geometry,
            )))
        }
        Task::DenseTensors {
            dense,
            by_choice,
            combine,
            boolean,
            mask,
        } => {
            let mut by_choice = memory.write(*by_choice)?;
            let mut combine = memory.write(*combine)?;
            let mut boolean = memory.write(*boolean)?;
            let mut mask = memory.write(*mask)?;
            let (assignment, _) = &*world.gate(rank)?;
            let tensors = [
                &mut by_choice[..],
                &mut combine[..],
                &mut boolean[..],
                &mut mask[..],
            ];
            Ok(Count {
                bytes: rows::dense_tensors(dense, tensors, assignment, geometry),
                ..Count::default()
            })
        }
        Task::DenseScores {
            dense,
            gradients,
            target,
        } => {
            let mut gradients = memory.write(*gradients)?;
            let mut target = memory.write(*target)?;
            let (assignment, _) = &*world.gate(rank)?;
            Ok(bytes(rows::dense_scores(
                dense,
                &mut gradients,
                &mut target,
                assignment,
                geometry,
            )))
        }
        Task::Gemms(products) => gemms(world, rank, products),
        Task::Bias {
            target,
            width,
            weights,
            biases,
            columns,
            runs,
        } => {
            let weights = memory.read(*weights)?;
            let mut target = memory.write(*target)?;
            // A slice has a part of the output biases: the others are added as zeros.
            let mut whole = vec![0.0; *width];
            let mut touched = 0;
            for run in runs {
                let bias = biases[run.expert];
                whole[columns.0..columns.0 + columns.1]
                    .copy_from_slice(&weights[bias..bias + columns.1]);
                let part = &mut target[run.at * width..(run.at + run.rows) * width];
                for row in part.chunks_exact_mut(*width) {
                    row.iter_mut()
                        .zip(&whole)
                        .for_each(|(value, bias)| *value += bias);
                }
                touched += 2 * part.len();
            }
            Ok(bytes(touched))
        }
        Task::BiasGradient {
            source,
            width,
            gradients,
            biases,
            columns,
            runs,
            accumulate,
        } => {
            let source = memory.read(*source)?;
            let mut gradients = memory.write(*gradients)?;
            if !accumulate {
                biases
                    .iter()
                    .for_each(|&at| gradients[at..at + columns.1].fill(0.0));
            }
            let mut touched = 0;
            for Run { expert, at, rows } in runs {
                let mut sums = vec![0.0; *width];
                let part = &source[at * width..(at + rows) * width];
                for row in part.chunks_exact(*width) {
                    sums.iter_mut()
                        .zip(row)
                        .for_each(|(sum, value)| *sum += value);
                }
                touched += part.len();
                let out = &mut gradients[biases[*expert]..biases[*expert] + columns.1];
                let sums = &sums[columns.0..columns.0 + columns.1];
                out.iter_mut()
                    .zip(sums)
                    .for_each(|(value, sum)| *value += sum);
            }
            Ok(bytes(touched))
        }
        Task::Activation { target, elements } => {
            let mut target = memory.write(*target)?;
            target[..*elements]
                .iter_mut()
                .for_each(|value| *value = value.max(0.0));
            Ok(bytes(2 * elements))
        }
        Task::ActivationGradient {
            target,
            width,
            activations,
        } => {
            let mut target = memory.write(*target)?;
            let mut touched = 0;
            for copy in activations {
                let saved = memory.read(copy.buffer)?;
                let saved = &saved[copy.from * width..(copy.from + copy.rows) * width];
                let part = &mut target[copy.to * width..(copy.to + copy.rows) * width];
                for (gradient, activation) in part.iter_mut().zip(saved) {
                    *gradient = if *activation > 0.0 { *gradient } else { 0.0 };
                }
                touched += 3 * part.len();
            }
            Ok(bytes(touched))
        }
        Task::Copy {
            target,
            width,
            copies,
        } => {
            let moved = copy_rows(world, rank, *target, *width, copies, false)?;
            Ok(bytes(2 * moved.0))
        }
        Task::Pull {
            target,
            width,
            copies,
        } => {
            let moved = copy_rows(world, rank, *target, *width, copies, false)?;
            Ok(Count {
                received: moved.1 as u64 * BYTES,
                ..Count::default()
            })
        }
        Task::PullSum { target, copies } => {
            let mut received = 0;
            for (index, copies) in copies.iter().enumerate() {
                received += copy_rows(world, rank, *target, 1, copies, index > 0)?.1;
            }
            Ok(Count {
                received: received as u64 * BYTES,
                ..Count::default()
            })
        }
        Task::Repeat {
            target,
            width,
            blocks,
            copies,
        } => {
            let mut target = memory.write(*target)?;
            Ok(bytes(rows::repeat(&mut target, *width, blocks, *copies)))
        }
        Task::LocalSum {
            target,
            width,
            blocks,
            copies,
        } => {
            let mut target = memory.write(*target)?;
            Ok(bytes(rows::local_sum(&mut target, *width, blocks, *copies)))
        }
    }
}

fn read_chunks<'a>(
    memory: &'a RankMemory,
    slots: &Slots,
) -> Result<Vec<RwLockReadGuard<'a, Vec<f32>>>, ExecError> {
    let reading = slots.chunks.iter().map(|&chunk| memory.read(chunk));
    reading.collect()
}

fn flops(flops: u64) -> Count {
    Count {
        flops,
        ..Count::default()
    }
}

fn gemms(world: &World<'_>, rank: usize, products: &[Gemm]) -> Result<Count, ExecError> {
    let memory = &world.ranks[rank];
    let Some(first) = products.first() else {
        return Ok(Count::default());
    };
    let mut factors = BTreeMap::new();
    for product in products.iter().filter(|product| product.k > 0) {
        for buffer in [product.a.buffer, product.b.buffer] {
            if let std::collections::btree_map::Entry::Vacant(entry) = factors.entry(buffer) {
                entry.insert(memory.read(buffer)?);
            }
        }
    }
    let mut result = memory.write(first.c.buffer)?;
    let mut count = Count::default();
    let none: &[f32] = &[];
    let values = |buffer: BufferId| {
        factors
            .get(&buffer)
            .map_or(none, |values| values.as_slice())
    };
    for product in products {
        let (a, b) = (values(product.a.buffer), values(product.b.buffer));
        gemm::run(product, a, b, &mut result)?;
        count += flops(2 * (product.m * product.n * product.k) as u64);
    }
    Ok(count)
}

/// Copies (or adds) rows from buffers of any rank; returns elements moved, and those of other ranks.
fn copy_rows(
    world: &World<'_>,
    rank: usize,
    target: BufferId,
    width: usize,
    copies: &[RowCopy],
    add: bool,
) -> Result<(usize, usize), ExecError> {
    let mut target = world.ranks[rank].write(target)?;
    let (mut moved, mut received) = (0, 0);
    for copy in copies {
        let source = world.ranks[copy.rank].read(copy.buffer)?;
        let from = &source[copy.from * width..(copy.from + copy.rows) * width];
        let to = &mut target[copy.to * width..(copy.to + copy.rows) * width];
        if add {
            to.iter_mut()
                .zip(from)
                .for_each(|(sum, value)| *sum += value);
        } else {
            to.copy_from_slice(from);
        }
        moved += from.len();
        if copy.rank != rank {
            received += from.len();
        }
    }
    Ok((moved, received))
}
