//! Time of a dense matrix product on one GPU: tiles, waves, and the bandwidths behind them.
//!
//! cuBLAS covers C with tiles, gives each to a thread block (a CTA), and runs the CTAs in waves
//! over the SMs. A product therefore takes
//!
//! ```text
//! launch + waves * fill + [main loop] + [store of C] + [second pass of split-K]
//! ```
//!
//! where the main loop is the worst of four overlapping demands (tensor cores, latency of the
//! k steps, L2 traffic, HBM traffic), joined by the 4-norm so that near ties cost a little more.
//! The library's choice of tile is taken to be the best one: the time is the minimum over tiles
//! and over splits of k. Each candidate is monotone in every extent, hence so is the minimum.
//! No `powf` or `exp`: the figures are the same on every platform.

use crate::cost::provenance::{Estimate, Provenance};
use crate::spec::DType;
use crate::units::Time;
use serde::{Deserialize, Serialize};

/// Depth of one step of a CTA's main loop along k, in elements. Tiles pad k to it.
const K_STEP: f64 = 32.0;
/// No CTA of a split product walks less than this along k.
const MIN_SPLIT_DEPTH: f64 = 64.0;
/// Ways to split k that are tried, in ascending order.
const SPLITS: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];

/// `batch` independent products C\[m,n\] = A\[m,k\] B\[k,n\] in one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GemmShape {
    /// Number of products.
    pub batch: u64,
    /// Rows of A and C (tokens).
    pub m: u64,
    /// Columns of B and C.
    pub n: u64,
    /// The summed extent.
    pub k: u64,
    /// Number type of all three operands.
    pub dtype: DType,
    /// How many of the B operands (weights) are distinct. Products that share one read it again
    /// from L2, not from HBM. Equal to `batch` when every product has its own.
    pub weights: u64,
}

impl GemmShape {
    /// One product.
    pub const fn dense(m: u64, n: u64, k: u64, dtype: DType) -> GemmShape {
        GemmShape::batched(1, m, n, k, dtype)
    }

    /// `batch` products, each with a B of its own.
    pub const fn batched(batch: u64, m: u64, n: u64, k: u64, dtype: DType) -> GemmShape {
        GemmShape {
            batch,
            m,
            n,
            k,
            dtype,
            weights: batch,
        }
    }

    /// The same products sharing only `weights` distinct B operands (at most `batch` count).
    pub const fn sharing(self, weights: u64) -> GemmShape {
        GemmShape { weights, ..self }
    }

    /// Floating-point operations: 2 m n k for each product.
    pub fn flops(&self) -> f64 {
        2.0 * self.batch as f64 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// Bytes that must cross HBM at least once: every A and C, every distinct B.
    pub fn bytes(&self) -> f64 {
        let [batch, m, n, k] = [self.batch, self.m, self.n, self.k].map(|x| x as f64);
        let weights = self.weights.min(self.batch) as f64;
        self.dtype.bytes() as f64 * (batch * m * k + weights * k * n + batch * m * n)
    }
}

/// A tile of C as one CTA computes it. Oblong tiles are tried both ways round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tile {
    /// Rows.
    pub m: u32,
    /// Columns.
    pub n: u32,
    /// CTAs that one SM holds at once.
    pub resident: u32,
    /// Share of the peak that a full SM reaches with this tile.
    pub efficiency: f64,
}

