//! Tasks to steps: launches, fills and copies with device addresses. Everything a kernel reads from the host, which are
//! tables of runs and products, is laid out here in one block a GPU that is uploaded before the step.

use super::blas::Precision;
use super::column_sums::ColumnSums;
use super::gpus::Dealt;
use super::lists::Sum;
use super::memory::{Extra, Memory};
use super::wires::Wires;
use crate::ExecError;
use crate::backend::Job;
use crate::task::{Matrix, Task};
use moeplan_kernels::{
    Activation, ActivationGradient, Arguments, Bias, BiasRun, CopyRun, Decode, DenseBoolean,
    DenseChoices, DenseMask, DenseScores, Encode, In, Launch, Out, Product, Real, SavedRun,
    ScoreGradient,
};
use moeplan_sim::ir::BufferId;

/// ReLU: the only activation the program has.
const RELU: i32 = 0;

/// One thing that a stream does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// A kernel.
    Launch(Launch),
    /// Zeros.
    Zero { at: u64, bytes: usize },
    /// A copy on the device.
    Copy { to: u64, from: u64, bytes: usize },
    /// Products through cuBLAS, or where it is absent through the launch.
    Multiply {
        products: Vec<Product>,
        precision: Precision,
        fallback: Launch,
    },
    /// The host sorts tokens by their best score and uploads the order.
    Prioritize { scores: u64, order: u64 },
}

/// Steps of one operation on one rank.
pub(super) type Steps = Vec<Step>;

/// Lays out steps.
pub(super) struct Planner<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) dealt: Dealt<'a>,
    pub(super) memory: &'a mut Memory,
    /// Number of the GPU that steps are laid out for.
    pub(super) device: usize,
    pub(super) blocks: &'a Blocks,
    /// The tables, by GPU.
    pub(super) tables: Vec<Vec<i64>>,
    /// Messages of the operation.
    pub(super) wires: Wires,
    /// Products of the layer's tensors, whose number type kernels take.
    pub(super) layer: Precision,
    /// Products of its gate.
    pub(super) gate: Precision,
}

/// What one operation is to the GPUs.
pub(super) struct Planned {
    /// Messages between GPUs, which go before the steps.
    pub(super) wires: Wires,
    /// By rank.
    pub(super) steps: Vec<Steps>,
}

/// A whole step: its operations, and the tables that they read, by GPU.
pub(super) struct Plan {
    pub(super) ops: Vec<Planned>,
    pub(super) tables: Vec<Vec<i64>>,
}

/// Where the blocks lie that hold what a plan made up.
pub(super) struct Blocks {
    /// Tables, by GPU.
    pub(super) tables: Vec<u64>,
    /// Inbox and outbox, by rank.
    pub(super) boxes: Vec<[u64; 2]>,
}

impl Blocks {
    /// Before there are any: sizes do not depend on addresses.
    pub(super) fn none(dealt: Dealt<'_>) -> Blocks {
        Blocks {
            tables: vec![0; dealt.devices()],
            boxes: vec![[0; 2]; dealt.world],
        }
    }
}

/// Plans a whole step.
pub(super) fn plan(
    job: &Job<'_>,
    dealt: Dealt<'_>,
    memory: &mut Memory,
    blocks: &Blocks,
) -> Result<Plan, ExecError> {
    let mut planner = Planner {
        job,
        dealt,
        memory,
        device: 0,
        blocks,
        tables: vec![Vec::new(); dealt.devices()],
        wires: Wires::default(),
        layer: Precision::of_layer(job.program.dtype),
        gate: Precision::of_gate(job.program.dtype),
    };
    let mut ops = Vec::new();
    for ranks in &job.lowered.tasks {
        planner.wires = Wires::new(dealt.world);
        let mut steps = Vec::new();
        for (rank, tasks) in ranks.iter().enumerate() {
            planner.device = dealt.device_of(rank);
            let mut of_rank = Vec::new();
            for task in tasks {
                planner.task(rank, task, &mut of_rank)?;
            }
            steps.push(of_rank);
        }
        let wires = std::mem::take(&mut planner.wires);
        ops.push(Planned { wires, steps });
    }
    Ok(Plan {
        ops,
        tables: planner.tables,
    })
}

