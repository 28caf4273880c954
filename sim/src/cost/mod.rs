//! How long an operation takes, and how far to believe it.

pub mod gemm;
pub mod gemm_table;
pub mod moe_ffn;
pub mod provenance;
