//! Time of vLLM's fused MoE feed-forward kernel (Triton, 16-bit) on one expert-parallel rank.
//!
//! One launch per grouped GEMM covers all experts: rows are sorted by expert and padded to a block
//! each, every block streams its expert's weights. vLLM takes small blocks (16 x 32) while there
//! are no more tokens than local experts, 64 x 64 blocks above, and for some (experts, inter)
//! pairs a file of tuned blocks. The time is
//!
//! ```text
//! launches + gemm(2 inter x hidden) + gemm(hidden x inter) + passes over the intermediates
//! ```
//!
//! each GEMM a 4-norm of tensor cores, HBM (weights of the experts hit) and step latency, as in
//! [`crate::cost::gemm`], plus a share of the operand reads by the blocks, which these kernels hide
//! less well than cuBLAS. One L2 rate for all blocks instead fitted worse (12.0 against 9.5 %), as
//! did L2 as a fourth term of the norm (10.4 %).
//!
//! The passes (activation, weighted sum) run over all `tokens * top_k` rows
//! even where most experts live on other ranks: that is what the kernel does.
//!
//! Not monotone in `tokens`: the step up where the blocks change is real.

use crate::cost::gemm::norm4;
use crate::cost::provenance::{Estimate, Provenance};
use crate::units::Time;
use serde::{Deserialize, Serialize};

/// Depth of one step of a block's main loop, in elements.
const K_STEP: f64 = 32.0;
/// Extents along k that are a multiple of this many 16-bit elements load at full width.
const ALIGNED: u64 = 16;
/// Block heights for which [`ExpertLoad`] counts blocks.
const BLOCK_ROWS: [u64; 3] = [16, 64, 128];

/// How many rows fall on the experts of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ExpertLoad {
    /// Rows (token copies) of all local experts.
    pub rows: u64,
    /// Local experts with at least one row.
    pub hit: u64,
    /// Blocks of 16, 64 and 128 rows when each expert's rows are padded to whole blocks.
    pub blocks: [u64; 3],
}

impl ExpertLoad {
    /// Counts the rows of each local expert.
    pub fn from_rows(rows: &[u64]) -> ExpertLoad {
        ExpertLoad {
            rows: rows.iter().sum(),
            hit: rows.iter().filter(|rows| **rows > 0).count() as u64,
            blocks: BLOCK_ROWS.map(|block| rows.iter().map(|rows| rows.div_ceil(block)).sum()),
        }
    }
}

/// The feed-forward part of one MoE layer on one rank: gated, so w1 has 2 `inter` columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MoeFfnShape {
    /// Tokens that enter the kernel: those of the whole expert-parallel group.
    pub tokens: u64,
    /// Experts each token goes to.
    pub top_k: u64,
    /// Model dimension.
    pub hidden: u64,
    /// Hidden dimension of an expert on this rank (divided by tensor parallelism).
    pub inter: u64,
    /// Experts on this rank.
    pub experts: u64,
    /// Their rows.
    pub load: ExpertLoad,
    /// Whether vLLM ships tuned blocks for this (experts, inter) on this GPU.
    pub tuned: bool,
}

impl MoeFfnShape {
    /// Floating-point operations on real rows: three products of 2 rows hidden inter.
    pub fn flops(&self) -> f64 {
        6.0 * self.load.rows as f64 * self.hidden as f64 * self.inter as f64
    }
}

/// Blocks of C as the kernel computes them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Block {
    /// Columns.
    pub n: u32,
    /// Blocks that one SM holds at once.
    pub resident: u32,
    /// Tensor-core rate of the whole GPU with these blocks, TFLOPS.
    pub tflops: f64,
    /// Operand bytes over the part of their reading that these blocks do not hide behind the
    /// tensor cores, GB/s: the higher, the better hidden.
    pub exposed_gbps: f64,
}

