//! Memory of GPU 0 and launches on it, by the driver and NVRTC.
//!
//! What the host build checks access by access is checked here by what is left behind: every allocation lies between
//! guards that no launch may change, and every launch runs twice on the same bytes, which a race is likely to tell apart.
#![allow(unsafe_code, reason = "launches by device address")]

use crate::memory;
use cudarc::driver::{
    CudaContext, CudaModule, CudaSlice, CudaStream, DevicePtr as _, DriverError, LaunchConfig,
    PushKernelArg as _,
};
use cudarc::nvrtc::{self, CompileError, CompileOptions};
use moeplan_kernels::{Arg, Launch, Module, Real, include_folder, nvrtc_options};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

/// Bytes of a guard: what an allocation's address is aligned to.
const GUARD: usize = 256;
/// Of a guard, over and over: NaN in every number type if a kernel reads it, and not what allocations start as.
const PATTERN: [u8; 2] = [0xfe, 0xff];

/// A module for a number type, compiled and loaded once.
type Loaded = Arc<OnceLock<Result<Arc<CudaModule>, String>>>;

/// The GPU that all tests share.
struct Gpu {
    context: Arc<CudaContext>,
    /// Compute capability as `90`.
    arch: String,
    modules: Mutex<BTreeMap<(Module, Real), Loaded>>,
}

static GPU: LazyLock<Result<Gpu, String>> = LazyLock::new(Gpu::open);

/// The GPU; fails the test where there is none.
fn gpu() -> &'static Gpu {
    GPU.as_ref().unwrap_or_else(|missing| panic!("{missing}"))
}

/// Fails the test where there is no GPU.
pub(crate) fn check() {
    gpu();
}

/// What failed, and the driver's name for it. A failed launch is also what all later calls answer.
fn refused(what: &str, error: DriverError) -> String {
    let name = error.error_name().ok();
    let name = name.and_then(|name| name.to_str().ok());
    format!("{what}: {}", name.unwrap_or("unknown error"))
}

/// The driver's answer; a refusal fails the test.
fn told<T>(what: &str, answer: Result<T, DriverError>) -> T {
    answer.unwrap_or_else(|error| panic!("{}", refused(what, error)))
}

impl Gpu {
    fn open() -> Result<Gpu, String> {
        // SAFETY: NVIDIA's libraries run nothing but their own initialisers when they are opened.
        let present = unsafe {
            [
                ("libcuda.so", cudarc::driver::sys::is_culib_present()),
                (
                    "libnvrtc.so (or .so.12)",
                    cudarc::nvrtc::sys::is_culib_present(),
                ),
            ]
        };
        if let Some((library, _)) = present.iter().find(|(_, present)| !present) {
            return Err(format!(
                "MOEPLAN_KERNELS_ON=gpu, but {library} is not on the library path"
            ));
        }
        let read = |error| refused("opening GPU 0", error);
        let context = CudaContext::new(0).map_err(read)?;
        let (major, minor) = context.compute_capability().map_err(read)?;
        Ok(Gpu {
            context,
            arch: format!("{major}{minor}"),
            modules: Mutex::default(),
        })
    }

    /// Only tests that need the very same module wait for each other.
    fn module(&self, module: Module, real: Real) -> Result<Arc<CudaModule>, String> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = modules.entry((module, real)).or_default().clone();
        drop(modules);
        loaded.get_or_init(|| self.load(module, real)).clone()
    }

    fn load(&self, module: Module, real: Real) -> Result<Arc<CudaModule>, String> {
        let include = match real {
            Real::F32 => None,
            Real::F16 | Real::Bf16 => {
                let missing = "cuda_fp16.h was not found: set CUDA_HOME to a CUDA toolkit";
                Some(include_folder().ok_or(missing)?)
            }
        };
        let options = CompileOptions {
            options: nvrtc_options(&self.arch, real, include.as_deref()),
            ..CompileOptions::default()
        };
        let ptx = nvrtc::compile_ptx_with_opts(module.source(), options).map_err(|error| {
            let why = match error {
                CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
                other => other.to_string(),
            };
            format!("{} does not compile:\n{why}", module.file())
        })?;
        let loading = |error| refused(&format!("loading {}", module.file()), error);
        self.context.load_module(ptx).map_err(loading)
    }
}

/// An allocation between its guards.
struct Buffer {
    slice: CudaSlice<u8>,
    /// Behind the first guard.
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// What a launch wrote beside the allocation, by all that is there now.
    fn overrun(&self, content: &[u8]) -> Option<String> {
        let inside = GUARD..GUARD + self.bytes;
        let kept = guarded(&content[inside.clone()]);
        let at = content.iter().zip(&kept).position(|(is, was)| is != was)?;
        Some(match at.checked_sub(inside.end) {
            Some(past) => format!("{past} bytes past the end of {}", self.bytes),
            None => format!("{} bytes before the start", GUARD - at),
        })
    }
}

