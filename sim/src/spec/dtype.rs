//! Number types of tensors and tensor cores.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The number type of a layer: how tensors are stored and how GEMMs multiply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 4-byte tensors, GEMMs on CUDA cores.
    Fp32,
    /// 4-byte tensors, GEMMs on tensor cores in TF32 (the default of PyTorch 1.7 to 1.11).
    Tf32,
    /// 2-byte IEEE half.
    Fp16,
    /// 2-byte bfloat.
    Bf16,
}

impl DType {
    /// All number types.
    pub const ALL: [DType; 4] = [DType::Fp32, DType::Tf32, DType::Fp16, DType::Bf16];

    /// Bytes of one stored element.
    pub const fn bytes(self) -> u64 {
        match self {
            DType::Fp32 | DType::Tf32 => 4,
            DType::Fp16 | DType::Bf16 => 2,
        }
    }

    /// The name used on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Fp32 => "fp32",
            DType::Tf32 => "tf32",
            DType::Fp16 => "fp16",
            DType::Bf16 => "bf16",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = String;
    fn from_str(text: &str) -> Result<DType, String> {
        DType::ALL
            .into_iter()
            .find(|dtype| dtype.name() == text)
            .ok_or_else(|| format!("expected fp32, tf32, fp16 or bf16, found `{text}`"))
    }
}
