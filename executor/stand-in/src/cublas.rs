//! The symbols of `libcublas.so` that the backend calls: a product is enqueued on the handle's stream and
//! computed as the interface defines it, column-major, by naive loops that sum in fp32.

use crate::driver::current;
use crate::machine::{self, code};
use half::{bf16, f16};
use moeplan_kernels::host::Allocation;
use std::ffi::{c_int, c_longlong, c_void};

const SUCCESS: c_int = 0;
const NOT_INITIALIZED: c_int = 1;
const INVALID_VALUE: c_int = 7;
const EXECUTION_FAILED: c_int = 13;
const NOT_SUPPORTED: c_int = 15;
const TRANSPOSED: c_int = 1;
/// `CUBLAS_COMPUTE_32F_FAST_TF32`.
const FAST_TF32: c_int = 77;

/// Number type of a matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Number {
    F32,
    F16,
    Bf16,
    /// fp32 in memory, 10 bits of mantissa in a product.
    Tf32,
}

impl Number {
    fn new(kind: c_int, compute: c_int) -> Option<Number> {
        match kind {
            0 if compute == FAST_TF32 => Some(Number::Tf32),
            0 => Some(Number::F32),
            2 => Some(Number::F16),
            14 => Some(Number::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Number::F32 | Number::Tf32 => 4,
            Number::F16 | Number::Bf16 => 2,
        }
    }

    /// # Safety
    /// A live element of this type.
    unsafe fn load(self, at: u64) -> f32 {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Number::F32 => *(at as *const f32),
                Number::Tf32 => {
                    let bits = (at as *const f32).read().to_bits();
                    f32::from_bits((bits + 0x1000) & !0x1fff)
                }
                Number::F16 => (*(at as *const f16)).to_f32(),
                Number::Bf16 => (*(at as *const bf16)).to_f32(),
            }
        }
    }

    /// # Safety
    /// As [`Number::load`].
    unsafe fn store(self, at: u64, value: f32) {
        // SAFETY: as the caller promises.
        unsafe {
            match self {
                Number::F32 | Number::Tf32 => *(at as *mut f32) = value,
                Number::F16 => *(at as *mut f16) = f16::from_f32(value),
                Number::Bf16 => *(at as *mut bf16) = bf16::from_f32(value),
            }
        }
    }
}

