//! What an operation asks of a GPU: FLOPs and bytes, written down once for both interpreters.

use super::{Elementwise, Expert, ExpertRows, Gradient, Kernels, Op, OpKind, Pass};
use crate::cost::gemm::GemmShape;
use crate::spec::{DType, Encode, Gate};

/// One kernel launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// A matrix product, batched where `batch` > 1.
    Gemm(GemmShape),
    /// A kernel bound by memory: bytes read plus bytes written.
    Memory {
        /// Bytes through HBM.
        bytes: u64,
    },
    /// As `Memory`, one of the framework's own element-wise kernels: those of a whole model, whose
    /// number the framework decides.
    Framework {
        /// Bytes through HBM.
        bytes: u64,
        /// Forward or backward.
        pass: Pass,
    },
    /// A scan down the columns of a matrix by one thread a column, as `torch.cumsum` over the first
    /// dimension: every thread waits for its row before it asks for the next.
    ColumnScan {
        /// Rows.
        rows: u64,
        /// Bytes through HBM.
        bytes: u64,
    },
}

impl Work {
    /// Floating-point operations; those of memory-bound kernels are not counted.
    pub fn flops(&self) -> f64 {
        match self {
            Work::Gemm(shape) => shape.flops(),
            Work::Memory { .. } | Work::Framework { .. } | Work::ColumnScan { .. } => 0.0,
        }
    }

    /// Bytes through HBM of what multiplies nothing.
    pub fn bytes(&self) -> u64 {
        match *self {
            Work::Gemm(_) => 0,
            Work::Memory { bytes }
            | Work::Framework { bytes, .. }
            | Work::ColumnScan { bytes, .. } => bytes,
        }
    }
}

impl Op {
    /// Whether tensor cores are what this operation mainly uses.
    pub fn multiplies_matrices(&self, dtype: DType) -> bool {
        match &self.kind {
            // Whatever rows it has: a rank without any still launches the product.
            OpKind::ExpertGemm { .. } => true,
            OpKind::Gate { .. }
            | OpKind::Encode { .. }
            | OpKind::Decode { .. }
            | OpKind::ScoreGradient { .. }
            | OpKind::Model { .. } => {
                let work = self.kind.work(self.pass, 0, dtype);
                work.iter().any(|work| matches!(work, Work::Gemm(_)))
            }
            OpKind::Elementwise { .. }
            | OpKind::CapacitySync
            | OpKind::Exchange { .. }
            | OpKind::AllGather { .. }
            | OpKind::ReduceScatter { .. }
            | OpKind::AllReduce { .. } => false,
        }
    }
}

/// Passes over a (T, E) tensor of 4-byte numbers in Tutel's gate, one read or one write each, by
/// the operations of `tutel/gates/top.py` and `impls/fast_dispatch.py`: softmax (2), top-k (1),
/// per choice a one-hot mask (1), the gate value under it (3) and its scan (2), and the balancing
/// loss (3).
fn sparse_gate_passes(top_k: u64, pass: Pass) -> u64 {
    match pass {
        Pass::Forward => 2 + 1 + 6 * top_k + 3,
        // Softmax (3), balancing loss (2), per choice the masked gate value (3).
        Pass::Backward => 5 + 3 * top_k,
    }
}

/// As [`sparse_gate_passes`] for Fairseq's `top2gate.py`, whose masks and scans are 8-byte integers:
/// per choice one-hot (2), float cast (3), capacity mask (4), location sum (4), gate value (3). Its
/// scans are [`dense_gate_scans`].
fn dense_gate_passes(top_k: u64, pass: Pass) -> u64 {
    match pass {
        Pass::Forward => 2 + 1 + 16 * top_k + 3,
        Pass::Backward => 5 + 4 * top_k,
    }
}

