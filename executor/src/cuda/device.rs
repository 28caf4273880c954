//! One GPU: the driver, NVRTC and cuBLAS behind safe functions.
//!
//! A call works on the context that is current. cudarc's own calls make theirs current; so must ours, as there may be several.
#![allow(unsafe_code, reason = "launches and copies by device address")]

use super::blas::{Blas, Precision};
use super::compiler::Compiler;
use super::memory::allocate;
use crate::ExecError;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaSlice, CudaStream, DriverError, PinnedHostSlice,
    PushKernelArg, result,
    sys::{self, CUevent_flags::CU_EVENT_DEFAULT},
};
use moeplan_kernels::{Arg, Launch, Module, Product, Real};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Page-locked memory that copies of any size go through, part by part.
const STAGING_BYTES: usize = 16 << 20;

/// What cuBLAS is given for a stream: NVIDIA's advice for Hopper, the most that any GPU asks for.
const WORKSPACE_BYTES: usize = 32 << 20;

/// One GPU.
pub(super) struct Device {
    context: Arc<CudaContext>,
    /// Entry points that were loaded.
    functions: BTreeMap<&'static str, CudaFunction>,
    /// `None` where cuBLAS is absent: then the tiled kernel multiplies.
    blas: Option<Blas>,
    staging: RefCell<PinnedHostSlice<u8>>,
    /// For everything outside a step.
    pub(super) setup: Arc<CudaStream>,
}

impl Drop for Device {
    fn drop(&mut self) {
        // cuBLAS releases what its handle has on the current device.
        let _ = self.current();
    }
}

/// What the driver answered.
pub(super) fn refused(what: &str, error: DriverError) -> ExecError {
    let name = error.error_name().ok();
    let name = name
        .and_then(|name| name.to_str().ok())
        .unwrap_or("unknown error");
    ExecError::Device(format!("{what}: {name}"))
}

impl Device {
    /// The GPU of that number.
    pub(super) fn new(ordinal: usize, use_blas: bool) -> Result<Device, DriverError> {
        let context = CudaContext::new(ordinal)?;
        // SAFETY: no slice is used on another stream than the step's own events order it for. cudarc's
        // tracking would add an event pair a launch, and would hide a dependency that the program lacks.
        unsafe { context.disable_event_tracking() };
        let setup = context.new_stream()?;
        let blas = if use_blas { Blas::new() } else { None };
        // SAFETY: bytes need no initialisation to be valid, and are written before they are read.
        let staging = unsafe { context.alloc_pinned_with_flags::<u8>(STAGING_BYTES, 0) }?;
        Ok(Device {
            context,
            functions: BTreeMap::new(),
            blas,
            staging: RefCell::new(staging),
            setup,
        })
    }

    /// Name, and compute capability as `80`.
    pub(super) fn describe(&self) -> Result<(String, String), ExecError> {
        let read = |error| refused("reading the device's properties", error);
        let (major, minor) = self.context.compute_capability().map_err(read)?;
        Ok((
            self.context.name().map_err(read)?,
            format!("{major}{minor}"),
        ))
    }

