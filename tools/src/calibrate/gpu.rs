//! One GPU: rates of matrix products and of memory-bound kernels, as the CUDA executor's kernels and cuBLAS reach them.
//!
//! What a single GPU cannot show, networks and kernels beside them, stays that of the hardware the file extends.

use super::cases;
use super::{Calibration, Measured, fit, measured};
use crate::error::{Error, Place};
use crate::play::refused;
use crate::session::Session;
use moeplan_executor::Backend as _;
use moeplan_executor::cuda::Cuda;
use moeplan_sim::cost::gemm::{GemmParams, GemmShape};
use moeplan_sim::cost::one_gpu::work_on_one_gpu;
use moeplan_sim::hardware::builtin;
use moeplan_sim::ir::{Op, OpKind, Program, Work};
use serde::Serialize;
use std::path::Path;

/// What a hardware file extends unless the user names another preset.
pub const BASE: &str = "nd-a100-v4-80gb";

/// Constants of one GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuParams {
    /// Name and architecture.
    pub name: String,
    /// What products go through.
    pub products: &'static str,
    /// Memory.
    pub memory_gib: f64,
    /// Rate of memory-bound kernels, bytes read plus bytes written.
    pub hbm_gb_per_s: f64,
    /// Start and end of such a kernel.
    pub kernel_us: f64,
    /// Matrix products.
    pub gemm: GemmParams,
    /// How well the constants describe what they were fitted to.
    pub fit: Fit,
}

/// Mean relative errors of the fit, on the measurements it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fit {
    /// Measured products.
    pub products: usize,
    /// Their mean error.
    pub product_error: f64,
    /// Measured passes over memory.
    pub passes: usize,
    /// Their mean error.
    pub pass_error: f64,
}

/// Measures `rounds` rounds of all cases on `backend`. Runs are kept in `partial`, and those already there are not repeated.
///
/// # Errors
/// A machine that refuses, or a file that cannot be read or written.
pub fn calibrate(
    rounds: usize,
    partial: Option<&Path>,
    backend: &mut Cuda,
    session: &mut Session<'_>,
) -> Result<Calibration<GpuParams>, Error> {
    let cases = cases::gpu().map_err(|error| refused(&error))?;
    let measured = measured(&cases, rounds, partial, backend, session)?;
    Ok(measured.calibration(params(backend, &measured.cases)?))
}

fn params(backend: &Cuda, measured: &[Measured]) -> Result<GpuParams, Error> {
    let base = builtin(BASE).map_err(|error| Error::Unexpected(format!("{BASE}: {error}")))?;
    let (mut products, mut passes) = (Vec::new(), Vec::new());
    for case in measured {
        for sample in samples(case) {
            match sample {
                Sample::Product(shape, us) => products.push((shape, us)),
                Sample::Pass(amounts, us) => passes.push((amounts, us)),
            }
        }
    }
    if products.is_empty() || passes.is_empty() {
        let message =
            "expected measurements of products and passes, found none: run it again to go on";
        return Err(Error::input(Place::default(), message));
    }
    let [kernel_us, us_per_byte] = fit::non_negative(&passes);
    let start = GemmParams {
        sms: backend.multiprocessors().unwrap_or(base.gpu.gemm.sms),
        efficiency: 1.0,
        ..base.gpu.gemm
    };
    let gemm = fit_products(&start, &products);
    let error = |ours: f64, us: f64| (ours / us - 1.0).abs();
    let product_errors = products
        .iter()
        .map(|(shape, us)| error(microseconds(&gemm, shape), *us));
    let pass_errors = passes
        .iter()
        .map(|([n, bytes], us)| error(n * kernel_us + bytes * us_per_byte, *us));
    Ok(GpuParams {
        name: backend.device_name().to_owned(),
        products: if backend.has_blas() {
            "cuBLAS"
        } else {
            "moeplan's own kernel"
        },
        memory_gib: backend.memory_bytes().unwrap_or(0) as f64 / (1u64 << 30) as f64,
        hbm_gb_per_s: fit::rounded(1e-3 / us_per_byte.max(1e-9)),
        kernel_us: fit::rounded(kernel_us),
        fit: Fit {
            products: products.len(),
            product_error: fit::rounded(product_errors.sum::<f64>() / products.len() as f64),
            passes: passes.len(),
            pass_error: fit::rounded(pass_errors.sum::<f64>() / passes.len() as f64),
        },
        gemm,
    })
}

/// One operation that is one kind of work: what it asked for, and its microseconds.
enum Sample {
    Product(GemmShape, f64),
    /// Kernels and bytes.
    Pass([f64; 2], f64),
}

/// The operations of a case that are nothing but one product of the experts, or nothing but passes over memory.
fn samples(case: &Measured) -> impl Iterator<Item = Sample> + '_ {
    let ops = case.program.ops.iter().zip(&case.ops_us);
    ops.filter(|(_, us)| **us > 0.0)
        .filter_map(|(op, &us)| sample(&case.program, op, us))
}

