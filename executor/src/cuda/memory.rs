//! Device memory of one step: the buffers that tasks use, and what a rank needs besides, allocated before the step and
//! freed after.
//!
//! Nothing is allocated while streams run, so no allocation is timed. Buffers share memory as [`super::sharing`] lays them out.

use super::device::Device;
use super::sharing::{Order, layout};
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
    /// (T, k) i64, of one task that finds slots after the other: all run on the compute stream.
    Places,
    /// What repetitions and local sums are staged in, one after the other.
    Staging,
    /// (T, D) f32, where tokens are stored in 2 bytes: the gate's copy.
    WideTokens,
}

/// Buffers by rank.
pub(super) struct Memory {
    blocks: Vec<Vec<CudaSlice<u8>>>,
    buffers: Vec<BTreeMap<BufferId, Place>>,
    extras: Vec<BTreeMap<Extra, CudaSlice<u8>>>,
}

/// Where a buffer lies.
struct Place {
    block: usize,
    offset: usize,
    bytes: usize,
}

impl Memory {
    /// Allocates what `job` uses: one block a rank, or where `apart` one a buffer.
    pub(super) fn new(device: &Device, job: &Job<'_>, apart: bool) -> Result<Memory, ExecError> {
        let world = job.program.world_size;
        let order = Order::new(job.program);
        let mut memory = Memory {
            blocks: Vec::new(),
            buffers: Vec::new(),
            extras: (0..world).map(|_| BTreeMap::new()).collect(),
        };
        for rank in 0..world {
            let layout = layout(job, rank, &order);
            let mut blocks = Vec::new();
            if !apart && layout.bytes > 0 {
                blocks.push(allocate(device, rank, "buffers of the step", layout.bytes)?);
            }
            let mut places = BTreeMap::new();
            for (buffer, (offset, bytes)) in layout.places {
                let (block, offset) = match apart {
                    false => (0, offset),
                    true => {
                        let name = &job.lowered.buffers[buffer.0 as usize].name;
                        blocks.push(allocate(device, rank, name, bytes)?);
                        (blocks.len() - 1, 0)
                    }
                };
                places.insert(
                    buffer,
                    Place {
                        block,
                        offset,
                        bytes,
                    },
                );
            }
            memory.blocks.push(blocks);
            memory.buffers.push(places);
        }
        Ok(memory)
    }

    /// Address of a buffer; 0 where the rank has none of its elements.
    pub(super) fn at(&self, device: &Device, rank: usize, buffer: BufferId) -> u64 {
        self.buffers[rank].get(&buffer).map_or(0, |place| {
            device.address(&self.blocks[rank][place.block]) + place.offset as u64
        })
    }

    /// Bytes of a buffer.
    pub(super) fn bytes(&self, rank: usize, buffer: BufferId) -> usize {
        self.buffers[rank]
            .get(&buffer)
            .map_or(0, |place| place.bytes)
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
        let blocks = self.blocks[rank].iter();
        blocks.map(|slice| slice.len() as u64).sum()
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