/// A launch that works on the gate's fp32 numbers, or on bytes and integers.
pub(super) fn plain(arguments: &impl Arguments) -> Step {
    Step::Launch(arguments.launch(Real::F32))
}

impl Precision {
    /// A launch that works on tensors of this number type.
    pub(super) fn launch(self, arguments: &impl Arguments) -> Step {
        Step::Launch(arguments.launch(self.real))
    }
}

impl Planner<'_> {
    pub(super) fn at(&self, rank: usize, buffer: BufferId) -> u64 {
        self.memory.at(rank, buffer)
    }

    pub(super) fn extra(
        &mut self,
        rank: usize,
        extra: Extra,
        bytes: usize,
    ) -> Result<u64, ExecError> {
        self.memory.extra(self.dealt.of(rank), rank, extra, bytes)
    }

    /// Where rows are set aside while they are repeated or summed, and their bytes.
    fn staging(
        &mut self,
        rank: usize,
        width: usize,
        blocks: &[usize],
    ) -> Result<(u64, usize), ExecError> {
        let bytes = blocks.iter().sum::<usize>() * width * self.size() as usize;
        Ok((self.extra(rank, Extra::Staging, bytes)?, bytes))
    }

    /// Puts a table into the GPU's block; its address.
    pub(super) fn table(&mut self, words: &[i64]) -> u64 {
        let table = &mut self.tables[self.device];
        let at = self.blocks.tables[self.device] + 8 * table.len() as u64;
        table.extend_from_slice(words);
        at
    }

    /// The same for 4-byte values.
    pub(super) fn table_of_4(&mut self, values: impl Iterator<Item = u32>) -> u64 {
        let values: Vec<u32> = values.collect();
        let words: Vec<i64> = values
            .chunks(2)
            .map(|pair| i64::from(pair[0]) | i64::from(pair.get(1).copied().unwrap_or(0)) << 32)
            .collect();
        self.table(&words)
    }

    /// Bytes of an element of the layer's tensors.
    pub(super) fn size(&self) -> i64 {
        self.layer.real.bytes() as i64
    }

    fn task(&mut self, rank: usize, task: &Task, steps: &mut Steps) -> Result<(), ExecError> {
        let geometry = &self.job.lowered.geometry;
        let (t, d, k) = (
            geometry.tokens as i64,
            geometry.model_dim as i64,
            geometry.top_k as i32,
        );
        let choices = geometry.tokens * geometry.top_k;
        match task {
            Task::Gate {
                tokens,
                weight,
                scores,
                cosine,
            } => self.gate(rank, [*tokens, *weight, *scores], *cosine, steps)?,
            Task::GateGradient {
                choices,
                scores,
                tokens,
                weight,
                token_gradient,
                weight_gradient,
                cosine,
            } => {
                let reads = [*choices, *scores, *tokens, *weight];
                let writes = [*token_gradient, *weight_gradient];
                self.gate_gradient(rank, reads, writes, *cosine, steps)?;
            }
            // The host compares counts: see `streams`.
            Task::CapacitySync => {}
            Task::Scatter {
                source,
                slots,
                weighted,
            } => {
                for (&chunk, &rows) in slots.chunks.iter().zip(&slots.rows) {
                    steps.push(Step::Zero {
                        at: self.at(rank, chunk),
                        bytes: rows * geometry.model_dim * self.size() as usize,
                    });
                }
                let (places, base) = self.places(rank, slots, steps)?;
                steps.push(self.layer.launch(&Encode {
                    tokens: In::at(self.at(rank, *source)),
                    places: In::at(places),
                    scores: self.scores(rank, *weighted)?,
                    slots: Out::at(base),
                    num_tokens: t,
                    top_k: k,
                    model_dim: d,
                }));
            }
            Task::Gather {
                slots,
                target,
                weighted,
            } => {
                let (places, base) = self.places(rank, slots, steps)?;
                steps.push(self.layer.launch(&Decode {
                    slots: In::at(base),
                    places: In::at(places),
                    scores: self.scores(rank, *weighted)?,
                    tokens: Out::at(self.at(rank, *target)),
                    num_tokens: t,
                    top_k: k,
                    model_dim: d,
                    accumulate: false,
                }));
            }
            Task::RowDots {
                gradient,
                slots,
                target,
            } => {
                let (places, base) = self.places(rank, slots, steps)?;
                steps.push(self.layer.launch(&ScoreGradient {
                    output_gradient: In::at(self.at(rank, *gradient)),
                    slots: In::at(base),
                    places: In::at(places),
                    gradient: Out::at(self.at(rank, *target)),
                    num_tokens: t,
                    top_k: k,
                    model_dim: d,
                }));
            }
            Task::DenseTensors {
                dense,
                by_choice,
                combine,
                boolean,
                mask,
            } => {
                let columns = dense.columns as i64;
                let columns_of = self.columns(rank, &dense.first, steps)?;
                let by_choice = self.at(rank, *by_choice);
                let (combine, count) = (self.at(rank, *combine), t * columns);
                steps.push(self.layer.launch(&DenseChoices {
                    columns_of: In::at(columns_of),
                    scores: In::at(self.chosen(rank)?),
                    weights: Out::at(by_choice),
                    num_tokens: t,
                    top_k: k,
                    columns,
                }));
                let sources = (0..i64::from(k))
                    .map(|choice| by_choice as i64 + choice * count * self.size())
                    .collect();
                self.sum(combine, &[(0, count, sources)], steps);
                let boolean = self.at(rank, *boolean);
                steps.push(self.layer.launch(&DenseBoolean {
                    weights: In::at(combine),
                    boolean: Out::at(boolean),
                    count,
                }));
                let mask = Out::at(self.at(rank, *mask));
                steps.push(self.layer.launch(&DenseMask {
                    boolean: In::at(boolean),
                    mask,
                    count,
                }));
            }
            Task::DenseScores {
                dense,
                gradients,
                target,
            } => {
                let columns = dense.columns as i64;
                let bytes = (t * columns * self.size()) as usize;
                let columns_of = self.columns(rank, &dense.first, steps)?;
                let first = self.at(rank, *gradients);
                // One copy a choice, after the tensor itself and the one its product is transposed in.
                let copies = first + 2 * bytes as u64;
                for choice in 0..k as u64 {
                    steps.push(Step::Copy {
                        to: copies + choice * bytes as u64,
                        from: first,
                        bytes,
                    });
                }
                steps.push(self.layer.launch(&DenseScores {
                    weights_gradient: In::at(copies),
                    columns_of: In::at(columns_of),
                    gradient: Out::at(self.at(rank, *target)),
                    num_tokens: t,
                    top_k: k,
                    columns,
                }));
            }
            Task::Gemms(products) => {
                let address = |planner: &Self, matrix: &Matrix| {
                    planner.at(rank, matrix.buffer) as i64 + planner.size() * matrix.at as i64
                };
                let products = products.iter().map(|product| Product {
                    a: address(self, &product.a),
                    b: address(self, &product.b),
                    c: address(self, &product.c),
                    m: product.m as i64,
                    n: product.n as i64,
                    k: product.k as i64,
                    a_row_stride: product.a.row_stride as i64,
                    a_column_stride: product.a.column_stride as i64,
                    b_row_stride: product.b.row_stride as i64,
                    b_column_stride: product.b.column_stride as i64,
                    c_row_stride: product.c.row_stride as i64,
                    accumulate: i64::from(product.accumulate),
                });
                let products = products.collect();
                self.multiply(products, self.layer, steps);
            }
            Task::Bias {
                target,
                width,
                weights,
                biases,
                columns,
                runs,
            } => {
                let rows = runs.iter().map(|run| BiasRun {
                    first: run.at as i64,
                    rows: run.rows as i64,
                    bias: biases[run.expert] as i64,
                });
                let rows: Vec<BiasRun> = rows.collect();
                if rows.is_empty() {
                    return Ok(());
                }
                steps.push(self.layer.launch(&Bias {
                    values: Out::at(self.at(rank, *target)),
                    biases: In::at(self.at(rank, *weights)),
                    runs: In::at(self.table(&BiasRun::table(&rows))),
                    num_runs: rows.len() as i32,
                    columns: *width as i64,
                    first_column: columns.0 as i64,
                    bias_columns: columns.1 as i64,
                    longest: rows.iter().map(|run| run.rows).max().unwrap_or(0),
                }));
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
                let sums = ColumnSums {
                    precision: self.layer,
                    values: self.at(rank, *source),
                    width: *width,
                    columns: *columns,
                    sums: self.at(rank, *gradients),
                    accumulate: *accumulate,
                };
                self.sum_rows(rank, &sums, biases, runs, steps)?;
            }
            Task::Activation { target, elements } => {
                let values = Out::at(self.at(rank, *target));
                if *elements > 0 {
                    steps.push(self.layer.launch(&Activation {
                        values,
                        count: *elements as i64,
                        kind: RELU,
                    }));
                }
            }
            Task::ActivationGradient {
                target,
                width,
                activations,
            } => {
                let runs = activations.iter().map(|copy| SavedRun {
                    saved: self.at(copy.rank, copy.buffer) as i64
                        + (copy.from * width) as i64 * self.size(),
                    at: (copy.to * width) as i64,
                    elements: (copy.rows * width) as i64,
                });
                let runs: Vec<SavedRun> = runs.collect();
                if runs.is_empty() {
                    return Ok(());
                }
                steps.push(self.layer.launch(&ActivationGradient {
                    gradient: Out::at(self.at(rank, *target)),
                    runs: In::at(self.table(&SavedRun::table(&runs))),
                    num_runs: runs.len() as i32,
                    kind: RELU,
                    longest: runs.iter().map(|run| run.elements).max().unwrap_or(0),
                }));
            }
            Task::Copy {
                target,
                width,
                copies,
            }
            | Task::Pull {
                target,
                width,
                copies,
            } => {
                let target = self.at(rank, *target);
                let runs = self.pulled(rank, target, *width, copies);
                self.copy(target, runs, steps);
            }
            Task::PullSum { target, copies } => {
                let from: Vec<Vec<i64>> = copies
                    .iter()
                    .map(|of_rank| self.gathered(rank, of_rank))
                    .collect();
                let parts = copies.first().into_iter().flatten().enumerate();
                let sums = parts.map(|(part, here)| {
                    let sources = from.iter().map(|of_rank| of_rank[part]);
                    (here.to as i64, here.rows as i64, sources.collect())
                });
                let sums: Vec<Sum> = sums.collect();
                let target = self.at(rank, *target);
                self.sum(target, &sums, steps);
            }
            Task::Repeat {
                target,
                width,
                blocks,
                copies,
            } => {
                let (target, size) = (self.at(rank, *target), self.size());
                let (staging, bytes) = self.staging(rank, *width, blocks)?;
                steps.push(Step::Copy {
                    to: staging,
                    from: target,
                    bytes,
                });
                let (mut runs, mut start) = (Vec::new(), 0);
                for rows in blocks {
                    let len = rows * width;
                    runs.extend((0..*copies).filter(|_| len > 0).map(|copy| CopyRun {
                        source: staging as i64 + size * start as i64,
                        at: size * (start * copies + copy * len) as i64,
                        bytes: size * len as i64,
                    }));
                    start += len;
                }
                self.copy(target, runs, steps);
            }
            Task::LocalSum {
                target,
                width,
                blocks,
                copies,
            } => {
                let (target, size) = (self.at(rank, *target), self.size());
                let (staging, bytes) = self.staging(rank, *width, blocks)?;
                let (mut sums, mut start) = (Vec::new(), 0);
                for rows in blocks {
                    let len = rows * width;
                    let source =
                        |copy: usize| target as i64 + size * (start * copies + copy * len) as i64;
                    sums.push((start as i64, len as i64, (0..*copies).map(source).collect()));
                    start += len;
                }
                self.sum(staging, &sums, steps);
                steps.push(Step::Copy {
                    to: target,
                    from: staging,
                    bytes,
                });
            }
        }
        debug_assert!(choices > 0, "a layer has tokens");
        Ok(())
    }
}
