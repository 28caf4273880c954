//! How long an operation takes, and how far to believe it.

pub mod nccl;
pub mod nccl_table;
pub mod provenance;
