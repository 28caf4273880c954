//! Modules: PTX names entry points, which the host build has.

use crate::machine::{code, setting};
use moeplan_kernels::Geometry;
use moeplan_kernels::host::{self, Allocation, HostKernel, Run};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::sync::{LazyLock, Mutex, PoisonError};

/// What was loaded.
#[derive(Default)]
struct Loaded {
    /// Device and entry points of every module.
    modules: BTreeMap<u64, (u64, BTreeSet<String>)>,
    /// Kernels that were asked for, and their devices: the first has handle 1.
    functions: Vec<(&'static HostKernel, u64)>,
}

static LOADED: LazyLock<Mutex<Loaded>> = LazyLock::new(Mutex::default);

/// Loads PTX text on a device: every entry point must have parameters of the sizes that the host build has.
pub(crate) fn load(handle: u64, device: u64, ptx: &str) -> Result<(), i32> {
    if !ptx.contains(".version") {
        return Err(code::INVALID_IMAGE);
    }
    let mut entries = BTreeSet::new();
    for text in ptx.split(".entry ").skip(1) {
        let (name, rest) = text.split_once('(').ok_or(code::INVALID_IMAGE)?;
        let name = name.trim();
        let parameters = rest.split(')').next().unwrap_or_default();
        let sizes: String = parameters.split(".param .").skip(1).map(size).collect();
        let expected =
            host::find(name).map(|kernel| kinds(kernel).replace(['p', 'l'], "8").replace('i', "4"));
        if expected.as_ref().is_some_and(|expected| *expected != sizes) {
            complain(&format!(
                "{name}: PTX has parameters {sizes}, the host build {expected:?}"
            ));
            return Err(code::INVALID_IMAGE);
        }
        entries.insert(name.to_string());
    }
    if entries.is_empty() {
        return Err(code::INVALID_IMAGE);
    }
    lock().modules.insert(handle, (device, entries));
    Ok(())
}

/// Unloads a module.
pub(crate) fn unload(handle: u64) -> Result<(), i32> {
    lock()
        .modules
        .remove(&handle)
        .map(|_| ())
        .ok_or(code::INVALID_HANDLE)
}

/// Handle of an entry point of a module.
pub(crate) fn function(module: u64, name: &str) -> Result<u64, i32> {
    let mut loaded = lock();
    let (device, entries) = loaded.modules.get(&module).ok_or(code::NOT_FOUND)?;
    let (device, known) = (*device, entries.contains(name));
    let kernel = host::find(name).filter(|_| known).ok_or(code::NOT_FOUND)?;
    loaded.functions.push((kernel, device));
    Ok(loaded.functions.len() as u64)
}

/// Kernel and device of a handle.
pub(crate) fn kernel(function: u64) -> Result<(&'static HostKernel, u64), i32> {
    let index = (function as usize).wrapping_sub(1);
    let kernel = lock().functions.get(index).copied();
    kernel.ok_or(code::INVALID_HANDLE)
}

fn lock() -> std::sync::MutexGuard<'static, Loaded> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(parameter: &str) -> char {
    match parameter.get(1..3) {
        Some("64") => '8',
        _ => '4',
    }
}

fn kinds(kernel: &HostKernel) -> String {
    kernel.parameters().to_string()
}

/// Says on standard error what the driver would put into its log.
pub(crate) fn complain(message: &str) {
    #![allow(clippy::print_stderr, reason = "a driver has no other way to say why")]
    eprintln!("stand-in: {message}");
}

/// Arguments of a launch, copied when it is enqueued, as the driver does.
#[derive(Debug)]
pub(crate) struct Arguments(Vec<u64>);

impl Arguments {
    /// # Safety
    /// `values` points to as many pointers to values as `kernel` has parameters.
    pub(crate) unsafe fn copy(kernel: &HostKernel, values: *mut *mut c_void) -> Arguments {
        let copy = |(index, kind): (usize, char)| {
            // SAFETY: as the caller promises.
            unsafe {
                let value = *values.add(index);
                match kind {
                    'p' | 'l' => value.cast::<u64>().read_unaligned(),
                    _ => u64::from(value.cast::<u32>().read_unaligned()),
                }
            }
        };
        Arguments(kernel.parameters().chars().enumerate().map(copy).collect())
    }
}

/// Runs a kernel.
pub(crate) fn launch(
    kernel: &'static HostKernel,
    mut arguments: Arguments,
    geometry: &Geometry,
    allocations: &[Allocation],
) -> Result<(), i32> {
    let how = Run {
        order: setting("STAND_IN_THREADS", 0) as u32,
        threads: 2,
        races: setting("STAND_IN_RACES", 0) != 0,
    };
    let mut pointers: Vec<*mut c_void> = arguments
        .0
        .iter_mut()
        .map(|value| std::ptr::from_mut(value).cast())
        .collect();
    // SAFETY: `Arguments::copy` made one value a parameter; the machine runs one piece of work at a time.
    unsafe { host::run(kernel, &mut pointers, geometry, allocations, how) }.map_err(|fault| {
        complain(&fault.to_string());
        code::LAUNCH_FAILED
    })
}