impl OpKind {
    /// The kernels `rank` launches for this operation. A collective's own kernel is not among them.
    pub fn work(&self, pass: Pass, rank: usize, dtype: DType) -> Vec<Work> {
        let memory = |elements: u64| Work::Memory {
            bytes: elements.saturating_mul(dtype.bytes()),
        };
        let gemm = |m, n, k| Work::Gemm(GemmShape::dense(m, n, k, dtype));
        match self {
            OpKind::Gate {
                encode,
                tokens,
                experts,
                model_dim,
                top_k,
                gate,
            } => {
                let shape = [*tokens, *experts, *model_dim];
                let passes = gate_passes(*encode, pass, u64::from(*top_k));
                let mut works = gate_work(*gate, pass, shape, passes, dtype);
                if (*encode, pass) == (Encode::Dense, Pass::Forward) {
                    works.extend(dense_gate_scans(*tokens, *experts, *top_k));
                }
                works
            }
            OpKind::CapacitySync
            | OpKind::Exchange { .. }
            | OpKind::AllGather { .. }
            | OpKind::ReduceScatter { .. }
            | OpKind::AllReduce { .. } => Vec::new(),
            OpKind::Model { kernels, dtype } => model_work(kernels, pass, *dtype),
            OpKind::Encode {
                encode,
                tokens,
                copies,
                slots,
                model_dim,
            } => {
                let (copies, slots, d) = (*copies.get(rank), *slots.get(rank), *model_dim);
                let tec = tokens * slots;
                match (encode, pass) {
                    // Mask (T,E,C) from the combine weights: to a boolean of one byte and back to
                    // numbers, then einsum("TEC,TM->ECM").
                    (Encode::Dense, Pass::Forward) => {
                        let to_boolean = Work::Memory {
                            bytes: tec.saturating_mul(dtype.bytes() + 1),
                        };
                        vec![to_boolean, to_boolean, gemm(slots, d, *tokens)]
                    }
                    (Encode::Dense, Pass::Backward) => vec![gemm(*tokens, d, slots)],
                    // Zero fill, then K0: a row read and a row written per copy.
                    (Encode::Sparse, Pass::Forward) => {
                        vec![memory(slots * d), memory(2 * copies * d)]
                    }
                    // K1: rows gathered, token gradients written.
                    (Encode::Sparse, Pass::Backward) => vec![memory((copies + tokens) * d)],
                }
            }
            OpKind::Decode {
                encode,
                top_k,
                tokens,
                copies,
                slots,
                model_dim,
            } => {
                let (copies, slots, d) = (*copies.get(rank), *slots.get(rank), *model_dim);
                let tec = tokens * slots;
                match (encode, pass) {
                    // einsum("TE,TC->TEC") per choice (k writes) and, of several, their sum (k reads
                    // and a write), then einsum("TEC,ECM->TM").
                    (Encode::Dense, Pass::Forward) => {
                        let k = u64::from(*top_k);
                        let sum = (k > 1).then(|| memory((k + 1) * tec));
                        let parts = std::iter::once(memory(k * tec)).chain(sum);
                        parts.chain([gemm(*tokens, d, slots)]).collect()
                    }
                    // einsum("TEC,TM->ECM").
                    (Encode::Dense, Pass::Backward) => vec![gemm(slots, d, *tokens)],
                    // K1: rows gathered and weighted by score.
                    (Encode::Sparse, Pass::Forward) => vec![memory((copies + tokens) * d)],
                    // Zero fill, then K0 with the score.
                    (Encode::Sparse, Pass::Backward) => {
                        vec![memory(slots * d), memory(2 * copies * d)]
                    }
                }
            }
            OpKind::ScoreGradient {
                encode,
                top_k,
                tokens,
                copies,
                slots,
                model_dim,
            } => {
                let (copies, slots, d) = (*copies.get(rank), *slots.get(rank), *model_dim);
                let tec = tokens * slots;
                match encode {
                    // einsum("TM,ECM->TEC"), and the result read once a choice.
                    Encode::Dense => {
                        let mut works = vec![gemm(*tokens, slots, d)];
                        works.extend((0..*top_k).map(|_| memory(2 * tec)));
                        works
                    }
                    // K2: row-wise dot products.
                    Encode::Sparse => vec![memory(2 * copies * d)],
                }
            }
            OpKind::ExpertGemm {
                matrix,
                gradient,
                rows,
                model_dim,
                hidden_dim,
            } => expert_gemm_work(
                *matrix,
                *gradient,
                rows,
                *model_dim,
                *hidden_dim,
                rank,
                dtype,
            ),
            OpKind::Elementwise { what, elements } => {
                let elements = *elements.get(rank);
                let one_way = match what {
                    Elementwise::Bias(_)
                    | Elementwise::Activation
                    | Elementwise::StrideCopy
                    | Elementwise::Gather => 2,
                    Elementwise::ActivationGradient => 3,
                    Elementwise::BiasGradient(_) => 1,
                    Elementwise::Repeat { copies } | Elementwise::LocalSum { copies } => {
                        1 + u64::from(*copies)
                    }
                };
                vec![memory(one_way * elements)]
            }
        }
    }
}

