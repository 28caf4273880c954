//! Bytes and FLOPs of the steps of a task, from the same tables that its kernels follow.

use crate::assign::Assignment;
use crate::backend::Job;
use crate::task::{Count, RowCopy, Slots, Task};

/// Copies that have a slot.
fn kept(slots: &Slots, assignment: &Assignment) -> u64 {
    let copies = assignment.ids.iter().zip(&assignment.locations);
    let found = copies.filter(|(expert, location)| {
        slots
            .map
            .find(**expert as usize, **location as usize)
            .is_some()
    });
    found.count() as u64
}

/// Elements moved, and those that came from other ranks.
fn moved(copies: &[RowCopy], width: usize, rank: usize) -> (u64, u64) {
    let elements = |copy: &RowCopy| (copy.rows * width) as u64;
    let other = copies.iter().filter(|copy| copy.rank != rank);
    (copies.iter().map(elements).sum(), other.map(elements).sum())
}

/// What `task` moves and multiplies on `rank`, whose gate decided `assignment`.
pub(super) fn count(job: &Job<'_>, rank: usize, task: &Task, assignment: &Assignment) -> Count {
    let geometry = &job.lowered.geometry;
    let size = job.program.dtype.bytes();
    let (t, d, k) = (
        geometry.tokens as u64,
        geometry.model_dim as u64,
        geometry.top_k as u64,
    );
    let flops = |flops: u64| Count {
        flops,
        ..Count::default()
    };
    let bytes = |elements: u64| Count {
        bytes: elements * size,
        ..Count::default()
    };
    let received = |elements: u64| Count {
        received: elements * size,
        ..Count::default()
    };
    let product = |m: u64, n: u64, k: u64| 2 * m * n * k;
    match task {
        Task::Gate { .. } => flops(geometry.gate_flops()),
        Task::GateGradient { .. } => flops(2 * geometry.gate_flops()),
        Task::CapacitySync => Count::default(),
        Task::Scatter { slots, .. } => {
            let filled: usize = slots.rows.iter().sum();
            bytes(filled as u64 * d + 2 * d * kept(slots, assignment))
        }
        Task::Gather { slots, .. } => bytes((t + kept(slots, assignment)) * d),
        Task::RowDots { slots, .. } => bytes(2 * d * kept(slots, assignment)),
        Task::DenseTensors { dense, .. } => {
            let full = t * dense.columns as u64;
            // By choice written, read and summed; the boolean has one byte an element.
            let boolean = Count {
                bytes: 2 * (size + 1) * full,
                ..Count::default()
            };
            let mut sum = bytes(full * (k + k + 1));
            sum += boolean;
            sum
        }
        Task::DenseScores { dense, .. } => bytes(2 * t * dense.columns as u64 * k),
        Task::Gemms(products) => {
            let all = products
                .iter()
                .map(|p| product(p.m as u64, p.n as u64, p.k as u64));
            flops(all.sum())
        }
        Task::Bias { width, runs, .. } => bytes(
            2 * runs
                .iter()
                .map(|run| (run.rows * width) as u64)
                .sum::<u64>(),
        ),
        Task::BiasGradient { width, runs, .. } => {
            bytes(runs.iter().map(|run| (run.rows * width) as u64).sum())
        }
        Task::Activation { elements, .. } => bytes(2 * *elements as u64),
        Task::ActivationGradient {
            width, activations, ..
        } => bytes(3 * moved(activations, *width, rank).0),
        Task::Copy { width, copies, .. } => bytes(2 * moved(copies, *width, rank).0),
        Task::Pull { width, copies, .. } => received(moved(copies, *width, rank).1),
        Task::PullSum { copies, .. } => {
            received(copies.iter().map(|copies| moved(copies, 1, rank).1).sum())
        }
        Task::Repeat {
            width,
            blocks,
            copies,
            ..
        }
        | Task::LocalSum {
            width,
            blocks,
            copies,
            ..
        } => {
            let rows: usize = blocks.iter().sum();
            bytes(((1 + copies) * rows * width) as u64)
        }
    }
}
