//! The Parquet face.
//!
//! | column | type | |
//! |---|---|---|
//! | `step` | uint64 | |
//! | `layer` | uint32 | |
//! | `source_rank` | uint32 | |
//! | `counts` | list of `experts` uint32 | copies to every expert |
//!
//! or, where the choices of single tokens are known, `experts` (list of `top_k` uint32, best
//! first) and, if recorded, `scores` (list of `top_k` float32) instead of `counts`; a row is a
//! token then. Rows stand in the order of the CSV face. The metadata lines of the CSV face are
//! the value of the key `moeplan-trace` of the file.

mod file;
mod read;
mod write;

pub(crate) use file::{Batches, guarded, open_batches};
pub(crate) use read::ParquetReader;
pub use write::ParquetWriter;

/// Key of the file's metadata that holds ours.
pub(crate) const METADATA_KEY: &str = "moeplan-trace";

/// Numbers of one batch: large enough to be fast, small beside anything else.
pub(crate) const BATCH_CELLS: usize = 1 << 20;