/// Constants of the GEMM model for one type of GPU, fitted to a table of measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GemmParams {
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Share of the fitted compute rates that this software reaches: 1 for the measured stack,
    /// less for older libraries or a power limit. Scales the compute-bound term only.
    pub efficiency: f64,
    /// 16-bit tensor-core rate of the whole GPU at tile efficiency 1, TFLOPS.
    pub tensor_tflops: f64,
    /// TF32 tensor-core rate at tile efficiency 1, TFLOPS.
    pub tf32_tflops: f64,
    /// FP32 rate of the CUDA cores, TFLOPS; tile efficiency does not apply.
    pub fp32_tflops: f64,
    /// Start and end of a kernel, microseconds.
    pub launch_us: f64,
    /// Filling the pipeline of a wave of CTAs, microseconds.
    pub fill_us: f64,
    /// Elements along k that fill that pipeline; shorter products fill less.
    pub fill_depth: f64,
    /// Latency of one step of 32 along k, microseconds.
    pub k_step_us: f64,
    /// Time of a lone CTA on an SM, as a share of the time of a full SM.
    pub lone_cta: f64,
    /// HBM rate of reading operands, GB/s.
    pub hbm_gbps: f64,
    /// HBM rate of writing C, GB/s.
    pub store_gbps: f64,
    /// Rate at which one SM writes its tiles, GB/s.
    pub sm_store_gbps: f64,
    /// L2 rate of reading operands, GB/s.
    pub l2_gbps: f64,
    /// Extra launch and barrier of a split product, microseconds.
    pub split_us: f64,
    /// Rate of passing 4-byte partial sums, GB/s.
    pub split_gbps: f64,
    /// Start and end of the matrix-vector kernel (m = 1), microseconds.
    pub gemv_launch_us: f64,
    /// HBM rate of the matrix-vector kernel, GB/s.
    pub gemv_gbps: f64,
    /// Latency of the matrix-vector kernel for 1,024 elements along k, microseconds.
    pub gemv_depth_us: f64,
    /// Smallest and largest m measured.
    pub range_m: [u64; 2],
    /// Smallest and largest n measured.
    pub range_n: [u64; 2],
    /// Smallest and largest k measured.
    pub range_k: [u64; 2],
    /// The tiles that the library has, best guess first (an order for speed, not for the result).
    pub tiles: Vec<Tile>,
}

/// What does not depend on the tile.
struct Work {
    batch: f64,
    m: f64,
    n: f64,
    k: f64,
    element: f64,
    /// FLOP per microsecond of one SM.
    sm_rate: f64,
    tensor: bool,
    read_us: f64,
    write_us: f64,
}

impl GemmParams {
    /// How long `shape` takes on an otherwise idle GPU with its operands in HBM.
    ///
    /// Never falls when `batch`, `m`, `n` or `k` grows. `Fitted` for one 16-bit product within the
    /// range of the table, `Extrapolated` for all else.
    pub fn estimate(&self, shape: &GemmShape) -> Estimate {
        let within = |x: u64, range: [u64; 2]| (range[0]..=range[1]).contains(&x);
        let fitted = shape.batch == 1
            && matches!(shape.dtype, DType::Bf16 | DType::Fp16)
            && within(shape.m, self.range_m)
            && within(shape.n, self.range_n)
            && within(shape.k, self.range_k);
        let provenance = if fitted {
            Provenance::Fitted
        } else {
            Provenance::Extrapolated
        };
        Estimate::new(
            Time::from_secs_f64(self.microseconds(shape) * 1e-6),
            provenance,
        )
    }

    /// Microseconds of `shape`; zero when there is nothing to compute.
    pub(crate) fn microseconds(&self, shape: &GemmShape) -> f64 {
        if shape.batch == 0 || shape.m == 0 || shape.n == 0 || shape.k == 0 {
            return 0.0;
        }
        let work = self.work(shape);
        let mut best = f64::INFINITY;
        for tile in &self.tiles {
            best = self.best_split(&work, tile, tile.m, tile.n, best);
            if tile.m != tile.n {
                best = self.best_split(&work, tile, tile.n, tile.m, best);
            }
        }
        if shape.m == 1 {
            let memory = shape.bytes() / (self.gemv_gbps * 1e3);
            let latency = self.gemv_depth_us * work.k / 1024.0;
            best = best.min(self.gemv_launch_us + norm4([memory, latency, 0.0, 0.0]));
        }
        best
    }

    fn work(&self, shape: &GemmShape) -> Work {
        let [batch, m, n, k] = [shape.batch, shape.m, shape.n, shape.k].map(|x| x as f64);
        let element = shape.dtype.bytes() as f64;
        let (tflops, tensor) = match shape.dtype {
            DType::Bf16 | DType::Fp16 => (self.tensor_tflops, true),
            DType::Tf32 => (self.tf32_tflops, true),
            DType::Fp32 => (self.fp32_tflops, false),
        };
        let written = element * batch * m * n;
        Work {
            batch,
            m,
            n,
            k,
            element,
            sm_rate: tflops * self.efficiency * 1e6 / f64::from(self.sms),
            tensor,
            read_us: (shape.bytes() - written) / (self.hbm_gbps * 1e3),
            write_us: written / (self.store_gbps * 1e3),
        }
    }

