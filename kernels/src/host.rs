//! Runs the kernels' own text on the CPU, for tests: see `host/sim.cpp` for how, and for what is checked.
#![allow(unsafe_code, reason = "the foreign interface of the host build")]

use crate::{Arg, Geometry, Launch, Real};
use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A live piece of device memory: the only memory a kernel may touch besides its own.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allocation {
    /// Address.
    pub first: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A kernel compiled for the host; lives as long as the program.
#[repr(C)]
#[derive(Debug)]
pub struct HostKernel {
    name: *const c_char,
    parameters: *const c_char,
    call: *const c_void,
}
// SAFETY: points to constants of the host build.
unsafe impl Sync for HostKernel {}
// SAFETY: as above.
unsafe impl Send for HostKernel {}

#[repr(C)]
struct RawLaunch {
    kernel: *const HostKernel,
    arguments: *mut *mut c_void,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: usize,
    allocations: *const Allocation,
    num_allocations: usize,
    order: u32,
}
// SAFETY: the blocks of a launch only read it; it outlives them (thread scope in `run`).
unsafe impl Sync for RawLaunch {}

unsafe extern "C" {
    fn moeplan_kernels_f32(count: *mut usize) -> *const HostKernel;
    fn moeplan_kernels_f16(count: *mut usize) -> *const HostKernel;
    fn moeplan_kernels_bf16(count: *mut usize) -> *const HostKernel;
    fn moeplan_sim_block(launch: *const RawLaunch, block: u64) -> *const c_char;
    fn moeplan_sim_races(wanted: i32);
}

impl HostKernel {
    /// Name of the entry point.
    pub fn name(&self) -> &'static str {
        // SAFETY: a string constant of the host build.
        unsafe { CStr::from_ptr(self.name) }
            .to_str()
            .expect("entry points have ASCII names")
    }

    /// Kinds of its parameters, as [`crate::Parameter::KIND`], from the compiled C++ signature.
    pub fn parameters(&self) -> &'static str {
        // SAFETY: a string constant of the host build.
        unsafe { CStr::from_ptr(self.parameters) }
            .to_str()
            .expect("kinds are ASCII")
    }
}

/// The kernels compiled for `real`; plain ones are under fp32.
pub fn kernels(real: Real) -> &'static [HostKernel] {
    let mut count = 0;
    // SAFETY: returns a constant table and its length.
    unsafe {
        let table = match real {
            Real::F32 => moeplan_kernels_f32(&raw mut count),
            Real::F16 => moeplan_kernels_f16(&raw mut count),
            Real::Bf16 => moeplan_kernels_bf16(&raw mut count),
        };
        std::slice::from_raw_parts(table, count)
    }
}

/// The kernel of that name.
pub fn find(entry: &str) -> Option<&'static HostKernel> {
    Real::ALL
        .iter()
        .flat_map(|&real| kernels(real))
        .find(|kernel| kernel.name() == entry)
}

/// How a launch runs.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Order of threads between barriers: 0 forward, 1 backward, else a seed.
    pub order: u32,
    /// Blocks at a time.
    pub threads: usize,
    /// Whether accesses are checked for data races (slow; blocks then run one by one).
    pub races: bool,
}

/// What a kernel did wrong: out-of-bounds or misaligned access, divergent barrier, data race.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub String);

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Fault {}

