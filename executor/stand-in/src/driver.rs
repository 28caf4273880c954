//! The symbols of `libcuda.so` that cudarc and the backend call.
#![allow(
    clippy::redundant_closure_call,
    reason = "the closure gives `?` a place to return to"
)]
#![allow(
    unsafe_op_in_unsafe_fn,
    reason = "pointers are the caller's, as the driver interface states for each call"
)]

use crate::machine::{self, Machine, code, devices};
use crate::module::{self, Arguments};
use moeplan_kernels::Geometry;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

thread_local! {
    static CONTEXT: Cell<u64> = const { Cell::new(0) };
}

/// Declares driver calls: the body gives `Ok(())` or a result code.
macro_rules! calls {
    ($($name:ident($($argument:ident: $type:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> c_int {
            #[allow(clippy::redundant_closure_call, reason = "a body may return early")]
            let result: Result<(), i32> = (|| $body)();
            result.err().unwrap_or(code::OK)
        }
    )*};
}

fn on<T>(f: impl FnOnce(&mut Machine) -> Result<T, i32>) -> Result<T, i32> {
    machine::with(f)
}

/// Contexts are numbered as their devices are, from here on.
const FIRST_CONTEXT: u64 = 0x10;

/// The device that calls of this thread work on.
pub(crate) fn current() -> Result<u64, i32> {
    CONTEXT
        .with(Cell::get)
        .checked_sub(FIRST_CONTEXT)
        .ok_or(code::INVALID_CONTEXT)
}

/// Streams 0, 1 and 2 are names of the current device's default stream.
fn stream_id(stream: u64) -> Result<u64, i32> {
    if stream <= 2 { current() } else { Ok(stream) }
}

/// A stream that gets work, which has to be of the current device: (stream, device).
fn here(machine: &Machine, stream: u64) -> Result<(u64, u64), i32> {
    let stream = stream_id(stream)?;
    let device = machine.device_of(stream)?;
    if device == current()? {
        Ok((stream, device))
    } else {
        Err(code::INVALID_CONTEXT)
    }
}

/// Attributes of an A100 that somebody asks for; the others read 0.
fn attribute(which: c_int) -> c_int {
    match which {
        1 => 1024,       // threads of a block
        8 => 48 << 10,   // shared memory of a block
        10 => 32,        // warp
        16 => 132,       // multiprocessors, those of the H200 that there are measurements of
        75 => 8,         // compute capability, major
        76 => 0,         // minor
        97 => 163 << 10, // shared memory of a block on request
        115 => 1,        // memory pools
        _ => 0,
    }
}

calls! {
cuInit(_flags: c_uint) { Ok(()) }
cuDriverGetVersion(version: *mut c_int) { *version = 12_090; Ok(()) }
cuDeviceGetCount(count: *mut c_int) { *count = devices() as c_int; Ok(()) }
cuDeviceGet(device: *mut c_int, ordinal: c_int) {
    if !(0..devices() as c_int).contains(&ordinal) {
        return Err(code::INVALID_DEVICE);
    }
    *device = ordinal;
    Ok(())
}
cuDeviceGetName(name: *mut c_char, length: c_int, _device: c_int) {
    let text = c"stand-in (no GPU)".to_bytes_with_nul();
    let length = text.len().min(length as usize);
    std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, length);
    Ok(())
}
cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
    *bytes = on(|machine| Ok(machine.memory(device as u64).1))? as usize;
    Ok(())
}
cuDeviceGetAttribute(value: *mut c_int, which: c_int, _device: c_int) { *value = attribute(which); Ok(()) }
cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) { *context = FIRST_CONTEXT + device as u64; Ok(()) }
cuDevicePrimaryCtxRelease_v2(_device: c_int) { Ok(()) }
cuCtxSetCurrent(context: u64) { CONTEXT.with(|current| current.set(context)); Ok(()) }
cuCtxGetCurrent(context: *mut u64) { *context = CONTEXT.with(Cell::get); Ok(()) }
cuCtxSynchronize() { let device = current()?; on(|machine| machine.synchronize_device(device)) }
cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
    let device = current()?;
    let (now_free, all) = on(|machine| Ok(machine.memory(device)))?;
    (*free, *total) = (now_free as usize, all as usize);
    Ok(())
}
cuMemAlloc_v2(address: *mut u64, bytes: usize) {
    let device = current()?;
    *address = on(|machine| machine.allocate(device, bytes as u64))?;
    Ok(())
}
cuMemFree_v2(address: u64) {
    let device = current()?;
    on(|machine| { machine.synchronize_device(device)?; machine.free(address) })
}
cuMemAllocAsync(address: *mut u64, bytes: usize, stream: u64) {
    *address = on(|machine| { let (_, device) = here(machine, stream)?; machine.allocate(device, bytes as u64) })?;
    Ok(())
}
cuMemFreeAsync(address: u64, stream: u64) { on(|machine| machine.enqueue_free(stream_id(stream)?, address)) }
cuMemHostAlloc(address: *mut u64, bytes: usize, _flags: c_uint) { *address = on(|machine| Ok(machine.pin(bytes)))?; Ok(()) }
cuMemFreeHost(address: u64) { on(|machine| machine.unpin(address)) }
cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: u64) {
    on(|machine| {
        let (stream, device) = here(machine, stream)?;
        if bytes > 0 && !machine.holds(device, address, bytes as u64) {
            return Err(code::INVALID_VALUE);
        }
        machine.enqueue(stream, Box::new(move |_| {
            // SAFETY: checked to lie in one allocation.
            unsafe { std::ptr::write_bytes(address as *mut u8, value, bytes) };
            Ok(())
        }))
    })
}
cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) {
    on(|machine| {
        let (stream, device) = here(machine, stream)?;
        if !machine.holds(device, to, bytes as u64) {
            return Err(code::INVALID_VALUE);
        }
        if machine.is_pinned(from) {
            // Read when the copy runs, as the device does.
            return machine.enqueue(stream, Box::new(move |_| {
                // SAFETY: both ranges were checked; the host memory stays pinned until it is freed.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
                Ok(())
            }));
        }
        // SAFETY: the caller's memory, read before this call returns, as the driver stages it.
        let staged = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec();
        machine.enqueue(stream, Box::new(move |_| {
            // SAFETY: the target was checked.
            unsafe { std::ptr::copy_nonoverlapping(staged.as_ptr(), to as *mut u8, bytes) };
            Ok(())
        }))
    })
}
cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) {
    on(|machine| {
        let (stream, device) = here(machine, stream)?;
        if !machine.holds(device, from, bytes as u64) {
            return Err(code::INVALID_VALUE);
        }
        machine.enqueue(stream, Box::new(move |_| {
            // SAFETY: the source was checked; the target is the caller's until the copy is done.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            Ok(())
        }))?;
        if machine.is_pinned(to) { Ok(()) } else { machine.synchronize(stream) }
    })
}
cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) {
    on(|machine| {
        let (stream, device) = here(machine, stream)?;
        if [to, from].into_iter().any(|at| !machine.holds(device, at, bytes as u64)) {
            return Err(code::INVALID_VALUE);
        }
        machine.enqueue(stream, Box::new(move |_| {
            // SAFETY: both ranges were checked.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            Ok(())
        }))
    })
}
cuStreamCreate(stream: *mut u64, _flags: c_uint) {
    let device = current()?;
    *stream = on(|machine| Ok(machine.stream(device)))?;
    Ok(())
}
cuStreamCreateWithPriority(stream: *mut u64, _flags: c_uint, _priority: c_int) {
    let device = current()?;
    *stream = on(|machine| Ok(machine.stream(device)))?;
    Ok(())
}
cuStreamDestroy_v2(stream: u64) { on(|machine| machine.destroy_stream(stream)) }
cuStreamSynchronize(stream: u64) { on(|machine| machine.synchronize(stream_id(stream)?)) }
cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) { on(|machine| machine.wait(stream_id(stream)?, event)) }
cuStreamIsCapturing(_stream: u64, status: *mut c_int) { *status = 0; Ok(()) }
cuEventCreate(event: *mut u64, flags: c_uint) {
    let device = current()?;
    *event = on(|machine| Ok(machine.event(device, flags & 2 == 0)))?;
    Ok(())
}
cuEventDestroy_v2(event: u64) { on(|machine| machine.destroy_event(event)) }
cuEventRecord(event: u64, stream: u64) { on(|machine| machine.record(stream_id(stream)?, event)) }
cuEventSynchronize(event: u64) { on(|machine| machine.synchronize_event(event)) }
cuEventQuery(event: u64) { on(|machine| machine.query(event)) }
cuEventElapsedTime(milliseconds: *mut f32, from: u64, to: u64) {
    *milliseconds = on(|machine| machine.elapsed(from, to))?;
    Ok(())
}
cuEventElapsedTime_v2(milliseconds: *mut f32, from: u64, to: u64) {
    *milliseconds = on(|machine| machine.elapsed(from, to))?;
    Ok(())
}
cuModuleLoadData(handle: *mut u64, image: *const c_char) {
    let text = CStr::from_ptr(image).to_str().map_err(|_| code::INVALID_IMAGE)?;
    let fresh = on(|machine| Ok(machine.handle()))?;
    module::load(fresh, current()?, text)?;
    *handle = fresh;
    Ok(())
}
cuModuleUnload(handle: u64) { module::unload(handle) }
cuModuleGetFunction(function: *mut u64, handle: u64, name: *const c_char) {
    let name = CStr::from_ptr(name).to_str().map_err(|_| code::NOT_FOUND)?;
    *function = module::function(handle, name)?;
    Ok(())
}
cuFuncSetAttribute(_function: u64, _which: c_int, _value: c_int) { Ok(()) }
cuFuncGetAttribute(value: *mut c_int, which: c_int, _function: u64) { *value = if which == 0 { 256 } else { 0 }; Ok(()) }
cuLaunchKernel(
    function: u64, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint,
    shared: c_uint, stream: u64, values: *mut *mut c_void, _extra: *mut *mut c_void
) {
    let geometry = Geometry { grid: [gx, gy, gz], block: [bx, by, bz], shared_bytes: shared };
    let threads: u64 = geometry.block.iter().map(|&n| u64::from(n)).product();
    let outside = geometry.grid.contains(&0) || threads == 0 || threads > 1024 || gy > 65_535 || gz > 65_535;
    if outside || shared > 48 << 10 {
        return Err(code::INVALID_VALUE);
    }
    let (kernel, loaded) = module::kernel(function)?;
    let arguments = Arguments::copy(kernel, values);
    on(|machine| {
        let (stream, device) = here(machine, stream)?;
        if device != loaded {
            return Err(code::INVALID_HANDLE);
        }
        machine.enqueue(stream, Box::new(move |allocations| {
            module::launch(kernel, arguments, &geometry, allocations)
        }))
    })
}
cuGetErrorName(error: c_int, text: *mut *const c_char) { *text = name_of(error).as_ptr(); Ok(()) }
cuGetErrorString(error: c_int, text: *mut *const c_char) { *text = name_of(error).as_ptr(); Ok(()) }
}

fn name_of(error: c_int) -> &'static CStr {
    match error {
        code::OK => c"CUDA_SUCCESS",
        code::INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        code::OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        code::INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        code::INVALID_IMAGE => c"CUDA_ERROR_INVALID_IMAGE",
        code::INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        code::INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        code::NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        code::NOT_READY => c"CUDA_ERROR_NOT_READY",
        code::LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        _ => c"CUDA_ERROR_UNKNOWN",
    }
}

/// For tests: `cuStreamWaitEvent` calls so far.
#[unsafe(no_mangle)]
pub extern "C" fn moeplan_stand_in_waits() -> u64 {
    machine::with(|machine| machine.waits())
}

/// For tests: bytes of device memory that are allocated.
#[unsafe(no_mangle)]
pub extern "C" fn moeplan_stand_in_used() -> u64 {
    machine::with(|machine| {
        // Frees are enqueued like everything else.
        for device in 0..devices() {
            let _ = machine.synchronize_device(device);
        }
        machine.usage()
    })
}
