//! The CUDA backend: all ranks of a layer on one GPU, each with streams and buffers of its own.
//!
//! Libraries are opened at run time. [`Cuda::probe`] says what is missing where one is; nothing else of moeplan needs
//! any of them to build, test or run.

mod blas;
mod compiler;
mod cosine;
mod count;
mod device;
mod gate;
mod lists;
mod memory;
mod plan;
mod sharing;
mod streams;

use crate::ExecError;
use crate::assign::Assignment;
use crate::backend::{Backend, Job, Ran, RankOutputs};
use crate::cosine::CosineLayout;
use crate::inputs::Inputs;
use crate::lower::Lowered;
use crate::number::{from_bytes, rounded, to_bytes};
use crate::task::Count;
use blas::Precision;
use compiler::Compiler;
use cosine::{Cosine, Part};
use device::Device;
use memory::{Extra, Memory};
use moeplan_kernels::{
    Arguments as _, CastFromFloat, GateSoftmax, GateTopK, In, Module, Out, Product, Real,
};
use moeplan_sim::ir::BufferId;
use moeplan_sim::spec::{DType, ResolvedLayer};
use moeplan_traces::TokenStep;
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

const LOOKED_FOR: &str = "libcuda.so of NVIDIA's driver, a GPU, libnvrtc.so of CUDA 12";

/// Choices of a user.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Number of the GPU.
    pub ordinal: usize,
    /// Where compiled kernels are kept from run to run; nowhere if absent.
    pub cache: Option<PathBuf>,
    /// Whether products take the tiled kernel even where cuBLAS is there.
    pub without_blas: bool,
    /// Whether all ranks share one stream, so that each operation is timed alone. Otherwise ranks run at once,
    /// and slow each other down as they share the GPU.
    pub ranks_apart: bool,
    /// Whether every buffer has an allocation of its own, in which a stray access shows; otherwise buffers that are never
    /// alive at once share memory.
    pub buffers_apart: bool,
}

/// One GPU that plays all ranks.
pub struct Cuda {
    device: Device,
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

/// Whether the driver's and NVRTC's libraries are there; cudarc panics if they are used and are not.
#[allow(unsafe_code, reason = "opening a library runs its initialisers")]
fn libraries() -> (bool, bool) {
    // SAFETY: NVIDIA's libraries may be opened and closed at any time.
    unsafe {
        (
            cudarc::driver::sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
        )
    }
}

impl Cuda {
    /// The backend, or why there is none.
    ///
    /// # Errors
    /// What is missing on this machine.
    pub fn probe(settings: Settings) -> Result<Cuda, Unavailable> {
        let missing = |missing: String| Unavailable {
            missing,
            looked_for: LOOKED_FOR,
        };
        let (driver, nvrtc) = libraries();
        if !driver {
            return Err(missing("libcuda.so is not on this machine".into()));
        }
        if !nvrtc {
            return Err(missing("libnvrtc.so is not on this machine".into()));
        }
        let compiler = Compiler::new(settings.cache.clone());
        let device =
            Device::new(settings.ordinal, compiler, !settings.without_blas).map_err(|error| {
                missing(device::refused(&format!("GPU {}", settings.ordinal), error).to_string())
            })?;
        let (name, arch) = device
            .describe()
            .map_err(|error| missing(error.to_string()))?;
        Ok(Cuda {
            device,
            settings,
            name: format!("{name}, sm_{arch}"),
        })
    }

    /// Name and architecture of the GPU.
    pub fn device_name(&self) -> &str {
        &self.name
    }

    /// Whether products go through cuBLAS.
    pub fn has_blas(&self) -> bool {
        self.device.blas.is_some()
    }

    /// Compiles and loads the kernels of a number type, and the gate's.
    fn prepare(&mut self, real: Real) -> Result<(), ExecError> {
        for real in [Real::F32, real] {
            for &module in Module::ALL {
                if module.reals().contains(&real) {
                    self.device.prepare(module, real)?;
                }
            }
        }
        Ok(())
    }

    fn fetch(
        &self,
        lowered: &Lowered,
        memory: &Memory,
        rank: usize,
        buffer: BufferId,
    ) -> Result<Vec<f32>, ExecError> {
        let at = memory.at(&self.device, rank, buffer);
        let stream = &self.device.setup;
        let bytes = self
            .device
            .download(stream, at, memory.bytes(rank, buffer))?;
        let dtype = lowered.buffers[buffer.0 as usize].dtype;
        Ok(from_bytes(dtype, &bytes))
    }

    fn fetch_extra(
        &self,
        memory: &Memory,
        rank: usize,
        extra: Extra,
    ) -> Result<Vec<u32>, ExecError> {
        let (at, bytes) = memory
            .known(&self.device, rank, extra)
            .ok_or_else(|| ExecError::Disagrees("a layer without a gate".into()))?;
        Ok(words(&self.device.download(
            &self.device.setup,
            at,
            bytes,
        )?))
    }

