//! What the program's memory model says that a backend's buffers take.

use crate::lower::Lowered;
use moeplan_sim::ir::{Lifetime, Program};

/// When a backend decides where buffers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocation {
    /// While the step runs: a buffer is there from its first use to its last.
    AsUsed,
    /// Before the step: buffers share bytes only where the program's own order keeps them apart.
    Ahead,
}

/// Bytes of the buffers of `rank`: with the layer's inputs, which its neighbours own, and without the optimizer's state,
/// which no operation touches.
pub fn modelled_bytes(
    program: &Program,
    lowered: &Lowered,
    allocation: Allocation,
    rank: usize,
) -> u64 {
    match allocation {
        Allocation::Ahead => program.most_at_once(rank, &lowered.results()),
        Allocation::AsUsed => {
            let (peak, live) = program.peak_memory(rank);
            let optimizer = live.iter().find(|(name, _)| name.starts_with("optimizer"));
            let untouched = optimizer.map_or(0, |(_, bytes)| *bytes);
            peak - untouched + input_bytes(program, rank)
        }
    }
}

/// Bytes of what neighbouring layers own.
pub fn input_bytes(program: &Program, rank: usize) -> u64 {
    let buffers = program.buffers.iter();
    let inputs = buffers.filter(|buffer| buffer.lifetime == Lifetime::External);
    inputs.map(|buffer| *buffer.bytes.get(rank)).sum()
}
