//! The CUDA backend: the ranks of a layer on one GPU or on several, each with streams and buffers of its own.
//!
//! Libraries are opened at run time. [`Cuda::probe`] says what is missing where one is; nothing else of moeplan needs
//! any of them to build, test or run.

mod blas;
mod column_sums;
mod compiler;
mod cosine;
mod count;
mod device;
mod gate;
mod gpus;
mod lists;
mod memory;
mod nccl;
mod plan;
mod sharing;
mod streams;
mod wires;

use crate::ExecError;
use crate::assign::Assignment;
use crate::backend::{Backend, Job, Ran, RankOutputs};
use crate::cosine::CosineLayout;
use crate::inputs::Inputs;
use crate::lower::Lowered;
use crate::memory::Allocation;
use crate::number::{from_bytes, rounded, to_bytes};
use crate::task::Count;
use blas::Precision;
use cosine::{Cosine, Part};
use cudarc::driver::CudaSlice;
use device::Device;
use gpus::{Dealt, Gpus};
use memory::{Extra, Memory};
use moeplan_kernels::{
    Arguments as _, CastFromFloat, GateSoftmax, GateTopK, In, Out, Product, Real,
};
use moeplan_sim::ir::BufferId;
use moeplan_sim::spec::{DType, ResolvedLayer};
use moeplan_traces::TokenStep;
use plan::Blocks;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use streams::{Lane, words};

/// What the backend needs and this machine lacks, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no CUDA backend: {missing} (looked for {looked_for})")]
pub struct Unavailable {
    /// What is missing, and why it is thought so.
    pub missing: String,
    /// What was looked for, in this order.
    pub looked_for: &'static str,
}

/// Choices of a user.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Number of the first GPU.
    pub ordinal: usize,
    /// How many GPUs from there on. Each has a contiguous block of the ranks.
    pub devices: NonZeroUsize,
    /// Where compiled kernels are kept from run to run; nowhere if absent.
    pub cache: Option<PathBuf>,
    /// Whether products take the tiled kernel even where cuBLAS is there.
    pub without_blas: bool,
    /// Whether all ranks share one stream, so that each operation is timed alone. Otherwise ranks run at once,
    /// and slow each other down as they share the GPU. Only on one.
    pub ranks_apart: bool,
    /// Whether every buffer has an allocation of its own, in which a stray access shows; otherwise buffers that are never
    /// alive at once share memory.
    pub buffers_apart: bool,
}

impl Default for Settings {
    /// The first GPU, and whatever is on the machine.
    fn default() -> Settings {
        Settings {
            ordinal: 0,
            devices: NonZeroUsize::MIN,
            cache: None,
            without_blas: false,
            ranks_apart: false,
            buffers_apart: false,
        }
    }
}

/// GPUs that play all ranks.
pub struct Cuda {
    gpus: Gpus,
    settings: Settings,
    name: String,
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuda")
            .field("name", &self.name)
            .field("settings", &self.settings)
            .finish()
    }
}

impl Cuda {
    /// The backend, or why there is none.
    ///
    /// # Errors
    /// What is missing on this machine.
    pub fn probe(settings: Settings) -> Result<Cuda, Unavailable> {
        let gpus = Gpus::open(&settings)?;
        let (name, arch) = gpus.first().describe().map_err(|error| Unavailable {
            missing: error.to_string(),
            looked_for: "properties of the GPU",
        })?;
        Ok(Cuda {
            gpus,
            settings,
            name: format!("{name}, sm_{arch}"),
        })
    }

    /// Name and architecture of the GPU, of the first one where there are several.
    pub fn device_name(&self) -> &str {
        &self.name
    }

    /// Streaming multiprocessors of the first GPU; `None` where it does not say.
    pub fn multiprocessors(&self) -> Option<u32> {
        self.gpus.first().multiprocessors()
    }

    /// Whether products go through cuBLAS.
    pub fn has_blas(&self) -> bool {
        self.gpus.all().iter().all(Device::has_blas)
    }

    fn fetch(
        device: &Device,
        lowered: &Lowered,
        memory: &Memory,
        rank: usize,
        buffer: BufferId,
    ) -> Result<Vec<f32>, ExecError> {
        let at = memory.at(rank, buffer);
        let bytes = device.download(&device.setup, at, memory.bytes(rank, buffer))?;
        let dtype = lowered.buffers[buffer.0 as usize].dtype;
        Ok(from_bytes(dtype, &bytes))
    }

    fn fetch_extra(
        device: &Device,
        memory: &Memory,
        rank: usize,
        extra: Extra,
    ) -> Result<Vec<u32>, ExecError> {
        let place = memory
            .known(rank, extra)
            .ok_or_else(|| ExecError::Disagrees("a layer without a gate".into()))?;
        let bytes = device.download(&device.setup, place.at, place.bytes)?;
        Ok(words(&bytes))
    }

