//! Settings of commands that look at one operation alone.

use super::dtype;
use clap::Args;
use moeplan_sim::spec::{AllToAll, DType, Encode};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::str::FromStr;

/// A size in bytes: a whole number, or one with a unit (`64MiB`, `1 GB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSize", into = "u64")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum RawSize {
    Number(i64),
    Text(String),
}

impl From<Size> for u64 {
    fn from(size: Size) -> u64 {
        size.0
    }
}

impl TryFrom<RawSize> for Size {
    type Error = String;
    fn try_from(raw: RawSize) -> Result<Size, String> {
        match raw {
            RawSize::Number(number) => number.to_string().parse(),
            RawSize::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("expected bytes such as 65536, 64MiB or 1GB, found `{text}`");
        let digits = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let scale: u64 = match unit.trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(scale).map(Size).ok_or_else(wrong)
    }
}

/// `[collective]`.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CollectiveSettings {
    /// What one GPU holds, as nccl-tests counts it: 1048576, 64MiB, 1GB
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Size>,
    /// All-to-all: linear, 2dh, 2dh-fused, 2dh-ll128 or 3dh [default: linear]
    #[arg(long, value_name = "ALGORITHM")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<AllToAll>,
    /// All-to-all: bytes by source (row) and destination (column), a CSV without header
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrix: Option<PathBuf>,
    /// NCCL release, a profile of the cluster [default: the cluster's]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
    /// Measured times to go by where they cover the case (nccl-tests rows as CSV)
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<PathBuf>,
}

impl CollectiveSettings {
    /// These settings, and those of `file` where these say nothing.
    #[must_use]
    pub fn over(&self, file: &CollectiveSettings) -> CollectiveSettings {
        CollectiveSettings {
            bytes: self.bytes.or(file.bytes),
            algorithm: self.algorithm.or(file.algorithm),
            matrix: self.matrix.clone().or_else(|| file.matrix.clone()),
            library: self.library.clone().or_else(|| file.library.clone()),
            table: self.table.clone().or_else(|| file.table.clone()),
        }
    }
}

/// `[kernel]`. Which settings a kernel has is in [`crate::command::kernel`].
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct KernelSettings {
    /// gemm, batched-gemm: rows of the output
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub m: Option<u64>,
    /// gemm, batched-gemm: columns of the output
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// gemm, batched-gemm: depth of the product
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k: Option<u64>,
    /// batched-gemm: products
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u64>,
    /// batched-gemm: distinct weights; products that share one read it again from L2 [default: one a product]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<u64>,
    /// fp32, tf32, fp16 or bf16 [default: bf16; encode, decode: tf32]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DType>,
    /// gemm, batched-gemm, moe-ffn: measured times to go by, in the columns of `validate --table`
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<PathBuf>,
    /// moe-ffn: tokens of the expert-parallel group
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_tokens: Option<u64>,
    /// moe-ffn: channels of a token
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<u64>,
    /// moe-ffn: hidden channels of an expert
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inter_size: Option<u64>,
    /// moe-ffn: tensor-parallel ranks [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tp: Option<u64>,
    /// moe-ffn: expert-parallel ranks [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ep: Option<u64>,
    /// moe-ffn: exponent of the power law that expert loads follow [default: 1.01]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// encode, decode: T, tokens on the GPU
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_step: Option<u64>,
    /// encode, decode: D, channels of a token
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_dim: Option<u64>,
    /// moe-ffn, encode, decode: experts per token [default: 2]
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// moe-ffn, encode, decode: experts over all GPUs
    #[arg(long, value_name = "E", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_experts: Option<u64>,
    /// encode, decode: capacity factor [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_factor: Option<f64>,
    /// encode, decode: dense or sparse [default: sparse]
    #[arg(long, value_name = "KIND")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode: Option<Encode>,
}
