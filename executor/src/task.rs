//! What a rank does for one operation, with every address worked out: the launches that backends
//! implement. Offsets and sizes are in elements of 4 bytes, rows in rows of `width` elements.

use crate::cosine::CosineLayout;
use crate::lower::SlotMap;
use moeplan_sim::ir::BufferId;
use std::sync::Arc;

/// A matrix inside a buffer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    /// The buffer.
    pub buffer: BufferId,
    /// Offset of its first element.
    pub at: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next; 1 or `row_stride` is.
    pub column_stride: usize,
}

impl Matrix {
    /// Rows of `width` elements, one after the other.
    pub fn rows(buffer: BufferId, at: usize, width: usize) -> Matrix {
        Matrix {
            buffer,
            at,
            row_stride: width,
            column_stride: 1,
        }
    }

    /// The transpose.
    #[must_use]
    pub fn transposed(self) -> Matrix {
        Matrix {
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `c (m,n) = a (m,k) · b (k,n)`, added to what is there where `accumulate`. With k = 0 the
/// product is zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of every sum.
    pub k: usize,
    /// Left factor.
    pub a: Matrix,
    /// Right factor.
    pub b: Matrix,
    /// Result, its columns adjacent.
    pub c: Matrix,
    /// Whether the product is added.
    pub accumulate: bool,
}

/// Rows (or elements, where the width is 1) that are copied from a buffer of `rank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowCopy {
    /// Whose buffer; the own one for copies on a rank.
    pub rank: usize,
    /// Buffer they come from.
    pub buffer: BufferId,
    /// First row there.
    pub from: usize,
    /// First row here.
    pub to: usize,
    /// Rows.
    pub rows: usize,
}

/// Rows of one local expert that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Local expert.
    pub expert: usize,
    /// First row.
    pub at: usize,
    /// Rows.
    pub rows: usize,
}

/// The slots of a chunked dispatch or combine buffer, before repetition.
#[derive(Debug, Clone, PartialEq)]
pub struct Slots {
    /// One buffer a chunk.
    pub chunks: Vec<BufferId>,
    /// Rows of each.
    pub rows: Vec<usize>,
    /// Where a copy's row is.
    pub map: Arc<SlotMap>,
}

/// Tensors of the dense path, (T, columns) each; column `first[expert] + location` is a slot.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// First column of each expert.
    pub first: Arc<Vec<usize>>,
    /// All columns.
    pub columns: usize,
}

/// One launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Logits, softmax, top-k, slots: writes probabilities (T, E) and the rank's assignment.
    Gate {
        /// (T, D).
        tokens: BufferId,
        /// (D, E), or the parts of a cosine gate.
        weight: BufferId,
        /// (T, E).
        scores: BufferId,
        /// Of a cosine gate: where it leaves directions.
        cosine: Option<(CosineLayout, BufferId)>,
    },
    /// Gradients of choices (T, k) to those of the gate weight and, added, of the tokens.
    GateGradient {
        /// (T, k) in front.
        choices: BufferId,
        /// (T, E).
        scores: BufferId,
        /// (T, D).
        tokens: BufferId,
        /// (D, E), or the parts of a cosine gate.
        weight: BufferId,
        /// (T, D), added to.
        token_gradient: BufferId,
        /// As the weight.
        weight_gradient: BufferId,
        /// Of a cosine gate: its directions, and as much to work in.
        cosine: Option<(CosineLayout, [BufferId; 2])>,
    },
    /// Maximum of the largest expert count over all ranks.
    CapacitySync,
    /// K0: zero fill, then the row of every kept copy, times its score where `weighted`.
    Scatter {
        /// (T, D).
        source: BufferId,
        /// Where to.
        slots: Slots,
        /// By score.
        weighted: bool,
    },
    /// K1: every token is the sum of its kept copies' rows, times their scores where `weighted`.
    Gather {
        /// Where from.
        slots: Slots,
        /// (T, D).
        target: BufferId,
        /// By score.
        weighted: bool,
    },
    /// K2: the gradient of every kept copy's score, a dot product of two rows; (T, k).
    RowDots {
        /// (T, D).
        gradient: BufferId,
        /// Rows of the copies.
        slots: Slots,
        /// (T, k) in front.
        target: BufferId,
    },
    /// Combine weights by choice, their sum, its boolean and the dispatch mask.
    DenseTensors {
        /// Shape.
        dense: Dense,
        /// k tensors.
        by_choice: BufferId,
        /// Sum of them.
        combine: BufferId,
        /// One byte an element.
        boolean: BufferId,
        /// Zeros and ones.
        mask: BufferId,
    },
    /// Gradient of the combine weights (the first tensor of `gradients`), copied once a choice,
    /// to gradients of scores (T, k).
    DenseScores {
        /// Shape.
        dense: Dense,
        /// 2 + k tensors.
        gradients: BufferId,
        /// (T, k) in front.
        target: BufferId,
    },
    /// Matrix products into one buffer.
    Gemms(Vec<Gemm>),
    /// Adds the bias of each expert to its rows. Biases may cover a part of the columns.
    Bias {
        /// Rows.
        target: BufferId,
        /// Elements of a row.
        width: usize,
        /// Where biases are.
        weights: BufferId,
        /// Offset of each local expert's bias.
        biases: Vec<usize>,
        /// First column and number of columns of a bias.
        columns: (usize, usize),
        /// Rows of experts.
        runs: Vec<Run>,
    },
    /// ReLU in place.
    Activation {
        /// Rows.
        target: BufferId,
        /// Elements.
        elements: usize,
    },
    /// Gradient zero where the activation is.
    ActivationGradient {
        /// Rows of the gradient, in place.
        target: BufferId,
        /// Elements of a row.
        width: usize,
        /// Rows of the activation beside rows of the gradient (`to`).
        activations: Vec<RowCopy>,
    },
    /// Sums each expert's rows.
    BiasGradient {
        /// Rows.
        source: BufferId,
        /// Elements of a row.
        width: usize,
        /// Where gradients go.
        gradients: BufferId,
        /// Offset of each local expert's bias gradient.
        biases: Vec<usize>,
        /// First column and number of columns of a bias.
        columns: (usize, usize),
        /// Rows of experts.
        runs: Vec<Run>,
        /// Whether the sums are added to what is there.
        accumulate: bool,
    },
    /// Copies on a rank.
    Copy {
        /// Where to.
        target: BufferId,
        /// Elements of a row.
        width: usize,
        /// Copies.
        copies: Vec<RowCopy>,
    },
    /// Copies from other ranks; all must have arrived.
    Pull {
        /// Where to.
        target: BufferId,
        /// Elements of a row.
        width: usize,
        /// Copies.
        copies: Vec<RowCopy>,
    },
    /// As [`Task::Pull`], summed in order where several go to one place.
    PullSum {
        /// Where to.
        target: BufferId,
        /// Copies, those of the first rank first.
        copies: Vec<Vec<RowCopy>>,
    },
    /// Blocks, one an expert, repeated one after the other, in place.
    Repeat {
        /// Buffer.
        target: BufferId,
        /// Elements of a row.
        width: usize,
        /// Rows of each block.
        blocks: Vec<usize>,
        /// r.
        copies: usize,
    },
    /// The inverse of [`Task::Repeat`]: sums, in place.
    LocalSum {
        /// Buffer.
        target: BufferId,
        /// Elements of a row.
        width: usize,
        /// Rows of each block.
        blocks: Vec<usize>,
        /// r.
        copies: usize,
    },
}