    fn outputs(
        device: &Device,
        job: &Job<'_>,
        memory: &Memory,
        rank: usize,
    ) -> Result<RankOutputs, ExecError> {
        let (geometry, roles) = (&job.lowered.geometry, &job.lowered.roles);
        let ids = Self::fetch_extra(device, memory, rank, Extra::Experts)?;
        let sums = Self::fetch_extra(device, memory, rank, Extra::ScoreSums)?;
        let factors = gate::balance(&ids, geometry.tokens, geometry.experts, geometry.top_k);
        let balance_loss = sums
            .iter()
            .zip(&factors)
            .map(|(sum, factor)| f32::from_bits(*sum) * factor)
            .sum();
        let chosen = Self::fetch_extra(device, memory, rank, Extra::Chosen)?;
        let assignment = Assignment {
            ids,
            scores: chosen.into_iter().map(f32::from_bits).collect(),
            locations: Self::fetch_extra(device, memory, rank, Extra::Locations)?,
            counts: Self::fetch_extra(device, memory, rank, Extra::Totals)?,
        };
        let fetch = |buffer| Self::fetch(device, job.lowered, memory, rank, buffer);
        let mut outputs = RankOutputs {
            output: fetch(roles.output)?,
            assignment,
            balance_loss,
            ..RankOutputs::default()
        };
        if let Some(backward) = roles.backward {
            outputs.token_gradient = fetch(backward.token_gradient)?;
            outputs.gate_gradient = fetch(backward.gate_gradient)?;
            outputs.expert_gradient = fetch(backward.expert_gradient)?;
            outputs.score_gradient = fetch(backward.score_gradient)?;
            outputs
                .score_gradient
                .truncate(geometry.tokens * geometry.top_k);
        }
        Ok(outputs)
    }
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn place(&self) -> String {
        let products = match self.has_blas() {
            true => "cuBLAS",
            false => "our own kernel",
        };
        let ranks = match self.settings.ranks_apart {
            true => "one after the other",
            false => "at once",
        };
        let name = &self.name;
        match self.settings.devices.get() {
            1 => format!("all ranks on one GPU, {ranks}: {name}, products by {products}"),
            several => {
                format!("ranks on {several} GPUs joined by NCCL: {name}, products by {products}")
            }
        }
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.gpus.all().iter().map(Device::memory_bytes).sum()
    }

    fn allocation(&self) -> Allocation {
        Allocation::Ahead
    }

