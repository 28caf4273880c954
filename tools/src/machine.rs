//! Runs steps on this machine, and what this machine is.

use crate::error::{Error, Place};
use crate::settings::{BackendKind, ExecuteSettings};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::cuda::Cuda;
use moeplan_executor::{Backend, Executed, Inputs, execute};
use moeplan_sim::ir::Program;
use moeplan_sim::spec::ResolvedLayer;
use moeplan_sim::units::Time;
use moeplan_traces::TokenStep;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// How GPUs are used.
#[derive(Debug, Clone, Copy)]
pub struct Gpus {
    /// How many.
    pub devices: NonZeroUsize,
    /// Whether the ranks run one after the other, on one GPU.
    pub ranks_apart: bool,
}

impl Gpus {
    /// As `settings` have them; `place` is where they state the devices.
    ///
    /// # Errors
    /// Several devices for the CPU backend.
    pub fn new(settings: &ExecuteSettings, ranks_apart: bool, place: Place) -> Result<Gpus, Error> {
        let devices = settings.devices.unwrap_or(NonZeroUsize::MIN);
        if settings.backend.unwrap_or_default() == BackendKind::Cpu && devices.get() > 1 {
            let message = format!("expected 1, or --backend cuda, found {devices}");
            return Err(Error::input(place, message));
        }
        Ok(Gpus {
            devices,
            ranks_apart,
        })
    }
}

/// The backend `kind`.
///
/// # Errors
/// A part of the machine that is missing, by name.
pub fn backend(kind: BackendKind, gpus: Gpus) -> Result<Box<dyn Backend>, Error> {
    match kind {
        BackendKind::Cpu => Ok(Box::new(Cpu::new())),
        BackendKind::Cuda => Ok(Box::new(cuda(gpus)?)),
    }
}

/// The CUDA backend.
///
/// # Errors
/// A part of the machine that is missing, by name.
pub fn cuda(gpus: Gpus) -> Result<Cuda, Error> {
    Cuda::probe(cuda_settings(gpus)).map_err(|why| Error::Missing(format!("--backend cuda: {why}")))
}

/// Compiled kernels are kept where the user's caches are.
fn cuda_settings(gpus: Gpus) -> moeplan_executor::cuda::Settings {
    let caches = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    moeplan_executor::cuda::Settings {
        cache: caches
            .or_else(home)
            .map(|caches| caches.join("moeplan/kernels")),
        devices: gpus.devices,
        ranks_apart: gpus.ranks_apart,
        ..Default::default()
    }
}

/// Cores that threads of this process may run on.
pub fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64)
}

/// A field of `/proc/meminfo`, in bytes; unknown where there is no such file.
fn memory(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Memory that ranks of `backend` share; unlimited where the machine does not say.
pub fn memory_bytes(backend: &dyn Backend) -> u64 {
    let host = || memory("MemTotal:");
    backend.memory_bytes().or_else(host).unwrap_or(u64::MAX)
}

/// One line that names the processor.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned());
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Fails where `program` cannot fit this machine, before anything is allocated.
///
/// # Errors
/// Memory that is not there.
pub fn check_memory(
    backend: &dyn Backend,
    program: &Program,
    layer: &ResolvedLayer,
) -> Result<(), Error> {
    let ranks = 0..program.world_size;
    let buffers: u64 = ranks
        .map(|rank| program.peak_memory(rank).0)
        .fold(0, u64::saturating_add);
    // Beside the buffers: inputs of all ranks, their weights twice, and the gathered gradients.
    let spec = &layer.spec;
    let product = |sizes: &[u64]| {
        sizes
            .iter()
            .fold(4_u64, |all, size| all.saturating_mul(*size))
    };
    let tokens = product(&[2, layer.world_size, layer.tokens(), spec.model_dim]);
    let weights = product(&[6, layer.num_experts, spec.model_dim, spec.hidden_dim]);
    let on_host = tokens.saturating_add(weights);
    let available = memory("MemAvailable:").unwrap_or(u64::MAX);
    match backend.memory_bytes() {
        None => fits(
            buffers.saturating_add(on_host),
            available,
            "of memory available",
        ),
        Some(device) => {
            fits(buffers, device, "of GPU memory")?;
            fits(on_host, available, "of memory available")
        }
    }
}

fn fits(needed: u64, there: u64, of: &str) -> Result<(), Error> {
    if needed <= there {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    let message = format!(
        "expected a step that fits the {:.1} GiB {of}, found one of {:.1} GiB: fewer ranks or tokens, or smaller \
         dimensions",
        gib(there),
        gib(needed)
    );
    Err(Error::input(Place::flag("--ranks"), message))
}

/// A step that was run several times.
#[derive(Debug)]
pub struct Repeated {
    /// The run of the median step time.
    pub median: Executed,
    /// Step times, ascending.
    pub times: Vec<Time>,
}

/// Runs `program` once to warm up and `repeats` times in earnest.
///
/// # Errors
/// As [`execute`].
pub fn repeat(
    backend: &mut dyn Backend,
    program: &Program,
    layer: &ResolvedLayer,
    inputs: &Inputs,
    tokens: &TokenStep,
    repeats: usize,
) -> Result<Repeated, Error> {
    let mut runs = Vec::new();
    execute(program, layer, backend, inputs, tokens)?;
    for _ in 0..repeats.max(1) {
        let run = execute(program, layer, backend, inputs, tokens)?;
        runs.push((run.timeline.step_time(), run));
    }
    runs.sort_by_key(|(time, _)| *time);
    let times = runs.iter().map(|(time, _)| *time).collect();
    let (_, median) = runs.swap_remove(runs.len() / 2);
    Ok(Repeated { median, times })
}