/// What a task moved and multiplied, counted while it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Bytes read and written on the own rank.
    pub bytes: u64,
    /// Bytes that came from other ranks.
    pub received: u64,
    /// Floating-point operations of matrix products.
    pub flops: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.bytes += other.bytes;
        self.received += other.received;
        self.flops += other.flops;
    }
}

impl Task {
    /// Every buffer the task touches, on this rank or others, some more than once.
    pub fn buffers(&self) -> Vec<BufferId> {
        let with = |many: &[BufferId], few: &[BufferId]| [many, few].concat();
        let sources =
            |copies: &[RowCopy]| copies.iter().map(|copy| copy.buffer).collect::<Vec<_>>();
        match self {
            Task::Gate {
                tokens,
                weight,
                scores,
                cosine,
            } => with(
                &[*tokens, *weight, *scores],
                cosine.map(|(_, buffer)| buffer).as_slice(),
            ),
            Task::GateGradient {
                choices,
                scores,
                tokens,
                weight,
                token_gradient,
                weight_gradient,
                cosine,
            } => {
                let given = [*choices, *scores, *tokens, *weight];
                let gradients = [*token_gradient, *weight_gradient];
                let directions = cosine.map(|(_, buffers)| buffers);
                let directions = directions.as_ref().map_or(&[][..], |buffers| buffers);
                [&given[..], &gradients, directions].concat()
            }
            Task::CapacitySync => Vec::new(),
            Task::Scatter {
                source: one, slots, ..
            }
            | Task::Gather {
                target: one, slots, ..
            } => with(&slots.chunks, &[*one]),
            Task::RowDots {
                gradient,
                slots,
                target,
            } => with(&slots.chunks, &[*gradient, *target]),
            Task::DenseTensors {
                by_choice,
                combine,
                boolean,
                mask,
                ..
            } => vec![*by_choice, *combine, *boolean, *mask],
            Task::DenseScores {
                gradients, target, ..
            } => vec![*gradients, *target],
            Task::Gemms(products) => products
                .iter()
                .flat_map(|product| [product.a.buffer, product.b.buffer, product.c.buffer])
                .collect(),
            Task::Bias {
                target, weights, ..
            } => vec![*target, *weights],
            Task::BiasGradient {
                source, gradients, ..
            } => vec![*source, *gradients],
            Task::Activation { target, .. }
            | Task::Repeat { target, .. }
            | Task::LocalSum { target, .. } => vec![*target],
            Task::ActivationGradient {
                target,
                activations: copies,
                ..
            }
            | Task::Copy { target, copies, .. }
            | Task::Pull { target, copies, .. } => with(&sources(copies), &[*target]),
            Task::PullSum { target, copies } => with(&sources(&copies.concat()), &[*target]),
        }
    }
}
