//! How long an operation takes, and how far to believe it.

pub mod gemm;
pub mod gemm_table;
pub mod provenance;
