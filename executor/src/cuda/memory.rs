//! Device memory of one step: every buffer of every rank that its tasks use, allocated before the step and freed after.
//!
//! Nothing is allocated while streams run, so no allocation is timed and none adds an order that the program does not
//! have. The price: transient buffers do not share memory, so a step needs the sum of its buffers where the
//! simulator counts the most alive at once.

use super::device::Device;
use crate::ExecError;
use crate::backend::Job;
use cudarc::driver::CudaSlice;
use moeplan_sim::ir::BufferId;
use std::collections::BTreeMap;

/// What a rank needs besides the program's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extra {
    /// (T, k) i32.
    Experts,
    /// (T, k) f32: factors of the choices.
    Chosen,
    /// (T, k) i32.
    Locations,
    /// (T) i32.
    Order,
    /// Scratch of the slot scan.
    TileCounts,
    /// (E) i32.
    Totals,
    /// (E) f32: column sums of the gate's scores.
    ScoreSums,
    /// (T, E) f32.
    LogitsGradient,
    /// (T, k) f32, zero.
    NoGradient,
    /// (T, k) i64, of the n-th task that finds slots.
    Places(usize),
    /// What the n-th repetition or local sum is staged in.
    Staging(usize),
}

/// Buffers by rank.
pub(super) struct Memory {
    buffers: Vec<BTreeMap<BufferId, CudaSlice<u8>>>,
    extras: Vec<BTreeMap<Extra, CudaSlice<u8>>>,
}

impl Memory {
    /// Allocates what `job` uses.
    pub(super) fn new(device: &Device, job: &Job<'_>) -> Result<Memory, ExecError> {
        let world = job.program.world_size;
        let mut memory = Memory {
            buffers: (0..world).map(|_| BTreeMap::new()).collect(),
            extras: (0..world).map(|_| BTreeMap::new()).collect(),
        };
        for rank in 0..world {
            let tasks = job.lowered.tasks.iter().flat_map(|ranks| &ranks[rank]);
            let mut used: Vec<BufferId> = tasks.flat_map(|task| task.buffers()).collect();
            used.sort_unstable();
            used.dedup();
            for buffer in used {
                let plan = &job.lowered.buffers[buffer.0 as usize];
                let bytes = plan.elements[rank] * 4;
                if bytes > 0 {
                    let slice = allocate(device, rank, &plan.name, bytes)?;
                    memory.buffers[rank].insert(buffer, slice);
                }
            }
        }
        Ok(memory)
    }

    /// Address of a buffer; 0 where the rank has none of its elements.
    pub(super) fn at(&self, device: &Device, rank: usize, buffer: BufferId) -> u64 {
        self.buffers[rank]
            .get(&buffer)
            .map_or(0, |slice| device.address(slice))
    }

    /// Bytes of a buffer.
    pub(super) fn bytes(&self, rank: usize, buffer: BufferId) -> usize {
        self.buffers[rank].get(&buffer).map_or(0, CudaSlice::len)
    }

    /// Address of an extra, allocated when it is first asked for.
    pub(super) fn extra(
        &mut self,
        device: &Device,
        rank: usize,
        extra: Extra,
        bytes: usize,
    ) -> Result<u64, ExecError> {
        if let Some(slice) = self.extras[rank].get(&extra) {
            return Ok(device.address(slice));
        }
        let slice = allocate(device, rank, &format!("{extra:?}"), bytes.max(1))?;
        let address = device.address(&slice);
        self.extras[rank].insert(extra, slice);
        Ok(address)
    }

    /// Address and bytes of an extra that was asked for before.
    pub(super) fn known(&self, device: &Device, rank: usize, extra: Extra) -> Option<(u64, usize)> {
        let slice = self.extras[rank].get(&extra)?;
        Some((device.address(slice), slice.len()))
    }

    /// Bytes of a rank's buffers, without extras.
    pub(super) fn total(&self, rank: usize) -> u64 {
        self.buffers[rank]
            .values()
            .map(|slice| slice.len() as u64)
            .sum()
    }
}

fn allocate(
    device: &Device,
    rank: usize,
    name: &str,
    bytes: usize,
) -> Result<CudaSlice<u8>, ExecError> {
    let refused = || ExecError::Memory {
        rank,
        buffer: name.to_string(),
        bytes: bytes as u64,
    };
    device.allocate(bytes)?.ok_or_else(refused)
}
