//! Device memory of one step: the buffers that tasks use, and what a rank needs besides, allocated before the step and
//! freed after.
//!
//! Nothing is allocated while streams run, so no allocation is timed. Buffers share memory as [`super::sharing`] lays them out.

use super::device::Device;
use super::gpus::Dealt;
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
    /// f32 sums of slices of rows, of one task after the other.
    SliceSums,
    /// (T, D) f32, where tokens are stored in 2 bytes: the gate's copy.
    WideTokens,
    /// Rows that came from other GPUs, see [`super::wires`].
    Inbox,
    /// Rows that go to other GPUs.
    Outbox,
}

/// Buffers by rank, each on its rank's GPU.
pub(super) struct Memory {
    blocks: Vec<Vec<CudaSlice<u8>>>,
    buffers: Vec<BTreeMap<BufferId, Place>>,
    extras: Vec<BTreeMap<Extra, (Place, CudaSlice<u8>)>>,
}

/// Where something lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Address.
    pub(super) at: u64,
    /// Bytes.
    pub(super) bytes: usize,
}

impl Memory {
    /// Allocates what `job` uses: one block a rank, or where `apart` one a buffer.
    pub(super) fn new(dealt: Dealt<'_>, job: &Job<'_>, apart: bool) -> Result<Memory, ExecError> {
        let world = job.program.world_size;
        let order = Order::new(job.program);
        let mut memory = Memory {
            blocks: Vec::new(),
            buffers: Vec::new(),
            extras: (0..world).map(|_| BTreeMap::new()).collect(),
        };
        for rank in 0..world {
            let device = dealt.of(rank);
            let layout = layout(job, rank, &order);
            let mut blocks = Vec::new();
            let mut base = 0;
            if !apart && layout.bytes > 0 {
                let block = allocate(device, rank, "buffers of the step", layout.bytes)?;
                base = device.address(&block);
                blocks.push(block);
            }
            let mut places = BTreeMap::new();
            for (buffer, (offset, bytes)) in layout.places {
                let at = match apart {
                    false => base + offset as u64,
                    true => {
                        let name = &job.lowered.buffers[buffer.0 as usize].name;
                        let block = allocate(device, rank, name, bytes)?;
                        let at = device.address(&block);
                        blocks.push(block);
                        at
                    }
                };
                places.insert(buffer, Place { at, bytes });
            }
            memory.blocks.push(blocks);
            memory.buffers.push(places);
        }
        Ok(memory)
    }

    /// Address of a buffer; 0 where the rank has none of its elements.
    pub(super) fn at(&self, rank: usize, buffer: BufferId) -> u64 {
        self.buffers[rank].get(&buffer).map_or(0, |place| place.at)
    }

    /// Bytes of a buffer.
    pub(super) fn bytes(&self, rank: usize, buffer: BufferId) -> usize {
        self.buffers[rank]
            .get(&buffer)
            .map_or(0, |place| place.bytes)
    }

    /// Address of an extra, allocated when it is first asked for and again when more of it is. A step is planned twice: the
    /// second time all are as large as they have to be.
    pub(super) fn extra(
        &mut self,
        device: &Device,
        rank: usize,
        extra: Extra,
        bytes: usize,
    ) -> Result<u64, ExecError> {
        let bytes = bytes.max(1);
        if let Some(place) = self.known(rank, extra).filter(|place| bytes <= place.bytes) {
            return Ok(place.at);
        }
        let slice = allocate(device, rank, &format!("{extra:?}"), bytes)?;
        let at = device.address(&slice);
        self.extras[rank].insert(extra, (Place { at, bytes }, slice));
        Ok(at)
    }

    /// Where an extra lies that was asked for before.
    pub(super) fn known(&self, rank: usize, extra: Extra) -> Option<Place> {
        self.extras[rank].get(&extra).map(|(place, _)| *place)
    }

    /// Bytes of a rank's buffers, without extras.
    pub(super) fn total(&self, rank: usize) -> u64 {
        let blocks = self.blocks[rank].iter();
        blocks.map(|slice| slice.len() as u64).sum()
    }
}

/// Device memory for a rank.
pub(super) fn allocate(
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
