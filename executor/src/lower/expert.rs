//! The expert FFN: products, biases, activation, and their gradients.

use super::geometry::{Piece, Placed};
use super::rows::merged;
use super::{Chunk, Lowering};
use crate::ExecError;
use crate::task::{Gemm, Matrix, RowCopy, Run, Task};
use moeplan_sim::ir::{BufferId, Expert, Gradient, Op};
use std::collections::BTreeMap;

impl Lowering<'_> {
    /// The rows `rank` computes in `chunk`, by local expert, neighbours joined.
    fn runs(&self, rank: usize, chunk: Chunk) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let first = self.geometry.part_of(rank).0;
        for placed in self.geometry.received(rank, chunk) {
            let expert = placed.piece.expert - first;
            match runs.last_mut() {
                Some(last) if last.expert == expert && last.at + last.rows == placed.at => {
                    last.rows += placed.rows;
                }
                Some(_) | None => runs.push(Run {
                    expert,
                    at: placed.at,
                    rows: placed.rows,
                }),
            }
        }
        runs
    }

    /// Elements of a row of an operation of one matrix: (input, output).
    fn widths(&self, matrix: Expert) -> (usize, usize) {
        let (d, h) = (self.geometry.model_dim, self.geometry.hidden);
        match matrix {
            Expert::Up => (d, h),
            Expert::Down => (h, d),
        }
    }

    pub(super) fn expert_gemm(
        &mut self,
        op: &Op,
        matrix: Expert,
        gradient: Gradient,
    ) -> Result<Vec<Vec<Task>>, ExecError> {
        let chunk = self.chunk(op);
        let (input, output) = self.widths(matrix);
        match gradient {
            Gradient::Output => {
                self.hold(op.writes[0], self.received(chunk), output)?;
                self.saved.insert(op.writes[0], chunk);
            }
            Gradient::Input => self.hold(op.writes[0], self.received(chunk), input)?,
            Gradient::Weight => return Ok(self.weight_gradient(op, matrix)),
        }
        let layout = self.weight_layout();
        let d = layout.model_dim;
        Ok(self.each(|rank| {
            let product = |run: Run| {
                let at = run.expert * layout.expert() + layout.matrix(matrix).start;
                // (h, D): W1 transposed, W2 as it is.
                let weight = Matrix::rows(op.reads[1], at, d);
                let (n, k) = match gradient {
                    Gradient::Output => (output, input),
                    Gradient::Input | Gradient::Weight => (input, output),
                };
                let to_model = match (matrix, gradient) {
                    (Expert::Up, Gradient::Output) | (Expert::Down, Gradient::Input) => false,
                    (Expert::Up, _) | (Expert::Down, _) => true,
                };
                Gemm {
                    m: run.rows,
                    n,
                    k,
                    a: Matrix::rows(op.reads[0], run.at * k, k),
                    b: if to_model {
                        weight
                    } else {
                        weight.transposed()
                    },
                    c: Matrix::rows(op.writes[0], run.at * n, n),
                    accumulate: false,
                }
            };
            vec![Task::Gemms(
                self.runs(rank, chunk).into_iter().map(product).collect(),
            )]
        }))
    }

    /// Rows of the backward pass beside the saved rows they belong to, neighbours joined. `to` is
    /// the row of the backward pass.
    fn beside(&self, rank: usize, chunk: Chunk, saved: &[BufferId]) -> Vec<(Piece, RowCopy)> {
        let mut places: BTreeMap<(BufferId, Piece), Placed> = BTreeMap::new();
        for &buffer in saved {
            for placed in self.geometry.received(rank, self.saved[&buffer]) {
                places.insert((buffer, placed.piece), placed);
            }
        }
        let mut beside = Vec::new();
        for placed in self.geometry.received(rank, chunk) {
            let Piece {
                source,
                expert,
                group,
                ..
            } = placed.piece;
            let wanted = self.geometry.cut(source, expert, group, chunk);
            for &buffer in saved {
                let held = self
                    .geometry
                    .cut(source, expert, group, self.saved[&buffer]);
                let (start, end) = (wanted.start.max(held.start), wanted.end.min(held.end));
                if start < end {
                    let from = places[&(buffer, placed.piece)].at + start - held.start;
                    let to = placed.at + start - wanted.start;
                    let rows = end - start;
                    beside.push((
                        placed.piece,
                        RowCopy {
                            rank,
                            buffer,
                            from,
                            to,
                            rows,
                        },
                    ));
                }
            }
        }
        beside
    }

    fn weight_gradient(&mut self, op: &Op, matrix: Expert) -> Vec<Vec<Task>> {
        let chunk = self.chunk(op);
        let layout = self.weight_layout();
        let (d, h) = (layout.model_dim, layout.hidden);
        let (gradient, saved) = (op.reads[0], &op.reads[1..]);
        let gathered = self.gathered.contains(&gradient);
        self.each(|rank| {
            let first = self.geometry.part_of(rank).0;
            // (local expert, gradient buffer and row, saved buffer and row, rows).
            let mut segments: Vec<(usize, BufferId, usize, BufferId, usize, usize)> = Vec::new();
            if gathered {
                let mut at = 0;
                for (expert, rows) in self.rows_by_expert(rank, chunk).into_iter().enumerate() {
                    segments.push((expert, gradient, at, saved[0], at, rows));
                    at += rows;
                }
            } else {
                for (piece, copy) in self.beside(rank, chunk, saved) {
                    let expert = piece.expert - first;
                    match segments.last_mut() {
                        Some((last, _, to, buffer, from, rows))
                            if *last == expert
                                && *buffer == copy.buffer
                                && *to + *rows == copy.to
                                && *from + *rows == copy.from =>
                        {
                            *rows += copy.rows;
                        }
                        Some(_) | None => segments.push((
                            expert,
                            gradient,
                            copy.to,
                            copy.buffer,
                            copy.from,
                            copy.rows,
                        )),
                    }
                }
            }
            let mut touched = vec![chunk.index > 0; self.geometry.local_experts()];
            let product = |expert: usize, a: Matrix, b: Matrix, k: usize, accumulate: bool| Gemm {
                m: h,
                n: d,
                k,
                a,
                b,
                c: Matrix::rows(
                    op.writes[0],
                    expert * layout.expert() + layout.matrix(matrix).start,
                    d,
                ),
                accumulate,
            };
            let mut products = Vec::new();
            for (expert, of_gradient, to, of_saved, from, rows) in segments {
                // W1^T gets dh^T x, W2 gets h^T dy: the hidden side is the left factor.
                let (hidden, model) = match matrix {
                    Expert::Up => ((of_gradient, to), (of_saved, from)),
                    Expert::Down => ((of_saved, from), (of_gradient, to)),
                };
                let a = Matrix::rows(hidden.0, hidden.1 * h, h).transposed();
                let b = Matrix::rows(model.0, model.1 * d, d);
                products.push(product(expert, a, b, rows, touched[expert]));
                touched[expert] = true;
            }
            // An expert without rows has a gradient of zero.
            for expert in (0..touched.len()).filter(|&expert| !touched[expert]) {
                let none = Matrix::rows(op.writes[0], 0, d);
                products.push(product(expert, none, none, 0, false));
            }
            vec![Task::Gemms(products)]
        })
    }

    fn rows_by_expert(&self, rank: usize, chunk: Chunk) -> Vec<usize> {
        let mut rows = vec![0; self.geometry.local_experts()];
        for run in self.runs(rank, chunk) {
            rows[run.expert] += run.rows;
        }
        rows
    }

    /// Copies the blocks of every expert together, for the weight gradient that reads them next.
    pub(super) fn gather_blocks(&mut self, op: &Op) -> Result<Vec<Vec<Task>>, ExecError> {
        let chunk = self.chunk(op);
        let target = op.writes[0];
        let mut tasks = Vec::new();
        for rank in self.ranks() {
            let held: usize = self.rows_by_expert(rank, chunk).iter().sum();
            let plan = &self.buffers[target.0 as usize];
            let stated = plan.elements[rank];
            let width = stated.checked_div(held).unwrap_or(0);
            if width * held != stated {
                return Err(ExecError::Disagrees(format!(
                    "`{}` has {stated} elements on rank {rank}, not whole rows of {held}",
                    plan.name
                )));
            }
            let mut pieces: Vec<(Piece, RowCopy)> = if self.saved.contains_key(&op.reads[0]) {
                self.beside(rank, chunk, &op.reads)
            } else {
                let own = self.geometry.received(rank, chunk).into_iter();
                own.map(|placed| {
                    let copy = RowCopy {
                        rank,
                        buffer: op.reads[0],
                        from: placed.at,
                        to: 0,
                        rows: placed.rows,
                    };
                    (placed.piece, copy)
                })
                .collect()
            };
            pieces.sort_by_key(|(piece, _)| (piece.expert, piece.source));
            let mut at = 0;
            let copies = pieces.into_iter().map(|(_, copy)| {
                let copy = RowCopy { to: at, ..copy };
                at += copy.rows;
                copy
            });
            tasks.push(vec![Task::Copy {
                target,
                width,
                copies: merged(copies),
            }]);
        }
        self.gathered.insert(target);
        Ok(tasks)
    }

    fn biases(&self, matrix: Expert) -> Vec<usize> {
        let layout = self.weight_layout();
        (0..self.geometry.local_experts())
            .map(|expert| expert * layout.expert() + layout.bias(matrix).start)
            .collect()
    }

    fn columns(&self, rank: usize, matrix: Expert) -> (usize, usize) {
        match matrix {
            Expert::Up => (0, self.geometry.hidden),
            Expert::Down => self.bias_columns(rank),
        }
    }

    pub(super) fn bias(&self, op: &Op, matrix: Expert) -> Vec<Vec<Task>> {
        self.each(|rank| {
            vec![Task::Bias {
                target: op.writes[0],
                width: self.widths(matrix).1,
                weights: op.reads[1],
                biases: self.biases(matrix),
                columns: self.columns(rank, matrix),
                runs: self.runs(rank, self.chunk(op)),
            }]
        })
    }

    pub(super) fn bias_gradient(&self, op: &Op, matrix: Expert) -> Vec<Vec<Task>> {
        self.each(|rank| {
            vec![Task::BiasGradient {
                source: op.reads[0],
                width: self.widths(matrix).1,
                gradients: op.writes[0],
                biases: self.biases(matrix),
                columns: self.columns(rank, matrix),
                runs: self.runs(rank, self.chunk(op)),
                accumulate: op.chunk > 0,
            }]
        })
    }

    pub(super) fn activation(&self, op: &Op) -> Vec<Vec<Task>> {
        self.each(|rank| {
            vec![Task::Activation {
                target: op.writes[0],
                elements: self.elements(rank, self.chunk(op), self.geometry.hidden),
            }]
        })
    }

    pub(super) fn activation_gradient(&self, op: &Op) -> Vec<Vec<Task>> {
        self.each(|rank| {
            let beside = self.beside(rank, self.chunk(op), &op.reads[1..]);
            vec![Task::ActivationGradient {
                target: op.writes[0],
                width: self.geometry.hidden,
                activations: merged(beside.into_iter().map(|(_, copy)| copy)),
            }]
        })
    }
}