    /// The time with tiles of `tile_m` x `tile_n` and the best split of k, or `best` if less.
    fn best_split(&self, work: &Work, tile: &Tile, tile_m: u32, tile_n: u32, best: f64) -> f64 {
        let (tile_m, tile_n) = (f64::from(tile_m), f64::from(tile_n));
        let sms = f64::from(self.sms);
        let resident = f64::from(tile.resident);
        let efficiency = if work.tensor { tile.efficiency } else { 1.0 };
        let tiles = work.batch * (work.m / tile_m).ceil() * (work.n / tile_n).ceil();
        // FLOPs and operand elements of one tile per unit of k.
        let flop = 2.0 * tile_m * tile_n;
        let edge = tile_m + tile_n;
        let tile_us_per_k = flop / (work.sm_rate * efficiency);
        let l2_us_per_k = edge * work.element / (self.l2_gbps * 1e3);
        let store_us = tile_m * tile_n * work.element / (self.sm_store_gbps * 1e3);

        let mut best = best;
        // No split does less work than this, so a hopeless tile is left at once.
        let least = (tiles * work.k * (tile_us_per_k / sms).max(l2_us_per_k)).max(work.read_us);
        let floor = work.write_us + least;
        let hopeless = |fixed: f64, best: f64| fixed + floor >= best;
        if hopeless(self.launch_us, best) {
            return best;
        }
        for split in SPLITS {
            let mut fixed = self.launch_us;
            let mut depth = (work.k / (split * K_STEP)).ceil() * K_STEP;
            if split > 1.0 {
                let partial = 4.0 * split * work.batch * work.m * work.n;
                fixed += self.split_us + partial / (self.split_gbps * 1e3);
                depth = depth.max(MIN_SPLIT_DEPTH);
                if hopeless(fixed, best) {
                    break;
                }
            }
            // Full waves, then a last one: an SM with few CTAs left cannot hide its latency, so
            // the last wave never takes less than the time of a lone CTA.
            let ctas = tiles * split;
            let full = (ctas / (sms * resident)).floor();
            let last = ((ctas - full * sms * resident) / sms).ceil();
            let (load, waves) = if last > 0.0 {
                let lone = self.lone_cta * resident;
                (full * resident + last.max(lone), full + 1.0)
            } else {
                (full * resident, full)
            };
            let store = (load * store_us).max(work.write_us);
            let fill = waves * self.fill_us * (depth / self.fill_depth).min(1.0);
            fixed += store + fill;
            let demands = [
                load * depth * tile_us_per_k,
                ctas * depth * l2_us_per_k,
                work.read_us,
                waves * depth / K_STEP * self.k_step_us,
            ];
            let worst = demands.into_iter().fold(0.0, f64::max);
            if fixed + worst < best {
                best = best.min(fixed + norm4(demands));
            }
        }
        best
    }
}