fn model_work(kernels: &Kernels, pass: Pass, dtype: DType) -> Vec<Work> {
    let gemm = |m, n, k| Work::Gemm(GemmShape::dense(m, n, k, dtype));
    let products = |batch, m, n, k| Work::Gemm(GemmShape::batched(batch, m, n, k, dtype));
    match (*kernels, pass) {
        (
            Kernels::Linear {
                rows,
                input,
                output,
            },
            Pass::Forward,
        ) => vec![gemm(rows, output, input)],
        (
            Kernels::Linear {
                rows,
                input,
                output,
            },
            Pass::Backward,
        ) => vec![gemm(rows, input, output), gemm(input, output, rows)],
        (Kernels::Product { batch, m, n, k }, Pass::Forward) => vec![products(batch, m, n, k)],
        (Kernels::Product { batch, m, n, k }, Pass::Backward) => {
            vec![products(batch, m, k, n), products(batch, k, n, m)]
        }
        // Scores never reach HBM, so no product of this shape is launched. A product of the same
        // FLOPs whose operands are about as large as queries, keys and values stands for it: the
        // extents n = k with n·k = keys·channels. Backward computes the scores again: five products for two.
        (
            Kernels::FusedAttention {
                batch,
                queries,
                keys,
                channels,
            },
            pass,
        ) => {
            let side = (keys * channels).isqrt().max(1);
            let rows = match pass {
                Pass::Forward => queries,
                Pass::Backward => queries * 5 / 2,
            };
            vec![products(
                batch,
                rows,
                side,
                (keys * channels).div_ceil(side),
            )]
        }
        (
            Kernels::Pass {
                kernels,
                forward,
                backward,
            },
            pass,
        ) => {
            let bytes = match pass {
                Pass::Forward => forward,
                Pass::Backward => backward,
            };
            let kernels = kernels.max(1);
            let work = Work::Framework {
                bytes: bytes / kernels,
                pass,
            };
            match bytes {
                0 => Vec::new(),
                _ => vec![work; kernels as usize],
            }
        }
    }
}

/// The places of Fairseq's tokens in their experts: `torch.cumsum(mask, dim=0)` over (T, E) 8-byte integers, a read and a
/// write, once a choice. Tutel scans in parallel (Blelloch, Figure 21), within the passes of [`sparse_gate_passes`].
fn dense_gate_scans(tokens: u64, experts: u64, top_k: u32) -> impl Iterator<Item = Work> {
    let scan = Work::ColumnScan {
        rows: tokens,
        bytes: 2 * 8 * tokens * experts,
    };
    std::iter::repeat_n(scan, top_k as usize)
}

