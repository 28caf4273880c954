//! The run file: what a run did, step by step, compact, and readable while it grows.
//!
//! A file is [`MAGIC`], the version of the format, and blocks. A block is
//! `length u32 | CRC-32 of kind and payload u32 | kind u8 | payload`, little-endian; a payload is
//! zstd over columns ([`columns`]). Blocks are appended in one write each, so a run that is killed
//! leaves a file that reads up to its last whole block, and a reader can follow one that grows.
//!
//! - [`model`]: what is in it: a header, steps, the details of some steps, the layers of the trace.
//! - [`frame`]: blocks to bytes and back. [`codec`]: payloads to columns and back.
//! - [`detail`]: one step's program and timeline summed up for people.
//! - [`recorder`]: a run as it is played, written down.

mod codec;
mod columns;
pub mod detail;
mod frame;
pub mod model;
pub mod recorder;

pub use frame::{MAGIC, Reader, Writer};
pub use model::{Block, Detail, End, Header, Layers, RoutingRecord, RunRecord, StepRecord};