/// The 4-norm: at least the largest term, at most 41 % more. Square roots round alike everywhere.
pub(crate) fn norm4(terms: [f64; 4]) -> f64 {
    let largest = terms.into_iter().fold(0.0, f64::max);
    if largest == 0.0 {
        return 0.0;
    }
    let sum: f64 = terms
        .into_iter()
        .map(|term| {
            let square = (term / largest) * (term / largest);
            square * square
        })
        .sum();
    largest * sum.sqrt().sqrt()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The fitted constants of the A100.
    pub(crate) fn a100() -> GemmParams {
        #[derive(Deserialize)]
        struct Preset {
            gpu: Gpu,
        }
        #[derive(Deserialize)]
        struct Gpu {
            gemm: GemmParams,
        }
        let text = include_str!("../hardware/fitted/a100_gemm.toml");
        toml::from_str::<Preset>(text).unwrap().gpu.gemm
    }

    /// Rate in TFLOPS of a shape on the A100.
    fn tflops(shape: GemmShape) -> f64 {
        shape.flops() / a100().estimate(&shape).time.as_secs_f64() / 1e12
    }

    #[track_caller]
    fn check_near(actual: f64, expected: f64, tolerance: f64) {
        let error = actual / expected - 1.0;
        assert!(
            error.abs() <= tolerance,
            "expected {expected} within {tolerance}, found {actual}"
        );
    }

    #[test]
    fn nothing_takes_no_time() {
        for (batch, m) in [(0, 5), (5, 0)] {
            let shape = GemmShape::batched(batch, m, 64, 64, DType::Bf16);
            assert_eq!(a100().estimate(&shape).time, Time::ZERO);
        }
    }

    #[test]
    fn norm_of_one_term_is_that_term_and_of_four_equal_ones_root_two() {
        assert_eq!(norm4([3.0, 0.0, 0.0, 0.0]), 3.0);
        check_near(norm4([1.0; 4]), 2f64.sqrt(), 1e-12);
        assert_eq!(norm4([0.0; 4]), 0.0);
    }

    #[test]
    fn large_squares_run_near_the_measured_peak() {
        // superbench 0.4.0 on ND A100 v4, mean of 729 nodes: bf16 261, fp16 275, tf32 127, fp32
        // 18.4 TFLOPS. The fitted table is from a run at up to 290 TFLOPS in bf16.
        let square = |dtype| tflops(GemmShape::dense(8192, 8192, 8192, dtype));
        check_near(square(DType::Fp16), 275.4, 0.08);
        check_near(square(DType::Tf32), 127.4, 0.15);
        check_near(square(DType::Fp32), 18.36, 0.08);
    }

    #[test]
    fn a_tall_fp32_product_is_as_published() {
        // superbench: cublasSgemm k=1024 m=1024 n=7168, 898.7 us.
        let shape = GemmShape::dense(7168, 1024, 1024, DType::Fp32);
        check_near(a100().microseconds(&shape), 898.7, 0.15);
    }

    #[test]
    fn one_row_is_bound_by_reading_the_weights() {
        let shape = GemmShape::dense(1, 16384, 16384, DType::Bf16);
        let rate = shape.bytes() / a100().estimate(&shape).time.as_secs_f64();
        check_near(rate, 1.5e12, 0.07);
    }

    #[test]
    fn many_small_products_run_at_the_published_share_of_one_large() {
        // Tutel, first version of the paper: batched GEMM of (2048, E_g = 2, 8 rows) against
        // (1, 2, 16384 rows), K = N = 2048: 8.8 % of the throughput.
        for dtype in [DType::Fp16, DType::Tf32] {
            let small = tflops(GemmShape::batched(4096, 8, 2048, 2048, dtype).sharing(2));
            let large = tflops(GemmShape::batched(2, 16384, 2048, 2048, dtype));
            check_near(small / large, 0.088, 0.25);
        }
    }

    #[test]
    fn old_software_scales_only_the_compute_bound() {
        let new = a100();
        let old = GemmParams {
            efficiency: 0.5,
            ..new.clone()
        };
        let ratio = |shape| old.microseconds(&shape) / new.microseconds(&shape);
        let dense = ratio(GemmShape::dense(8192, 8192, 8192, DType::Bf16));
        let thin = ratio(GemmShape::dense(1, 8192, 8192, DType::Bf16));
        // Storing C, and reading the weights, do not slow down.
        assert!(dense > 1.75 && thin < 1.15, "{dense} {thin}");
    }

    #[test]
    fn provenance_is_fitted_only_within_the_table() {
        let of = |shape: GemmShape| a100().estimate(&shape).provenance;
        let inside = GemmShape::dense(100, 2048, 2048, DType::Bf16);
        assert_eq!(of(inside), Provenance::Fitted);
        for outside in [
            GemmShape { m: 8193, ..inside },
            GemmShape { n: 31, ..inside },
            GemmShape { batch: 2, ..inside },
            GemmShape {
                dtype: DType::Fp32,
                ..inside
            },
        ] {
            assert_eq!(of(outside), Provenance::Extrapolated);
        }
    }

    proptest! {
        #[test]
        fn time_never_falls_when_an_extent_grows(
            batch in 1u64..64, m in 1u64..3000, n in 1u64..3000, k in 1u64..5000,
            more in 1u64..300, axis in 0..4, dtype in 0usize..4,
        ) {
            let shape = GemmShape::batched(batch, m, n, k, DType::ALL[dtype]);
            let larger = match axis {
                0 => GemmShape::batched(batch + more, m, n, k, shape.dtype),
                1 => GemmShape { m: m + more, ..shape },
                2 => GemmShape { n: n + more, ..shape },
                _ => GemmShape { k: k + more, ..shape },
            };
            let params = a100();
            prop_assert!(params.estimate(&shape).time <= params.estimate(&larger).time);
        }

        #[test]
        fn no_product_beats_the_peak_or_the_memory(
            batch in 1u64..64, m in 1u64..20000, n in 1u64..20000, k in 1u64..20000,
        ) {
            let shape = GemmShape::batched(batch, m, n, k, DType::Bf16);
            let seconds = a100().estimate(&shape).time.as_secs_f64();
            // Datasheet: 312 TFLOPS dense, 2,039 GB/s.
            prop_assert!(shape.flops() / seconds <= 312e12);
            prop_assert!(shape.bytes() / seconds <= 2.039e12);
        }
    }
}
