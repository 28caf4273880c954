//! Rows on their way: exchanges, the copies of hierarchical ones, repetition, dense tensors.

use super::geometry::{Piece, Placed, total};
use super::{Chunk, Lowering};
use crate::ExecError;
use crate::task::{Dense, Gemm, Matrix, RowCopy, Task};
use moeplan_sim::ir::{BufferId, Op, OpId, OpKind, Pass, Scope, Stage};
use std::collections::BTreeMap;

/// Joins copies whose rows follow each other on both sides.
pub(super) fn merged(copies: impl IntoIterator<Item = RowCopy>) -> Vec<RowCopy> {
    let mut joined: Vec<RowCopy> = Vec::new();
    for copy in copies {
        match joined.last_mut() {
            Some(last)
                if (last.rank, last.buffer) == (copy.rank, copy.buffer)
                    && last.from + last.rows == copy.from
                    && last.to + last.rows == copy.to =>
            {
                last.rows += copy.rows;
            }
            Some(_) | None => joined.push(copy),
        }
    }
    joined
}

/// The member of `rank`'s group that stands where `target` does in its own.
fn hop(scope: Scope, rank: usize, target: usize) -> usize {
    scope.peer(rank, scope.index_in_group(target))
}

/// Places pieces one after the other.
fn packed(pieces: impl Iterator<Item = Placed>) -> Vec<Placed> {
    let mut at = 0;
    pieces
        .map(|placed| {
            let packed = Placed { at, ..placed };
            at += placed.rows;
            packed
        })
        .collect()
}

