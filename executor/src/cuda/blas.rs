//! Products through cuBLAS.
#![allow(unsafe_code, reason = "cuBLAS takes device addresses")]

use crate::ExecError;
use cudarc::cublas::{result, sys};
use cudarc::driver::CudaStream;
use moeplan_kernels::{Product, Real};
use moeplan_sim::spec::DType;
use std::ffi::c_void;

/// A handle.
pub(super) struct Blas(sys::cublasHandle_t);

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: from `Blas::new`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// How products are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Precision {
    /// Number type of the tensors.
    pub(super) real: Real,
    /// fp32 tensors on tensor cores.
    pub(super) tf32: bool,
}

impl Precision {
    /// Products of a layer's tensors.
    pub(super) fn of_layer(dtype: DType) -> Precision {
        let real = match dtype {
            DType::Fp32 | DType::Tf32 => Real::F32,
            DType::Fp16 => Real::F16,
            DType::Bf16 => Real::Bf16,
        };
        Precision {
            real,
            tf32: dtype == DType::Tf32,
        }
    }

    /// Products of its gate: of fp32 tensors, on tensor cores unless the layer avoids them, as
    /// `moeplan_sim::ir::Work` has them.
    pub(super) fn of_gate(dtype: DType) -> Precision {
        Precision {
            real: Real::F32,
            tf32: dtype != DType::Fp32,
        }
    }
}

/// A row-major (rows, columns) matrix as cuBLAS, which is column-major, sees it: its transpose, or with `T` transposed
/// again. The leading dimension of a single row or column is free, but has a least value.
fn operand(strides: (i64, i64), rows: i64, columns: i64) -> (sys::cublasOperation_t, i64) {
    match strides {
        (row, 1) => (sys::cublasOperation_t::CUBLAS_OP_N, row.max(columns)),
        (_, column) => (sys::cublasOperation_t::CUBLAS_OP_T, column.max(rows)),
    }
}

/// How many of the first products are alike and equally far apart, and the distances between their matrices.
fn alike(products: &[Product]) -> (usize, [i64; 3]) {
    let [first, second, ..] = products else {
        return (products.len(), [0; 3]);
    };
    let apart = |a: &Product, b: &Product| [b.a - a.a, b.b - a.b, b.c - a.c];
    let strides = apart(first, second);
    let shape = |p: &Product| Product {
        a: 0,
        b: 0,
        c: 0,
        ..*p
    };
    let follows = |pair: &&[Product]| {
        let [one, next] = pair else { return false };
        shape(one) == shape(next) && apart(one, next) == strides
    };
    // Results that overlap are sums over products, which run one by one.
    match strides[2] == 0 {
        true => (1, [0; 3]),
        false => (1 + products.windows(2).take_while(follows).count(), strides),
    }
}

impl Blas {
    /// `None` where the library is absent.
    pub(super) fn new() -> Option<Blas> {
        // SAFETY: only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        result::create_handle().ok().map(Blas)
    }

    /// Enqueues products in order, those that are alike as one batch. The `workspace`, address and bytes, is used by this
    /// stream alone, as NVIDIA asks for where streams run at once and results are to repeat bit for bit (cuBLAS, Results
    /// Reproducibility); without one, cuBLAS takes its own.
    pub(super) fn multiply(
        &self,
        stream: &CudaStream,
        workspace: Option<(u64, usize)>,
        products: &[Product],
        precision: Precision,
    ) -> Result<(), ExecError> {
        let failed = |error: result::CublasError| ExecError::Device(format!("cuBLAS: {error:?}"));
        // SAFETY: a live stream of the same context; cuBLAS uses the driver's own handle type.
        unsafe { result::set_stream(self.0, stream.cu_stream().cast()) }.map_err(failed)?;
        if let Some((at, bytes)) = workspace {
            // SAFETY: device memory of that size, which lives as long as the stream.
            unsafe { sys::cublasSetWorkspace_v2(self.0, at as *mut c_void, bytes) }
                .result()
                .map_err(failed)?;
        }
        let mut left = products;
        while let Some(first) = left.first() {
            let (count, strides) = alike(left);
            self.batch(first, strides, count, precision)
                .map_err(failed)?;
            left = &left[count..];
        }
        Ok(())
    }

    /// `count` products at `strides` bytes. Row-major C = A B is column-major C^T = B^T A^T.
    fn batch(
        &self,
        p: &Product,
        strides: [i64; 3],
        count: usize,
        precision: Precision,
    ) -> Result<(), result::CublasError> {
        if p.m == 0 || p.n == 0 {
            return Ok(());
        }
        let size = precision.real.bytes() as i64;
        let (a_operation, a_stride) = operand((p.a_row_stride, p.a_column_stride), p.m, p.k);
        let (b_operation, b_stride) = operand((p.b_row_stride, p.b_column_stride), p.k, p.n);
        let kind = match precision.real {
            Real::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Real::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Real::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        };
        let compute = match precision.tf32 {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let (alpha, beta) = (1.0_f32, if p.accumulate == 0 { 0.0_f32 } else { 1.0 });
        let scalar = |value: &f32| std::ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the matrices lie in allocations of `Memory` (lowering checks their extents); alpha and beta are
        // read before the call returns (host pointer mode, the default).
        unsafe {
            result::gemm_strided_batched_ex(
                self.0,
                b_operation,
                a_operation,
                p.n as i32,
                p.m as i32,
                p.k as i32,
                scalar(&alpha),
                p.b as *const c_void,
                kind,
                b_stride as i32,
                strides[1] / size,
                p.a as *const c_void,
                kind,
                a_stride as i32,
                strides[0] / size,
                scalar(&beta),
                p.c as *mut c_void,
                kind,
                p.c_row_stride as i32,
                strides[2] / size,
                count as i32,
                compute,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(a: i64, b: i64, c: i64) -> Product {
        Product {
            a,
            b,
            c,
            m: 4,
            n: 4,
            k: 4,
            a_row_stride: 4,
            a_column_stride: 1,
            b_row_stride: 4,
            b_column_stride: 1,
            c_row_stride: 4,
            accumulate: 0,
        }
    }

    #[test]
    fn products_that_are_alike_are_one_batch() {
        // Two experts of three blocks each: one weight a batch.
        let blocks = |expert: i64| {
            (0..3).map(move |block| {
                product(100 * expert + 16 * block, expert, 900 * expert + 16 * block)
            })
        };
        let products: Vec<Product> = blocks(1).chain(blocks(2)).collect();
        assert_eq!(alike(&products), (3, [16, 0, 16]));
        assert_eq!(alike(&products[3..]), (3, [16, 0, 16]));
        assert_eq!(alike(&products[..1]), (1, [0; 3]));
        // A sum over products goes one by one.
        let chain = [product(0, 0, 7), product(16, 16, 7)];
        assert_eq!(alike(&chain).0, 1);
        let mut other = products.clone();
        other[1].m = 3;
        assert_eq!(alike(&other).0, 1);
    }
}
