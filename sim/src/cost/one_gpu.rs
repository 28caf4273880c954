//! All ranks on one GPU, one after the other.

use super::cpu::demand;
use crate::ir::{Op, Program, Work};

/// The kernels of `op` on `rank` where all ranks share a GPU: what ranks send each other is a copy in its memory, read once
/// and written once.
pub fn work_on_one_gpu(program: &Program, op: &Op, rank: usize) -> Vec<Work> {
    let mut work = op.kind.work(op.pass, rank, program.dtype);
    if op.kind.scope(&program.traffic).is_some() {
        let moved = demand(program, op, rank)
            .pass
            .map_or(0.0, |(_, bytes)| bytes);
        work.push(Work::Memory {
            bytes: 2 * moved as u64,
        });
    }
    work
}
