//! Holds what a run touched against what its program states, byte by byte and FLOP by FLOP.

use crate::ExecError;
use crate::lower::Lowered;
use crate::task::Count;
use moeplan_sim::ir::{Elementwise, OpKind, Pass, Program};
use moeplan_sim::spec::Encode;

/// Sums over all operations and ranks of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    /// FLOPs of matrix products.
    pub flops: u64,
    /// Bytes of kernels that are bound by memory; those of the gate are not among them.
    pub bytes: u64,
    /// Bytes between ranks.
    pub exchanged: u64,
}

/// Checks the counts of every operation and rank.
///
/// Three things a program states as a mean or share, and are checked as sums: the kept copies of a
/// padded step are the mean over ranks; the chunks of a dropless step, and what its ranks hold in the
/// middle of a hierarchical All-to-All, are equal shares; the dense path makes its combine weights in
/// encode where the program states them in decode. Fused passes of the gate are not checked: the
/// program states those of the authors' code.
///
/// # Errors
/// The first disagreement.
pub fn check(
    program: &Program,
    lowered: &Lowered,
    counts: &[Vec<Count>],
) -> Result<Audit, ExecError> {
    let world = program.world_size;
    let chunked = lowered.geometry.forward_degree > 1 || lowered.geometry.backward_degree > 1;
    let dropless = lowered.geometry.capacity.is_none();
    let mut audit = Audit::default();
    let mut pooled = Pool::default();
    for (id, op) in program.iter() {
        for (rank, &found) in counts[id.index()].iter().enumerate() {
            let stated = stated(program, op, rank);
            audit.flops += found.flops;
            audit.exchanged += found.received;
            let gate = matches!(op.kind, OpKind::Gate { .. });
            let found = Count {
                bytes: if gate { 0 } else { found.bytes },
                ..found
            };
            audit.bytes += found.bytes;
            let pool = match &op.kind {
                OpKind::Encode {
                    encode: Encode::Dense,
                    ..
                }
                | OpKind::Decode {
                    encode: Encode::Dense,
                    ..
                }
                | OpKind::ScoreGradient {
                    encode: Encode::Dense,
                    ..
                } => Some(0),
                OpKind::Encode { copies, .. }
                | OpKind::Decode { copies, .. }
                | OpKind::ScoreGradient { copies, .. }
                    if copies.is_same() =>
                {
                    Some(1)
                }
                OpKind::Elementwise {
                    what: Elementwise::StrideCopy,
                    ..
                } if dropless => Some(2),
                _ if dropless && chunked => Some(2),
                _ => None,
            };
            match pool {
                Some(pool) => pooled.add(pool, op.pass, stated, found),
                None if stated == found => {}
                None => {
                    return Err(ExecError::Disagrees(format!(
                        "{} ({:?}, chunk {}) on rank {rank} touched {found:?}, stated {stated:?}",
                        op.kind.label(),
                        op.pass,
                        op.chunk,
                    )));
                }
            }
        }
    }
    // The mean of kept copies is rounded down: up to one row of D elements less a rank, each of
    // the at most four operations of a pass touching it at most twice.
    let slack = (8 * 4 * lowered.geometry.model_dim * world) as u64;
    pooled.check(slack, lowered.geometry.top_k)?;
    Ok(audit)
}

/// What the program states for one operation.
fn stated(program: &Program, op: &moeplan_sim::ir::Op, rank: usize) -> Count {
    let mut count = Count::default();
    let gate = matches!(op.kind, OpKind::Gate { .. });
    for work in op.kind.work(op.pass, rank, program.dtype) {
        count.flops += work.flops() as u64;
        if !gate {
            count.bytes += work.bytes();
        }
    }
    if let OpKind::Exchange { traffic, .. } = &op.kind {
        count.received = program
            .traffic(*traffic)
            .received_by(rank, program.world_size);
    }
    if let OpKind::AllGather { scope, bytes } | OpKind::ReduceScatter { scope, bytes } = &op.kind {
        let members = scope.group_size(program.world_size) as u64;
        count.received = bytes / members * (members - 1);
    }
    count
}

/// Sums of what is only stated in sum: dense path, padded copies, dropless chunks; by pass.
#[derive(Debug, Default)]
struct Pool {
    sums: [[(Count, Count); 2]; 3],
}

impl Pool {
    fn add(&mut self, pool: usize, pass: Pass, stated: Count, found: Count) {
        let pass = usize::from(pass == Pass::Backward);
        let sums = &mut self.sums[pool][pass];
        sums.0 += stated;
        sums.1 += found;
    }

    fn check(&self, slack: u64, top_k: usize) -> Result<(), ExecError> {
        for (pool, by_pass) in self.sums.iter().enumerate() {
            for (stated, found) in by_pass {
                // The passes over (T, E, C) tensors are stated for the authors' two choices.
                let bytes = match pool {
                    0 if top_k != 2 => true,
                    1 => (stated.bytes..=stated.bytes + slack).contains(&found.bytes),
                    _ => stated.bytes == found.bytes,
                };
                if !bytes || stated.flops != found.flops || stated.received != found.received {
                    let what = ["dense encode and decode", "sparse rows", "dropless chunks"][pool];
                    return Err(ExecError::Disagrees(format!(
                        "{what} touched {found:?} in all, stated {stated:?}"
                    )));
                }
            }
        }
        Ok(())
    }
}