fn sample(program: &Program, op: &Op, us: f64) -> Option<Sample> {
    let work = work_on_one_gpu(program, op, 0);
    match (&work[..], &op.kind) {
        (&[Work::Gemm(shape)], OpKind::ExpertGemm { .. }) => Some(Sample::Product(shape, us)),
        ([], _) => None,
        (passes, _) => {
            let bytes = passes.iter().map(|work| match work {
                Work::Memory { bytes } if *bytes > 0 => Some(*bytes as f64),
                _ => None,
            });
            let bytes: f64 = bytes.sum::<Option<f64>>()?;
            Some(Sample::Pass([passes.len() as f64, bytes], us))
        }
    }
}

fn microseconds(params: &GemmParams, shape: &GemmShape) -> f64 {
    params.estimate(shape).time.as_secs_f64() * 1e6
}

/// The constants of `start` that a GPU's rates change, fitted to `products`: one factor for each kind of unit, for the start of
/// a product and for the memories, L2 beside HBM. The library's tiles and what fills them stay as they are.
fn fit_products(start: &GemmParams, products: &[(GemmShape, f64)]) -> GemmParams {
    let with = |x: &[f64], digits: fn(f64) -> f64| GemmParams {
        tensor_tflops: digits(start.tensor_tflops * x[0]),
        tf32_tflops: digits(start.tf32_tflops * x[1]),
        fp32_tflops: digits(start.fp32_tflops * x[2]),
        launch_us: digits(start.launch_us * x[3]),
        gemv_launch_us: digits(start.gemv_launch_us * x[3]),
        hbm_gbps: digits(start.hbm_gbps * x[4]),
        store_gbps: digits(start.store_gbps * x[4]),
        gemv_gbps: digits(start.gemv_gbps * x[4]),
        sm_store_gbps: digits(start.sm_store_gbps * x[4]),
        l2_gbps: digits(start.l2_gbps * x[4]),
        ..start.clone()
    };
    let loss = |x: &[f64]| {
        let params = with(x, |value| value);
        let errors = products
            .iter()
            .map(|(shape, us)| (microseconds(&params, shape) / us).ln().abs());
        errors.sum::<f64>() / products.len() as f64
    };
    with(&fit::descend(&[1.0; 5], 200, loss), fit::rounded)
}

/// The hardware file.
///
/// # Errors
/// None of the user's.
pub fn to_toml(calibration: &Calibration<GpuParams>) -> Result<String, Error> {
    #[derive(Serialize)]
    struct Document<'a> {
        gpu: Gpu<'a>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "kebab-case")]
    struct Gpu<'a> {
        name: &'a str,
        memory_gib: f64,
        hbm_gb_per_s: f64,
        kernel_us: f64,
        gemm: &'a GemmParams,
    }
    let params = &calibration.params;
    let text = toml::to_string(&Document {
        gpu: Gpu {
            name: &params.name,
            memory_gib: fit::rounded(params.memory_gib),
            hbm_gb_per_s: params.hbm_gb_per_s,
            kernel_us: params.kernel_us,
            gemm: &params.gemm,
        },
    })
    .map_err(|error| Error::Unexpected(format!("TOML: {error}")))?;
    let (spread, fit) = (calibration.spread, params.fit);
    let percent = |share: f64| share * 100.0;
    Ok(format!(
        "# Measured by `moeplan calibrate --backend cuda` through the CUDA executor: {} steps, medians of {} rounds, which \
         differ by {:.0} %\n\
         # of the step time (median over the steps). Mean error of the fit: {} products {:.1} %, {} passes over memory \
         {:.1} %.\n\
         # Node, network and collectives are those of the preset below: one GPU does not show them.\n\
         extends = \"{BASE}\"\nname = \"this-gpu\"\n\
         description = \"{}, products by {}; node and network as {BASE}\"\n\n\
         [software]\nname = \"moeplan executor, CUDA backend\"\ngemm-efficiency = 1.0\nscan-row-ns = 0.0\n\n\
         {text}\n[sources]\n\"gpu\" = \"measured on this machine by moeplan {} calibrate --backend cuda\"\n\
         \"gpu.gemm\" = \"rates and latencies fitted to products measured on this machine; tiles as fitted/a100_gemm.toml\"\n\
         \"software.gemm-efficiency\" = \"1: rates are those that were measured\"\n\
         \"software.scan-row-ns\" = \"0: the executor's gate scans in parallel\"\n",
        spread.cases,
        spread.rounds,
        percent(spread.step_time),
        fit.products,
        percent(fit.product_error),
        fit.passes,
        percent(fit.pass_error),
        params.name,
        params.products,
        env!("CARGO_PKG_VERSION"),
    ))
}