/// Runs all blocks of a launch.
///
/// # Safety
/// `arguments` must point to as many values of the kinds that [`HostKernel::parameters`] lists, and each of
/// `allocations` (sorted by address) must be memory that nobody else uses meanwhile.
///
/// # Errors
/// The first fault of any block; memory is then partly written.
pub unsafe fn run(
    kernel: &'static HostKernel,
    arguments: &mut [*mut c_void],
    geometry: &Geometry,
    allocations: &[Allocation],
    how: Run,
) -> Result<(), Fault> {
    let launch = RawLaunch {
        kernel,
        arguments: arguments.as_mut_ptr(),
        grid: geometry.grid,
        block: geometry.block,
        shared_bytes: geometry.shared_bytes as usize,
        allocations: allocations.as_ptr(),
        num_allocations: allocations.len(),
        order: how.order,
    };
    let blocks: u64 = geometry.grid.iter().map(|&n| u64::from(n)).product();
    let next = AtomicU64::new(0);
    let stopped = AtomicBool::new(false);
    let fault = Mutex::new(None);
    let work = || {
        // SAFETY: only sets this thread's own switch.
        unsafe { moeplan_sim_races(i32::from(how.races)) };
        while !stopped.load(Ordering::Relaxed) {
            let block = next.fetch_add(1, Ordering::Relaxed);
            if block >= blocks {
                break;
            }
            // SAFETY: the launch outlives the call; kernels touch only what the caller vouched for, checked
            // access by access.
            let why = unsafe { moeplan_sim_block(&raw const launch, block) };
            if !why.is_null() {
                // SAFETY: a C string that stays valid until this thread's next block.
                let why = unsafe { CStr::from_ptr(why) }
                    .to_string_lossy()
                    .into_owned();
                let message = format!("{}: {why}", kernel.name());
                fault
                    .lock()
                    .expect("no holder panics")
                    .get_or_insert(Fault(message));
                stopped.store(true, Ordering::Relaxed);
            }
        }
        // SAFETY: as above; frees the table.
        unsafe { moeplan_sim_races(0) };
    };
    let threads = if how.races { 1 } else { how.threads.max(1) };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(usize::try_from(blocks).unwrap_or(usize::MAX)) {
            scope.spawn(work);
        }
        work();
    });
    fault
        .into_inner()
        .expect("no holder panics")
        .map_or(Ok(()), Err)
}

/// Device memory of the host build: allocations of exact size, filled with 0xff (NaN) when made.
#[derive(Debug, Default)]
pub struct Memory {
    buffers: Vec<Buffer>,
}

#[derive(Debug)]
struct Buffer {
    /// 16-byte units, so that addresses are aligned as a device's would be.
    storage: Box<[u128]>,
    bytes: u64,
}

impl Memory {
    /// Allocates; the address stays valid as long as `self`.
    pub fn allocate(&mut self, bytes: u64) -> u64 {
        let storage = vec![u128::MAX; (bytes as usize).div_ceil(16).max(1)].into_boxed_slice();
        let address = storage.as_ptr() as u64;
        self.buffers.push(Buffer { storage, bytes });
        address
    }

    fn buffer(&mut self, address: u64) -> &mut Buffer {
        self.buffers
            .iter_mut()
            .find(|buffer| buffer.storage.as_ptr() as u64 == address)
            .expect("an address that `allocate` returned")
    }

    /// The bytes of the allocation at `address`.
    pub fn bytes(&mut self, address: u64) -> &mut [u8] {
        let buffer = self.buffer(address);
        // SAFETY: u128 may be seen as bytes; `bytes` is at most the storage.
        unsafe {
            std::slice::from_raw_parts_mut(
                buffer.storage.as_mut_ptr().cast(),
                buffer.bytes as usize,
            )
        }
    }

    /// Runs a launch on this memory.
    ///
    /// # Errors
    /// What the kernel did wrong.
    pub fn launch(&mut self, launch: &Launch, how: Run) -> Result<(), Fault> {
        let kernel = find(launch.entry())
            .ok_or_else(|| Fault(format!("{}: no such kernel", launch.entry())))?;
        let kinds: String = launch.args.iter().map(kind).collect();
        if kinds != kernel.parameters() {
            let expected = kernel.parameters();
            return Err(Fault(format!(
                "{}: takes {expected}, given {kinds}",
                kernel.name()
            )));
        }
        let mut allocations: Vec<Allocation> = self
            .buffers
            .iter()
            .map(|buffer| Allocation {
                first: buffer.storage.as_ptr() as u64,
                bytes: buffer.bytes,
            })
            .collect();
        allocations.sort_unstable();
        let mut arguments: Vec<*mut c_void> = launch
            .args
            .iter()
            .map(|arg| arg.as_ptr().cast_mut())
            .collect();
        // SAFETY: kinds were compared, and `self` is borrowed exclusively.
        unsafe { run(kernel, &mut arguments, &launch.geometry, &allocations, how) }
    }
}

fn kind(arg: &Arg) -> char {
    match arg {
        Arg::Pointer(_) => 'p',
        Arg::I64(_) => 'l',
        Arg::I32(_) => 'i',
    }
}