    fn dtypes(&self) -> &'static [DType] {
        &DType::ALL
    }

    fn route(&mut self, layer: &ResolvedLayer, inputs: &Inputs) -> Result<TokenStep, ExecError> {
        let precision = Precision::of_gate(layer.spec.dtype);
        self.gpus.prepare(precision.real)?;
        let (t, d) = (layer.tokens() as usize, layer.spec.model_dim as usize);
        let (e, k) = (layer.num_experts as usize, layer.spec.top_k as usize);
        let device = self.gpus.first();
        let allocate = |name: &str, bytes: usize| memory::allocate(device, 0, name, bytes);
        let tokens = allocate("tokens", t * d * 4)?;
        let weight = allocate("gate weight", inputs.gate.len() * 4)?;
        let saved = layer.spec.gate.saved(t as u64, e as u64).unwrap_or(1);
        let directions = allocate("gate directions", saved as usize * 4)?;
        let scores = allocate("gate scores", t * e * 4)?;
        let experts = allocate("experts", t * k * 4)?;
        let noise = allocate("gate noise", t * e * 4)?;
        let gate = to_bytes(DType::Fp32, &inputs.gate);
        device.upload(device.address(&weight), &gate)?;
        let [x, w, s] = [&tokens, &weight, &scores].map(|slice| device.address(slice));
        let (num_tokens, num_experts, top_k) = (t as i64, e as i32, k as i32);
        let cosine = CosineLayout::new(layer.spec.gate, t, d, e).map(|layout| Cosine {
            layout,
            weights: w,
            directions: device.address(&directions),
        });
        // The same for every rank. What a launch reads that multiplies where cuBLAS is absent lies in `table`.
        let parts = gate::logits([t, d, e], cosine, [x, w, s]);
        let table = allocate("products", parts.len() * 14 * 8)?;
        let mut words: Vec<i64> = Vec::new();
        let mut steps = Vec::new();
        for part in parts {
            steps.push(match part {
                Part::Launch(launch) => (None, launch),
                Part::Multiply(product) => {
                    let at = device.address(&table) + 8 * words.len() as u64;
                    words.extend(Product::table(&[product]));
                    words.extend([0, 1]);
                    let fallback = moeplan_kernels::Gemm {
                        products: In::at(at),
                        chains: In::at(at + 12 * 8),
                        num_chains: 1,
                        rows: product.m,
                        columns: product.n,
                    };
                    (Some(product), fallback.launch(Real::F32))
                }
            });
        }
        device.upload(device.address(&table), bytemuck::cast_slice(&words))?;
        let mut ids = Vec::new();
        for (rank, tokens) in inputs.tokens.iter().enumerate() {
            // The tokens as they are stored, in the gate's fp32.
            let stored = rounded(layer.spec.dtype, tokens);
            device.upload(x, &to_bytes(DType::Fp32, &stored))?;
            let stream = &device.setup;
            for (product, launch) in &steps {
                match product {
                    Some(product) => {
                        device.multiply(stream, None, &[*product], precision, launch)?;
                    }
                    None => device.launch(stream, launch)?,
                }
            }
            if let Some(values) = inputs.noise(rank) {
                let from = device.address(&noise);
                device.upload(from, &to_bytes(DType::Fp32, values))?;
                let add = CastFromFloat {
                    from: In::at(from),
                    to: Out::at(s),
                    count: (t * e) as i64,
                    accumulate: true,
                };
                device.launch(stream, &add.launch(Real::F32))?;
            }
            let softmax = GateSoftmax {
                logits: In::at(s),
                scores: Out::at(s),
                num_tokens,
                num_experts,
            };
            device.launch(stream, &softmax.launch(Real::F32))?;
            let experts = device.address(&experts);
            let choose = GateTopK {
                scores: In::at(s),
                experts: Out::at(experts),
                num_tokens,
                num_experts,
                top_k,
            };
            device.launch(stream, &choose.launch(Real::F32))?;
            ids.extend(self::words(&device.download(stream, experts, t * k * 4)?));
        }
        let counts = vec![t; inputs.tokens.len()];
        TokenStep::new(0, 0, layer.spec.top_k, e, &counts, ids, None)
            .map_err(|error| ExecError::Disagrees(error.to_string()))
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Ran, ExecError> {
        self.gpus
            .prepare(Precision::of_layer(job.program.dtype).real)?;
        let lowered = job.lowered;
        let (world, roles) = (job.program.world_size, &lowered.roles);
        let dealt = self.gpus.deal(world)?;
        let mut memory = Memory::new(dealt, job, self.settings.buffers_apart)?;
        for rank in 0..world {
            let put = |buffer: BufferId, values: &[f32]| {
                let dtype = lowered.buffers[buffer.0 as usize].dtype;
                let bytes = to_bytes(dtype, values);
                dealt.of(rank).upload(memory.at(rank, buffer), &bytes)
            };
            put(roles.tokens, &job.inputs.tokens[rank])?;
            put(roles.gate, &job.inputs.gate)?;
            put(roles.experts, &job.weights[rank])?;
            if let Some(backward) = roles.backward {
                put(backward.output_gradient, &job.inputs.output_gradient[rank])?;
            }
        }
        // Addresses that a plan contains depend on where its blocks lie, their sizes do not: plan twice.
        let sizes = plan::plan(job, dealt, &mut memory, &Blocks::none(dealt))?;
        let (blocks, _tables) = allocate(dealt, &mut memory, &sizes)?;
        let plan = plan::plan(job, dealt, &mut memory, &blocks)?;
        for (device, (at, words)) in self
            .gpus
            .all()
            .iter()
            .zip(blocks.tables.iter().zip(&plan.tables))
        {
            device.upload(*at, bytemuck::cast_slice(words))?;
        }

        let lanes = Lane::of_ranks(dealt, self.settings.ranks_apart)?;
        let times = streams::play(dealt, job, &memory, &lanes, &plan)?;
        let outputs = (0..world)
            .map(|rank| Self::outputs(dealt.of(rank), job, &memory, rank))
            .collect::<Result<Vec<_>, _>>()?;
        let count = |tasks: &Vec<Vec<crate::task::Task>>| -> Vec<Count> {
            let ranks = tasks.iter().zip(&outputs).enumerate();
            ranks
                .map(|(rank, (tasks, outputs))| {
                    let mut sum = Count::default();
                    for task in tasks {
                        sum += count::count(job, rank, task, &outputs.assignment);
                    }
                    sum
                })
                .collect()
        };
        Ok(Ran {
            timeline: times.timeline,
            busy: times.busy,
            counts: lowered.tasks.iter().map(count).collect(),
            peak_bytes: (0..world).map(|rank| memory.total(rank)).collect(),
            outputs,
        })
    }
}

/// Blocks for what a plan made up, and what keeps the tables.
fn allocate(
    dealt: Dealt<'_>,
    memory: &mut Memory,
    plan: &plan::Plan,
) -> Result<(Blocks, Vec<CudaSlice<u8>>), ExecError> {
    let mut blocks = Blocks::none(dealt);
    let mut tables = Vec::new();
    for (device, rank) in dealt.first_ranks().enumerate() {
        let bytes = plan.tables[device].len() * 8;
        let table = memory::allocate(dealt.of(rank), rank, "tables", bytes)?;
        blocks.tables[device] = dealt.of(rank).address(&table);
        tables.push(table);
    }
    for (rank, addresses) in blocks.boxes.iter_mut().enumerate() {
        for (side, extra) in [Extra::Inbox, Extra::Outbox].into_iter().enumerate() {
            let of_ops = plan.ops.iter().map(|op| op.wires.boxes(rank)[side]);
            let bytes = of_ops.max().unwrap_or(0);
            if bytes > 0 {
                addresses[side] = memory.extra(dealt.of(rank), rank, extra, bytes)?;
            }
        }
    }
    Ok((blocks, tables))
}