/// A handle: the device it was made on, and its stream.
pub struct Handle {
    device: u64,
    stream: u64,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasCreate_v2(handle: *mut *mut Handle) -> c_int {
    let Ok(device) = current() else {
        return NOT_INITIALIZED;
    };
    let new = Handle {
        device,
        stream: device,
    };
    // SAFETY: an out-parameter of the caller.
    unsafe { *handle = Box::into_raw(Box::new(new)) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasDestroy_v2(handle: *mut Handle) -> c_int {
    // SAFETY: from `cublasCreate_v2`, destroyed once.
    drop(unsafe { Box::from_raw(handle) });
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetStream_v2(handle: *mut Handle, stream: u64) -> c_int {
    // SAFETY: a handle of the caller.
    unsafe { (*handle).stream = stream };
    SUCCESS
}

/// Products need no scratch here; what is given has to be device memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasSetWorkspace_v2(
    handle: *mut Handle,
    workspace: u64,
    bytes: usize,
) -> c_int {
    // SAFETY: a handle of the caller.
    let device = unsafe { (*handle).device };
    let holds = |allocation: &Allocation| {
        workspace >= allocation.first
            && workspace + bytes as u64 <= allocation.first + allocation.bytes
    };
    let inside = machine::with(|machine| machine.allocations(device).iter().any(holds));
    match inside {
        true => SUCCESS,
        false => INVALID_VALUE,
    }
}

/// A column-major matrix, perhaps transposed.
#[derive(Clone, Copy)]
struct Matrix {
    first: u64,
    leading: u64,
    transposed: bool,
    batch_stride: i64,
    number: Number,
}

impl Matrix {
    fn at(&self, batch: u64, row: u64, column: u64) -> u64 {
        let (row, column) = if self.transposed {
            (column, row)
        } else {
            (row, column)
        };
        let offset = (column * self.leading + row) as i64 + self.batch_stride * batch as i64;
        (self.first as i64 + self.number.bytes() as i64 * offset) as u64
    }

    /// Whether all of a (rows, columns) matrix lies in one allocation, and its leading dimension is legal.
    fn fits(&self, batches: u64, rows: u64, columns: u64, allocations: &[Allocation]) -> bool {
        let stored_rows = if self.transposed { columns } else { rows };
        let inside = |at: u64| {
            allocations
                .iter()
                .any(|a| at >= a.first && at + self.number.bytes() <= a.first + a.bytes)
        };
        let corners = (0..batches).all(|batch| {
            inside(self.at(batch, 0, 0)) && inside(self.at(batch, rows - 1, columns - 1))
        });
        self.leading >= stored_rows.max(1) && corners
    }
}

/// C = alpha op(A) op(B) + beta C, `batches` times.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasGemmStridedBatchedEx(
    handle: *mut Handle,
    a_operation: c_int,
    b_operation: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const c_void,
    a: u64,
    a_type: c_int,
    a_leading: c_int,
    a_stride: c_longlong,
    b: u64,
    b_type: c_int,
    b_leading: c_int,
    b_stride: c_longlong,
    beta: *const c_void,
    c: u64,
    c_type: c_int,
    c_leading: c_int,
    c_stride: c_longlong,
    batches: c_int,
    compute: c_int,
    _algorithm: c_int,
) -> c_int {
    let number = match Number::new(a_type, compute) {
        Some(number) if [b_type, c_type] == [a_type; 2] => number,
        _ => return NOT_SUPPORTED,
    };
    if m < 1 || n < 1 || k < 1 || batches < 1 {
        return INVALID_VALUE;
    }
    let (m, n, k, batches) = (m as u64, n as u64, k as u64, batches as u64);
    let matrix = |first, leading: c_int, operation, batch_stride| Matrix {
        first,
        leading: leading as u64,
        transposed: operation == TRANSPOSED,
        batch_stride,
        number,
    };
    let (a, b) = (
        matrix(a, a_leading, a_operation, a_stride),
        matrix(b, b_leading, b_operation, b_stride),
    );
    let c = matrix(c, c_leading, 0, c_stride);
    // SAFETY: scalars of the caller, read before the call returns; a handle of the caller.
    let (alpha, beta, handle) = unsafe { (*alpha.cast::<f32>(), *beta.cast::<f32>(), &*handle) };
    let stream = handle.stream;
    let here = machine::with(|machine| machine.device_of(stream)) == Ok(handle.device);
    if !here || current() != Ok(handle.device) {
        crate::module::complain("cublasGemmStridedBatchedEx: a handle or stream of another device");
        return INVALID_VALUE;
    }
    let work = move |allocations: &[Allocation]| {
        let inside = a.fits(batches, m, k, allocations)
            && b.fits(batches, k, n, allocations)
            && c.fits(batches, m, n, allocations);
        if !inside {
            crate::module::complain("cublasGemmStridedBatchedEx: a matrix outside its allocation");
            return Err(code::LAUNCH_FAILED);
        }
        for batch in 0..batches {
            for row in 0..m {
                for column in 0..n {
                    // SAFETY: every element lies between corners that lie in live allocations.
                    unsafe {
                        let term = |i: u64| {
                            number.load(a.at(batch, row, i)) * number.load(b.at(batch, i, column))
                        };
                        let sum: f32 = (0..k).map(term).sum();
                        let out = c.at(batch, row, column);
                        // With beta = 0 the old value is not read, even if it is NaN; C is not rounded to TF32.
                        let old = match (beta == 0.0, number) {
                            (true, _) => 0.0,
                            (false, Number::Tf32) => beta * Number::F32.load(out),
                            (false, _) => beta * number.load(out),
                        };
                        number.store(out, alpha * sum + old);
                    }
                }
            }
        }
        Ok(())
    };
    match machine::with(|machine| machine.enqueue(stream, Box::new(work))) {
        Ok(()) => SUCCESS,
        Err(_) => EXECUTION_FAILED,
    }
}