/// Constants of the fused MoE kernel for one type of GPU, fitted to a table of measurements.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MoeFfnParams {
    /// Streaming multiprocessors.
    pub sms: u32,
    /// All launches of one call (sorting, two GEMMs, activation, sum), microseconds.
    pub launch_us: f64,
    /// Filling the pipeline of a wave, microseconds.
    pub fill_us: f64,
    /// Latency of one step of 32 along k, microseconds.
    pub k_step_us: f64,
    /// Time of a lone block on an SM, as a share (at most 1) of the time of a full SM.
    pub lone_block: f64,
    /// HBM rate of reading weights and rows, GB/s.
    pub hbm_gbps: f64,
    /// HBM rate of the passes over intermediates, GB/s.
    pub pass_gbps: f64,
    /// Elements moved by those passes for each row and column of `inter`.
    pub inter_passes: f64,
    /// Elements moved by those passes for each row and column of `hidden`.
    pub hidden_passes: f64,
    /// Slowdown of a GEMM whose extent along k is no multiple of 16 elements.
    pub unaligned: f64,
    /// Blocks of 16 rows, for few tokens.
    pub small: Block,
    /// Blocks of 64 rows, the default.
    pub large: Block,
    /// Blocks of 128 rows, among the tuned ones.
    pub tuned: Block,
    /// Smallest and largest number of tokens measured.
    pub range_tokens: [u64; 2],
    /// Smallest and largest `hidden` measured.
    pub range_hidden: [u64; 2],
    /// Smallest and largest `inter` measured.
    pub range_inter: [u64; 2],
}

impl MoeFfnParams {
    /// How long `shape` takes on an otherwise idle GPU: `Fitted` within the measured ranges,
    /// `Extrapolated` outside. No tokens take no time.
    pub fn estimate(&self, shape: &MoeFfnShape) -> Estimate {
        let within = |x: u64, range: [u64; 2]| (range[0]..=range[1]).contains(&x);
        let provenance = if within(shape.tokens, self.range_tokens)
            && within(shape.hidden, self.range_hidden)
            && within(shape.inter, self.range_inter)
        {
            Provenance::Fitted
        } else {
            Provenance::Extrapolated
        };
        let time = Time::from_secs_f64(self.microseconds(shape) * 1e-6);
        Estimate::new(time, provenance)
    }

    fn microseconds(&self, shape: &MoeFfnShape) -> f64 {
        if shape.tokens == 0 {
            return 0.0;
        }
        let with = |block: &Block, size: usize| {
            let blocks = shape.load.blocks[size] as f64;
            let rows = BLOCK_ROWS[size] as f64;
            self.gemm(block, rows, blocks, 2 * shape.inter, shape.hidden, shape)
                + self.gemm(block, rows, blocks, shape.hidden, shape.inter, shape)
        };
        let gemms = if shape.tuned {
            with(&self.small, 0)
                .min(with(&self.large, 1))
                .min(with(&self.tuned, 2))
        } else if shape.tokens <= shape.experts {
            with(&self.small, 0)
        } else {
            with(&self.large, 1)
        };
        let columns =
            self.inter_passes * shape.inter as f64 + self.hidden_passes * shape.hidden as f64;
        let passes = 2.0 * shape.tokens as f64 * shape.top_k as f64 * columns;
        self.launch_us + gemms + passes / (self.pass_gbps * 1e3)
    }