/// Passes over a (T, E) tensor, by implementation.
fn gate_passes(encode: Encode, pass: Pass, top_k: u64) -> u64 {
    match encode {
        Encode::Dense => dense_gate_passes(top_k, pass),
        Encode::Sparse => sparse_gate_passes(top_k, pass),
    }
}

/// Passes of PyTorch over a tensor that `normalize` divides by its norms: norm (1) and division (2); backward the division by
/// numerator (2) and by denominator (4), the norm (2) and the sum of both gradients (3).
fn normalize_passes(pass: Pass) -> u64 {
    match pass {
        Pass::Forward => 3,
        Pass::Backward => 11,
    }
}

/// Passes over the cosines (T, E) that scale them by the temperature: read and write; backward the same for the gradient, and
/// the product (3) and sum (1) that the temperature's takes.
fn scale_passes(pass: Pass) -> u64 {
    match pass {
        Pass::Forward => 2,
        Pass::Backward => 6,
    }
}

fn gate_work(
    gate: Gate,
    pass: Pass,
    [tokens, experts, model_dim]: [u64; 3],
    passes: u64,
    dtype: DType,
) -> Vec<Work> {
    // The gate computes in 4-byte numbers whatever the layer's type; its product uses tensor cores.
    let gate_dtype = if dtype == DType::Fp32 {
        DType::Fp32
    } else {
        DType::Tf32
    };
    // (m, k) by (k, n), and backward the gradients of both.
    let product = |m, n, k| {
        let shapes = match pass {
            Pass::Forward => vec![(m, n, k)],
            Pass::Backward => vec![(m, k, n), (k, n, m)],
        };
        let gemm = |(m, n, k)| Work::Gemm(GemmShape::dense(m, n, k, gate_dtype));
        shapes.into_iter().map(gemm)
    };
    // About two passes a kernel: one read, one write.
    let kernels = |elements: u64, passes: u64| {
        let bytes = 2 * 4 * elements;
        std::iter::repeat_n(Work::Memory { bytes }, (passes / 2) as usize)
    };
    match gate {
        Gate::Linear => product(tokens, experts, model_dim)
            .chain(kernels(tokens * experts, passes))
            .collect(),
        Gate::Cosine {
            projection_dim: channels,
        } => product(tokens, channels, model_dim)
            .chain(product(tokens, experts, channels))
            .chain(kernels(tokens * channels, normalize_passes(pass)))
            .chain(kernels(experts * channels, normalize_passes(pass)))
            .chain(kernels(tokens * experts, scale_passes(pass) + passes))
            .collect(),
    }
}

fn expert_gemm_work(
    matrix: Expert,
    gradient: Gradient,
    rows: &ExpertRows,
    model_dim: u64,
    hidden_dim: u64,
    rank: usize,
    dtype: DType,
) -> Vec<Work> {
    let (input, output) = match matrix {
        Expert::Up => (model_dim, hidden_dim),
        Expert::Down => (hidden_dim, model_dim),
    };
    let product = |experts: u64, blocks: u64, rows: u64| {
        let (m, n, k) = match gradient {
            Gradient::Output => (rows, output, input),
            Gradient::Input => (rows, input, output),
            Gradient::Weight => (input, output, rows),
        };
        Work::Gemm(GemmShape::batched(experts * blocks, m, n, k, dtype).sharing(experts))
    };
    match rows {
        // A weight gradient sums over all rows of an expert, whatever the blocks.
        ExpertRows::Padded {
            experts,
            blocks,
            rows,
        } if gradient == Gradient::Weight => {
            vec![product(*experts, 1, blocks * rows)]
        }
        ExpertRows::Padded {
            experts,
            blocks,
            rows,
        } => vec![product(*experts, *blocks, *rows)],
        ExpertRows::Grouped { .. } => rows
            .by_expert(rank)
            .filter(|&rows| rows > 0)
            .map(|rows| product(1, 1, rows))
            .collect(),
    }
}