impl Lowering<'_> {
    /// Whether an exchange of this operation takes rows to experts, or back to their source.
    fn to_experts(op: &Op) -> bool {
        (op.stage == Stage::Dispatch) == (op.pass == Pass::Forward)
    }

    fn target(&self, op: &Op, piece: &Piece) -> usize {
        if Self::to_experts(op) {
            self.geometry.home(piece)
        } else {
            piece.source
        }
    }

    fn rows_in(&self, buffer: BufferId) -> Result<&[Vec<Placed>], ExecError> {
        let name = || self.buffers[buffer.0 as usize].name.clone();
        let unknown = || ExecError::Disagrees(format!("`{}` is read before it holds rows", name()));
        self.rows
            .get(&buffer)
            .map(Vec::as_slice)
            .ok_or_else(unknown)
    }

    pub(super) fn exchange(&mut self, op: &Op, scope: Scope) -> Result<Vec<Vec<Task>>, ExecError> {
        let (input, output) = (op.reads[0], op.writes[0]);
        let held = self.rows_in(input)?;
        // What every rank gets, by sender in the order of ranks, each in its sender's order.
        let mut arriving: Vec<Vec<(usize, Placed)>> = vec![Vec::new(); self.geometry.world];
        let mut arrived = true;
        for (sender, rows) in held.iter().enumerate() {
            for placed in rows {
                let target = self.target(op, &placed.piece);
                let receiver = hop(scope, sender, target);
                arrived &= receiver == target;
                arriving[receiver].push((sender, *placed));
            }
        }
        let chunk = self.chunk(op);
        let rows: Vec<Vec<Placed>> = match (arrived, Self::to_experts(op)) {
            (true, true) => self.received(chunk),
            (true, false) => self.sent(chunk, self.geometry.slices()),
            (false, _) => arriving
                .iter()
                .map(|rows| packed(rows.iter().map(|(_, placed)| *placed)))
                .collect(),
        };
        let tasks = self
            .ranks()
            .map(|rank| {
                let places: BTreeMap<Piece, usize> = rows[rank]
                    .iter()
                    .map(|placed| (placed.piece, placed.at))
                    .collect();
                let copies = arriving[rank].iter().map(|(sender, placed)| RowCopy {
                    rank: *sender,
                    buffer: input,
                    from: placed.at,
                    to: places[&placed.piece],
                    rows: placed.rows,
                });
                vec![Task::Pull {
                    target: output,
                    width: self.geometry.model_dim,
                    copies: merged(copies),
                }]
            })
            .collect();
        self.hold(output, rows, self.geometry.model_dim)?;
        if op.pass == Pass::Forward && Self::to_experts(op) {
            self.saved.insert(output, chunk);
        }
        Ok(tasks)
    }

    /// Brings rows into the order in which the next phase sends them.
    pub(super) fn stride_copy(&mut self, id: OpId, op: &Op) -> Result<Vec<Vec<Task>>, ExecError> {
        let (input, output) = (op.reads[0], op.writes[0]);
        let next = self.program.ops[id.index() + 1..]
            .iter()
            .find_map(|next| match next.kind {
                OpKind::Exchange { traffic, .. } if next.reads[0] == output => Some(traffic),
                _ => None,
            });
        let Some(traffic) = next else {
            return Err(ExecError::Disagrees(
                "a stride copy that no exchange follows".into(),
            ));
        };
        let scope = self.program.traffic(traffic).scope();
        let mut tasks = Vec::new();
        let mut rows = Vec::new();
        for (rank, held) in self.rows_in(input)?.iter().enumerate() {
            let mut sorted = held.clone();
            sorted.sort_by_key(|placed| hop(scope, rank, self.target(op, &placed.piece)));
            let aligned = packed(sorted.iter().copied());
            let copies = sorted.iter().zip(&aligned).map(|(from, to)| RowCopy {
                rank,
                buffer: input,
                from: from.at,
                to: to.at,
                rows: from.rows,
            });
            tasks.push(vec![Task::Copy {
                target: output,
                width: self.geometry.model_dim,
                copies: merged(copies),
            }]);
            rows.push(aligned);
        }
        self.hold(output, rows, self.geometry.model_dim)?;
        Ok(tasks)
    }

    /// Repeats (or sums) the blocks of every expert in every chunk buffer.
    pub(super) fn repeat(&self, op: &Op, copies: usize, repeat: bool) -> Vec<Vec<Task>> {
        let degree = op.writes.len();
        let width = self.geometry.model_dim;
        self.each(|rank| {
            let task = |(index, &target): (usize, &BufferId)| {
                let mut blocks = vec![0; self.geometry.experts];
                for placed in self.geometry.sent(rank, Chunk { index, degree }, 1) {
                    blocks[placed.piece.expert] += placed.rows;
                }
                if repeat {
                    Task::Repeat {
                        target,
                        width,
                        blocks,
                        copies,
                    }
                } else {
                    Task::LocalSum {
                        target,
                        width,
                        blocks,
                        copies,
                    }
                }
            };
            op.writes.iter().enumerate().map(task).collect()
        })
    }

    /// Rows of chunk buffers beside columns of the dense tensors: (chunk, row, column, rows).
    fn slot_runs(&self, rank: usize, degree: usize, dense: &Dense) -> Vec<[usize; 4]> {
        let mut runs: Vec<[usize; 4]> = Vec::new();
        for index in 0..degree {
            let chunk = Chunk { index, degree };
            for placed in self.geometry.sent(rank, chunk, 1) {
                let Piece { expert, group, .. } = placed.piece;
                let cut = self.geometry.cut(rank, expert, group, chunk);
                let before = match self.geometry.capacity {
                    Some(_) => group * self.geometry.rows(rank, expert, group),
                    None => 0,
                };
                let column = dense.first[expert] + before + cut.start;
                match runs.last_mut() {
                    Some([last, row, first, rows])
                        if *last == index
                            && *row + *rows == placed.at
                            && *first + *rows == column =>
                    {
                        *rows += placed.rows;
                    }
                    Some(_) | None => runs.push([index, placed.at, column, placed.rows]),
                }
            }
        }
        runs
    }

    /// einsum("TEC,TM->ECM"): slots from tokens.
    pub(super) fn scatter_slots(
        &self,
        rank: usize,
        weights: BufferId,
        tokens: BufferId,
        chunks: &[BufferId],
    ) -> Vec<Task> {
        let dense = self.dense(rank);
        let (t, d) = (self.geometry.tokens, self.geometry.model_dim);
        let product = |[chunk, row, column, rows]: [usize; 4]| Gemm {
            m: rows,
            n: d,
            k: t,
            a: Matrix::rows(weights, column, dense.columns).transposed(),
            b: Matrix::rows(tokens, 0, d),
            c: Matrix::rows(chunks[chunk], row * d, d),
            accumulate: false,
        };
        let runs = self.slot_runs(rank, chunks.len(), &dense);
        // One task a chunk: a task writes one buffer.
        (0..chunks.len())
            .map(|chunk| {
                let of_chunk = runs.iter().filter(|run| run[0] == chunk);
                Task::Gemms(of_chunk.map(|run| product(*run)).collect())
            })
            .collect()
    }

    /// einsum("TEC,ECM->TM"): tokens from slots.
    pub(super) fn gather_slots(
        &self,
        rank: usize,
        weights: BufferId,
        chunks: &[BufferId],
        target: BufferId,
    ) -> Vec<Task> {
        let dense = self.dense(rank);
        let (t, d) = (self.geometry.tokens, self.geometry.model_dim);
        let runs = self.slot_runs(rank, chunks.len(), &dense);
        let product = |(index, [chunk, row, column, rows]): (usize, [usize; 4])| Gemm {
            m: t,
            n: d,
            k: rows,
            a: Matrix::rows(weights, column, dense.columns),
            b: Matrix::rows(chunks[chunk], row * d, d),
            c: Matrix::rows(target, 0, d),
            accumulate: index > 0,
        };
        vec![Task::Gemms(
            runs.into_iter().enumerate().map(product).collect(),
        )]
    }

    pub(super) fn dense_encode(
        &self,
        rank: usize,
        op: &Op,
        chunks: &[BufferId],
        dense: &[BufferId],
    ) -> Vec<Task> {
        let mut tasks = vec![Task::DenseTensors {
            dense: self.dense(rank),
            combine: dense[0],
            mask: dense[1],
            boolean: dense[2],
            by_choice: dense[3],
        }];
        tasks.extend(self.scatter_slots(rank, dense[1], op.reads[0], chunks));
        tasks
    }

    /// einsum("TM,ECM->TEC"), then the gradient of every choice.
    pub(super) fn dense_scores(&self, rank: usize, op: &Op, chunks: &[BufferId]) -> Vec<Task> {
        let dense = self.dense(rank);
        let (t, d) = (self.geometry.tokens, self.geometry.model_dim);
        let gradients = op.writes[1];
        let product = |[chunk, row, column, rows]: [usize; 4]| Gemm {
            m: t,
            n: rows,
            k: d,
            a: Matrix::rows(op.reads[0], 0, d),
            b: Matrix::rows(chunks[chunk], row * d, d).transposed(),
            c: Matrix::rows(gradients, column, dense.columns),
            accumulate: false,
        };
        let runs = self.slot_runs(rank, chunks.len(), &dense);
        vec![
            Task::Gemms(runs.into_iter().map(product).collect()),
            Task::DenseScores {
                dense,
                gradients,
                target: op.writes[0],
            },
        ]
    }

    /// Rows of a buffer on a rank.
    pub(super) fn elements(&self, rank: usize, chunk: Chunk, width: usize) -> usize {
        total(&self.geometry.received(rank, chunk)) * width
    }
}