    /// Microseconds of one grouped GEMM with `n` columns and depth `k`.
    fn gemm(
        &self,
        block: &Block,
        block_rows: f64,
        blocks: f64,
        n: u64,
        k: u64,
        shape: &MoeFfnShape,
    ) -> f64 {
        if blocks == 0.0 {
            return 0.0;
        }
        let (rows, hit) = (shape.load.rows as f64, shape.load.hit as f64);
        let (sms, resident) = (f64::from(self.sms), f64::from(block.resident));
        let width = f64::from(block.n);
        let columns = (n as f64 / width).ceil();
        let depth = (k as f64 / K_STEP).ceil() * K_STEP;
        let slowdown = if k.is_multiple_of(ALIGNED) {
            1.0
        } else {
            self.unaligned
        };

        // As in the dense model: full waves, then a last one of few blocks per SM.
        let ctas = blocks * columns;
        let full = (ctas / (sms * resident)).floor();
        let last = ((ctas - full * sms * resident) / sms).ceil();
        let (load, waves) = if last > 0.0 {
            let lone = self.lone_block * resident;
            (full * resident + last.max(lone), full + 1.0)
        } else {
            (full * resident, full)
        };
        let flop = 2.0 * block_rows * width * depth;
        // A masked row is multiplied but not loaded.
        let operands = 2.0 * columns * (rows + blocks * width) * depth;
        let from_hbm = 2.0 * depth * (hit * n as f64 + rows);
        waves * self.fill_us
            + slowdown * operands / (block.exposed_gbps * 1e3)
            + norm4([
                slowdown * load * flop / (block.tflops * 1e6 / sms),
                slowdown * from_hbm / (self.hbm_gbps * 1e3),
                waves * depth / K_STEP * self.k_step_us,
                0.0,
            ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fitted constants of the A100.
    fn a100() -> MoeFfnParams {
        let text = include_str!("../hardware/fitted/a100_gemm.toml");
        let preset: toml::Table = text.parse().unwrap();
        preset["gpu"]["moe-ffn"].clone().try_into().unwrap()
    }

    /// Mixtral 8x7B, all experts on one rank, `rows` on each.
    fn mixtral(rows: u64) -> MoeFfnShape {
        MoeFfnShape {
            tokens: rows * 4,
            top_k: 2,
            hidden: 4096,
            inter: 14336,
            experts: 8,
            load: ExpertLoad::from_rows(&[rows; 8]),
            tuned: false,
        }
    }

    fn seconds(shape: &MoeFfnShape) -> f64 {
        a100().estimate(shape).time.as_secs_f64()
    }

    #[test]
    fn rows_are_padded_for_each_expert_apart() {
        let load = ExpertLoad::from_rows(&[0, 1, 16, 17, 130]);
        assert_eq!((load.rows, load.hit), (164, 4));
        assert_eq!(load.blocks, [1 + 1 + 2 + 9, 1 + 1 + 1 + 3, 1 + 1 + 1 + 2]);
    }

    #[test]
    fn few_tokens_are_bound_by_the_weights_of_the_experts_hit() {
        let mut shape = mixtral(1);
        // 3 x 4096 x 14336 weights of two bytes for each of eight experts, at 1.5 to 2 TB/s.
        let weights = 8.0 * 3.0 * 4096.0 * 14336.0 * 2.0;
        let all = seconds(&shape);
        assert!(weights / all > 1.2e12 && weights / all < 2.039e12, "{all}");
        // Two experts hit: about a quarter of the time.
        shape.load = ExpertLoad::from_rows(&[4, 4, 0, 0, 0, 0, 0, 0]);
        let two = seconds(&shape);
        assert!(two < 0.35 * all, "{two} {all}");
    }

    #[test]
    fn tuned_blocks_are_never_slower_and_nothing_beats_the_peak() {
        for rows in [1, 3, 16, 100, 1000, 30_000] {
            let shape = mixtral(rows);
            let tuned = MoeFfnShape {
                tuned: true,
                ..shape
            };
            assert!(seconds(&tuned) <= seconds(&shape));
            assert!(tuned.flops() / seconds(&tuned) < 312e12);
        }
    }

    #[test]
    fn time_grows_with_rows_once_the_blocks_are_chosen() {
        let times: Vec<f64> = (3..200).map(|rows| seconds(&mixtral(rows * 16))).collect();
        assert!(times.is_sorted());
    }

    #[test]
    fn no_tokens_take_no_time_and_an_idle_rank_only_its_passes() {
        assert_eq!(seconds(&mixtral(0)), 0.0);
        let mut idle = mixtral(512);
        idle.load = ExpertLoad::default();
        let time = seconds(&idle);
        assert!(time > 0.0 && time < 0.1 * seconds(&mixtral(512)), "{time}");
    }

    #[test]
    fn provenance_is_fitted_only_within_the_table() {
        let of = |shape: &MoeFfnShape| a100().estimate(shape).provenance;
        assert_eq!(of(&mixtral(16)), Provenance::Fitted);
        let wide = MoeFfnShape {
            hidden: 16384,
            ..mixtral(16)
        };
        assert_eq!(of(&wide), Provenance::Extrapolated);
    }
}