/// These bytes between two guards.
fn guarded(bytes: &[u8]) -> Vec<u8> {
    let pattern = PATTERN.iter().copied().cycle();
    let mut all: Vec<u8> = pattern.take(GUARD + bytes.len() + GUARD).collect();
    all[GUARD..][..bytes.len()].copy_from_slice(bytes);
    all
}

/// Memory of the GPU that one test uses, and its stream.
pub(crate) struct Memory {
    stream: Arc<CudaStream>,
    buffers: Vec<Buffer>,
}

impl Default for Memory {
    fn default() -> Memory {
        let context = &gpu().context;
        told("a context", context.bind_to_thread());
        Memory {
            stream: told("a stream", context.new_stream()),
            buffers: Vec::new(),
        }
    }
}

impl Memory {
    /// Which allocation starts at `address`.
    fn find(&self, address: u64) -> usize {
        let mut buffers = self.buffers.iter();
        let found = buffers.position(|buffer| buffer.address == address);
        found.expect("an address that `allocate` returned")
    }

    /// An allocation's bytes, guards included.
    fn download(&self, buffer: &Buffer) -> Vec<u8> {
        let content = self.stream.clone_dtoh(&buffer.slice);
        let content = told("copy from the device", content);
        told("copy from the device", self.stream.synchronize());
        content
    }

    fn upload(&mut self, buffer: usize, content: &[u8]) {
        let slice = &mut self.buffers[buffer].slice;
        told(
            "copy to the device",
            self.stream.memcpy_htod(content, slice),
        );
    }

    /// Everything there is, guards included.
    fn contents(&self) -> Vec<Vec<u8>> {
        let buffers = self.buffers.iter();
        buffers.map(|buffer| self.download(buffer)).collect()
    }

    /// Launches, and waits for the end.
    fn run(&self, launch: &Launch) {
        let entry = launch.entry();
        let module = launch.kernel.module();
        let real = if module.is_plain() {
            Real::F32
        } else {
            launch.real
        };
        let module = gpu().module(module, real);
        let module = module.unwrap_or_else(|why| panic!("{why}"));
        let function = told(entry, module.load_function(entry));
        let geometry = launch.geometry;
        let config = LaunchConfig {
            grid_dim: geometry.grid.into(),
            block_dim: geometry.block.into(),
            shared_mem_bytes: geometry.shared_bytes,
        };
        let mut builder = self.stream.launch_builder(&function);
        for argument in &launch.args {
            match argument {
                Arg::Pointer(value) => builder.arg(value),
                Arg::I64(value) => builder.arg(value),
                Arg::I32(value) => builder.arg(value),
            };
        }
        // SAFETY: `Arguments` gives number, order and kinds of the parameters, which tests hold against the compiled
        // signatures. That a kernel touches its own allocations only is what is being tested, on a GPU lent for it.
        let launched = unsafe { builder.launch(config) };
        told(entry, launched.and_then(|_| self.stream.synchronize()));
    }
}

impl memory::Memory for Memory {
    fn allocate(&mut self, bytes: usize) -> u64 {
        let content = guarded(&vec![0xff; bytes]);
        let slice = told("allocating", self.stream.clone_htod(&content));
        let address = slice.device_ptr(&self.stream).0 + GUARD as u64;
        self.buffers.push(Buffer {
            slice,
            address,
            bytes,
        });
        address
    }

    fn read(&mut self, address: u64) -> Vec<u8> {
        let buffer = &self.buffers[self.find(address)];
        self.download(buffer)[GUARD..][..buffer.bytes].to_vec()
    }

    fn write(&mut self, address: u64, bytes: &[u8]) {
        let buffer = self.find(address);
        assert_eq!(self.buffers[buffer].bytes, bytes.len());
        self.upload(buffer, &guarded(bytes));
    }

    fn launch(&mut self, launch: &Launch) {
        let entry = launch.entry();
        let before = self.contents();
        self.run(launch);
        let after = self.contents();
        for (buffer, content) in self.buffers.iter().zip(&after) {
            if let Some(overrun) = buffer.overrun(content) {
                panic!("{entry}: out of bounds: wrote {overrun}");
            }
        }
        for (buffer, content) in before.iter().enumerate() {
            self.upload(buffer, content);
        }
        self.run(launch);
        let same = self.contents() == after;
        assert!(same, "{entry}: a second run on the same bytes left others");
    }
}
