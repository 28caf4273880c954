//! Device buffers, so that memory follows from the same graph as time.

use super::PerRank;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Index of a buffer in [`Program::buffers`](super::Program).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BufferId(pub u32);

/// How long a buffer lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifetime {
    /// The whole step: weights, gradients, optimizer state.
    Persistent,
    /// From the first operation that touches it to the last.
    Transient,
    /// Made by a neighbouring layer and counted there: the input, and the gradient of the output.
    External,
}

/// One allocation on every rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// What it holds, e.g. `dispatch input, chunk 0`.
    pub name: Cow<'static, str>,
    /// Bytes on each rank.
    pub bytes: PerRank<u64>,
    /// How long it lives.
    pub lifetime: Lifetime,
}
