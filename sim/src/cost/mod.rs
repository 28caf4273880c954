//! How long an operation takes, and how far to believe it.

pub mod gemm;
pub mod provenance;