    fn outputs(
        &self,
        job: &Job<'_>,
        memory: &Memory,
        rank: usize,
    ) -> Result<RankOutputs, ExecError> {
        let (geometry, roles) = (&job.lowered.geometry, &job.lowered.roles);
        let ids = self.fetch_extra(memory, rank, Extra::Experts)?;
        let sums = self.fetch_extra(memory, rank, Extra::ScoreSums)?;
        let factors = gate::balance(&ids, geometry.tokens, geometry.experts, geometry.top_k);
        let balance_loss = sums
            .iter()
            .zip(&factors)
            .map(|(sum, factor)| f32::from_bits(*sum) * factor)
            .sum();
        let chosen = self.fetch_extra(memory, rank, Extra::Chosen)?;
        let assignment = Assignment {
            ids,
            scores: chosen.into_iter().map(f32::from_bits).collect(),
            locations: self.fetch_extra(memory, rank, Extra::Locations)?,
            counts: self.fetch_extra(memory, rank, Extra::Totals)?,
        };
        let fetch = |buffer| self.fetch(job.lowered, memory, rank, buffer);
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
        format!(
            "all ranks on one GPU, {ranks}: {}, products by {products}",
            self.name
        )
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.device.memory_bytes()
    }

    fn dtypes(&self) -> &'static [DType] {
        &DType::ALL
    }

    fn route(&mut self, layer: &ResolvedLayer, inputs: &Inputs) -> Result<TokenStep, ExecError> {
        let precision = Precision::of_gate(layer.spec.dtype);
        self.prepare(precision.real)?;
        let (t, d) = (layer.tokens() as usize, layer.spec.model_dim as usize);
        let (e, k) = (layer.num_experts as usize, layer.spec.top_k as usize);
        let device = &self.device;
        let allocate = |name: &str, bytes: usize| {
            let refused = || ExecError::Memory {
                rank: 0,
                buffer: name.into(),
                bytes: bytes as u64,
            };
            device.allocate(bytes)?.ok_or_else(refused)
        };
        let tokens = allocate("tokens", t * d * 4)?;
        let weight = allocate("gate weight", inputs.gate.len() * 4)?;
        let saved = layer.spec.gate.saved(t as u64, e as u64).unwrap_or(1);
        let directions = allocate("gate directions", saved as usize * 4)?;
        let scores = allocate("gate scores", t * e * 4)?;
        let experts = allocate("experts", t * k * 4)?;
        let table = allocate("product", 14 * 8)?;
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
        let multiply = |product: Product| {
            let stream = &device.setup;
            if let Some(blas) = &device.blas {
                return blas.multiply(stream, &[product], precision);
            }
            let words = [Product::table(&[product]), vec![0, 1]].concat();
            device.upload(device.address(&table), bytemuck::cast_slice(&words))?;
            let fallback = moeplan_kernels::Gemm {
                products: In::at(device.address(&table)),
                chains: In::at(device.address(&table) + 12 * 8),
                num_chains: 1,
                rows: product.m,
                columns: product.n,
            };
            device.launch(stream, &fallback.launch(Real::F32))
        };
        let mut ids = Vec::new();
        for (rank, tokens) in inputs.tokens.iter().enumerate() {
            // The tokens as they are stored, in the gate's fp32.
            let stored = rounded(layer.spec.dtype, tokens);
            device.upload(x, &to_bytes(DType::Fp32, &stored))?;
            let stream = &device.setup;
            for part in gate::logits([t, d, e], cosine, [x, w, s]) {
                match part {
                    Part::Multiply(product) => multiply(product)?,
                    Part::Launch(launch) => device.launch(stream, &launch)?,
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
        self.prepare(Precision::of_layer(job.program.dtype).real)?;
        let (device, lowered) = (&self.device, job.lowered);
        let (world, roles) = (job.program.world_size, &job.lowered.roles);
        let mut memory = Memory::new(device, job, self.settings.buffers_apart)?;
        for rank in 0..world {
            let put = |buffer: BufferId, values: &[f32]| {
                let dtype = lowered.buffers[buffer.0 as usize].dtype;
                device.upload(memory.at(device, rank, buffer), &to_bytes(dtype, values))
            };
            put(roles.tokens, &job.inputs.tokens[rank])?;
            put(roles.gate, &job.inputs.gate)?;
            put(roles.experts, &job.weights[rank])?;
            if let Some(backward) = roles.backward {
                put(backward.output_gradient, &job.inputs.output_gradient[rank])?;
            }
        }
        // Addresses of tables depend on where the block lies, its size does not: plan twice.
        let size = plan::plan(job, device, &mut memory, 0)?.words.len() * 8;
        let refused = || ExecError::Memory {
            rank: 0,
            buffer: "tables".into(),
            bytes: size as u64,
        };
        let block = device.allocate(size)?.ok_or_else(refused)?;
        let planned = plan::plan(job, device, &mut memory, device.address(&block))?;
        device.upload(device.address(&block), bytemuck::cast_slice(&planned.words))?;

        let shared = self
            .settings
            .ranks_apart
            .then(|| device.stream())
            .transpose()?;
        let lane = |_| Lane::new(device, shared.as_ref());
        let lanes: Vec<Lane> = (0..world).map(lane).collect::<Result<_, _>>()?;
        let times = streams::play(device, job, &memory, &lanes, &planned)?;
        let outputs = (0..world)
            .map(|rank| self.outputs(job, &memory, rank))
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