    /// All memory of the GPU; `None` where it does not say.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        let (_, total) = self.context.mem_get_info().ok()?;
        Some(total as u64)
    }

    /// Streaming multiprocessors; `None` where the GPU does not say.
    pub(super) fn multiprocessors(&self) -> Option<u32> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let count = self.context.attribute(attribute).ok()?;
        u32::try_from(count).ok().filter(|count| *count > 0)
    }

    /// A stream that does not synchronise with the default one.
    pub(super) fn stream(&self) -> Result<Arc<CudaStream>, ExecError> {
        self.context
            .new_stream()
            .map_err(|error| refused("creating a stream", error))
    }

    /// Device memory, not initialised; `None` where there is not enough.
    pub(super) fn allocate(&self, bytes: usize) -> Result<Option<CudaSlice<u8>>, ExecError> {
        // SAFETY: every operation writes its results before another reads them, which the program's
        // builder sees to; the host build's NaN filling and bounds checks would show if not.
        match unsafe { self.setup.alloc::<u8>(bytes) } {
            Ok(slice) => Ok(Some(slice)),
            Err(DriverError(sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(refused("allocating device memory", error)),
        }
    }

    /// Scratch of cuBLAS for one stream of `rank`; none where it is absent. With another's, or its own, which a GPU that
    /// has no room would leave it, products of streams at once may not repeat bit for bit.
    ///
    /// # Errors
    /// No room for it.
    pub(super) fn workspace(&self, rank: usize) -> Result<Option<CudaSlice<u8>>, ExecError> {
        let scratch = || allocate(self, rank, "cuBLAS workspace", WORKSPACE_BYTES);
        self.blas.is_some().then(scratch).transpose()
    }

    /// Address of an allocation.
    pub(super) fn address(&self, slice: &CudaSlice<u8>) -> u64 {
        use cudarc::driver::DevicePtr as _;
        slice.device_ptr(&self.setup).0
    }

    /// Compiles and loads a module, if it is not there.
    pub(super) fn prepare(
        &mut self,
        compiler: &mut Compiler,
        module: Module,
        real: Real,
    ) -> Result<(), ExecError> {
        let missing = |entry: &&'static str| !self.functions.contains_key(entry);
        let mut entries = module.kernels().iter().map(|kernel| kernel.entry(real));
        if !entries.any(|entry| missing(&entry)) {
            return Ok(());
        }
        let (_, arch) = self.describe()?;
        let ptx = compiler.ptx(module, real, &arch)?;
        let loading = |error| refused(&format!("loading {}", module.file()), error);
        let loaded = self
            .context
            .load_module(cudarc::nvrtc::Ptx::from_src(ptx))
            .map_err(loading)?;
        for kernel in module.kernels() {
            let entry = kernel.entry(real);
            self.functions
                .insert(entry, loaded.load_function(entry).map_err(loading)?);
        }
        Ok(())
    }

    /// Enqueues a launch.
    pub(super) fn launch(
        &self,
        stream: &Arc<CudaStream>,
        launch: &Launch,
    ) -> Result<(), ExecError> {
        let entry = launch.entry();
        let Some(function) = self.functions.get(entry) else {
            return Err(ExecError::Device(format!("{entry} was not prepared")));
        };
        let geometry = launch.geometry;
        let config = cudarc::driver::LaunchConfig {
            grid_dim: geometry.grid.into(),
            block_dim: geometry.block.into(),
            shared_mem_bytes: geometry.shared_bytes,
        };
        let mut builder = stream.launch_builder(function);
        for argument in &launch.args {
            match argument {
                Arg::Pointer(value) => builder.arg(value),
                Arg::I64(value) => builder.arg(value),
                Arg::I32(value) => builder.arg(value),
            };
        }
        // SAFETY: `Arguments` gives number, order and kinds of the parameters, which tests hold against
        // the compiled signatures; addresses and sizes come from `Memory` and the lowered program.
        unsafe { builder.launch(config) }
            .map(|_| ())
            .map_err(|error| refused(entry, error))
    }

    /// Makes this GPU the one that calls of this thread work on.
    fn current(&self) -> Result<(), DriverError> {
        self.context.bind_to_thread()
    }

    /// Enqueues products: through cuBLAS, or where it is absent the launch. Streams that run at once have a `workspace` of
    /// their own, or cuBLAS might not give the same bits again.
    pub(super) fn multiply(
        &self,
        stream: &Arc<CudaStream>,
        workspace: Option<&CudaSlice<u8>>,
        products: &[Product],
        precision: Precision,
        fallback: &Launch,
    ) -> Result<(), ExecError> {
        self.current()
            .map_err(|error| refused("a matrix product", error))?;
        match &self.blas {
            Some(blas) => {
                let workspace = workspace.map(|slice| (self.address(slice), slice.len()));
                blas.multiply(stream, workspace, products, precision)
            }
            None => self.launch(stream, fallback),
        }
    }

    /// Enqueues zeros.
    pub(super) fn zero(&self, stream: &CudaStream, at: u64, bytes: usize) -> Result<(), ExecError> {
        // SAFETY: the range lies in one allocation of `Memory`, which outlives the step.
        self.current()
            .and_then(|()| unsafe { result::memset_d8_async(at, 0, bytes, stream.cu_stream()) })
            .map_err(|error| refused("memset", error))
    }

    /// Enqueues a copy on the device.
    pub(super) fn copy(
        &self,
        stream: &CudaStream,
        to: u64,
        from: u64,
        bytes: usize,
    ) -> Result<(), ExecError> {
        // SAFETY: as `zero`, both ranges.
        self.current()
            .and_then(|()| unsafe {
                result::memcpy_dtod_async(to, from, bytes, stream.cu_stream())
            })
            .map_err(|error| refused("copy on the device", error))
    }

    /// Copies to the device through page-locked memory; done when it returns.
    pub(super) fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), ExecError> {
        let fail = |error| refused("copy to the device", error);
        self.current().map_err(fail)?;
        let mut staging = self.staging.borrow_mut();
        for (part, at) in bytes
            .chunks(STAGING_BYTES)
            .zip((to..).step_by(STAGING_BYTES))
        {
            staging.as_mut_slice().map_err(fail)?[..part.len()].copy_from_slice(part);
            let staged = &staging.as_slice().map_err(fail)?[..part.len()];
            // SAFETY: the target lies in one allocation; the staging memory is not touched until the stream is done.
            unsafe { result::memcpy_htod_async(at, staged, self.setup.cu_stream()) }
                .map_err(fail)?;
            self.setup.synchronize().map_err(fail)?;
        }
        Ok(())
    }

    /// Copies from the device through page-locked memory, after what `stream` holds.
    pub(super) fn download(
        &self,
        stream: &CudaStream,
        from: u64,
        bytes: usize,
    ) -> Result<Vec<u8>, ExecError> {
        let fail = |error| refused("copy from the device", error);
        self.current().map_err(fail)?;
        let mut staging = self.staging.borrow_mut();
        let mut all = Vec::with_capacity(bytes);
        while all.len() < bytes {
            let part = STAGING_BYTES.min(bytes - all.len());
            let target = &mut staging.as_mut_slice().map_err(fail)?[..part];
            let at = from + all.len() as u64;
            // SAFETY: the source lies in one allocation; the staging memory is not touched until the stream is done.
            unsafe { result::memcpy_dtoh_async(target, at, stream.cu_stream()) }.map_err(fail)?;
            stream.synchronize().map_err(fail)?;
            all.extend_from_slice(&staging.as_slice().map_err(fail)?[..part]);
        }
        Ok(all)
    }

    /// Whether products go through cuBLAS.
    pub(super) fn has_blas(&self) -> bool {
        self.blas.is_some()
    }

    /// Waits for everything.
    pub(super) fn synchronize(&self) -> Result<(), ExecError> {
        self.context
            .synchronize()
            .map_err(|error| refused("running the step", error))
    }
}

/// A new event with a time, recorded.
pub(super) fn mark(stream: &CudaStream) -> Result<CudaEvent, ExecError> {
    stream
        .record_event(Some(CU_EVENT_DEFAULT))
        .map_err(|error| refused("recording an event", error))
}
