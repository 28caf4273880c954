//! A rank's buffers: allocated when an operation first writes them, freed after the last.

use crate::ExecError;
use crate::assign::Assignment;
use crate::lower::Lowered;
use moeplan_sim::ir::{BufferId, Lifetime};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Freed buffers by length, kept for the next step as GPU allocators do.
pub(super) type Spare = BTreeMap<usize, Vec<Vec<f32>>>;

/// Buffers of one rank.
#[derive(Debug)]
pub(super) struct RankMemory {
    rank: usize,
    slots: Vec<RwLock<Vec<f32>>>,
    names: Vec<String>,
    sizes: Vec<usize>,
    lifetimes: Vec<Lifetime>,
    /// Outputs are not freed, though no longer counted once the last operation has used them.
    kept: Vec<bool>,
    /// Operations that have not used the buffer yet.
    uses: Vec<AtomicU32>,
    spare: Mutex<Spare>,
    live: AtomicU64,
    peak: AtomicU64,
    /// What the gate decided, and the balancing loss.
    pub(super) gate: RwLock<(Assignment, f32)>,
}

impl RankMemory {
    pub(super) fn new(
        lowered: &Lowered,
        uses: &[Vec<BufferId>],
        rank: usize,
        spare: Spare,
    ) -> RankMemory {
        let plans = &lowered.buffers;
        let counts: Vec<AtomicU32> = plans.iter().map(|_| AtomicU32::new(0)).collect();
        for buffer in uses.iter().flatten() {
            counts[buffer.0 as usize].fetch_add(1, Ordering::Relaxed);
        }
        let mut kept = vec![false; plans.len()];
        for result in lowered.results() {
            kept[result.0 as usize] = true;
        }
        RankMemory {
            rank,
            slots: plans.iter().map(|_| RwLock::default()).collect(),
            names: plans.iter().map(|plan| plan.name.clone()).collect(),
            sizes: plans.iter().map(|plan| plan.elements[rank]).collect(),
            lifetimes: plans.iter().map(|plan| plan.lifetime).collect(),
            kept,
            uses: counts,
            spare: Mutex::new(spare),
            live: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            gate: RwLock::default(),
        }
    }

    /// Puts `values` into a buffer.
    pub(super) fn upload(&self, buffer: BufferId, values: &[f32]) -> Result<(), ExecError> {
        self.allocate(buffer)?;
        self.write(buffer)?.copy_from_slice(values);
        Ok(())
    }

    /// Allocates what lives for the whole step, as far as an operation uses it.
    pub(super) fn allocate_persistent(&self) -> Result<(), ExecError> {
        let used = |index: &usize| self.uses[*index].load(Ordering::Relaxed) > 0;
        (0..self.slots.len())
            .filter(|&index| self.lifetimes[index] == Lifetime::Persistent)
            .filter(used)
            .try_for_each(|index| self.allocate(BufferId(index as u32)))
    }

    /// Allocates a buffer unless it is there.
    pub(super) fn allocate(&self, buffer: BufferId) -> Result<(), ExecError> {
        let index = buffer.0 as usize;
        let size = self.sizes[index];
        if size == 0 || self.read(buffer)?.len() == size {
            return Ok(());
        }
        let reused = {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.get_mut(&size).and_then(Vec::pop)
        };
        let values = match reused {
            Some(values) => values,
            None => {
                let mut values = Vec::new();
                values
                    .try_reserve_exact(size)
                    .map_err(|_| ExecError::Memory {
                        rank: self.rank,
                        buffer: self.names[index].clone(),
                        bytes: size as u64 * 4,
                    })?;
                values.resize(size, 0.0);
                values
            }
        };
        *self.write(buffer)? = values;
        let live = self.live.fetch_add(size as u64 * 4, Ordering::Relaxed) + size as u64 * 4;
        self.peak.fetch_max(live, Ordering::Relaxed);
        Ok(())
    }

    /// Counts one use; after the last a transient buffer is free.
    pub(super) fn release(&self, buffer: BufferId) -> Result<(), ExecError> {
        let index = buffer.0 as usize;
        let last = self.uses[index].fetch_sub(1, Ordering::AcqRel) == 1;
        if !last || self.lifetimes[index] != Lifetime::Transient {
            return Ok(());
        }
        self.live
            .fetch_sub(self.sizes[index] as u64 * 4, Ordering::Relaxed);
        if !self.kept[index] {
            let values = std::mem::take(&mut *self.write(buffer)?);
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.entry(values.len()).or_default().push(values);
        }
        Ok(())
    }

    /// Shared access. The program's dependencies exclude writers; that one is there all the same
    /// is a mistake in them, and told rather than waited for.
    pub(super) fn read(
        &self,
        buffer: BufferId,
    ) -> Result<RwLockReadGuard<'_, Vec<f32>>, ExecError> {
        self.slots[buffer.0 as usize]
            .try_read()
            .map_err(|_| self.race(buffer))
    }

    /// Exclusive access, as [`RankMemory::read`].
    pub(super) fn write(
        &self,
        buffer: BufferId,
    ) -> Result<RwLockWriteGuard<'_, Vec<f32>>, ExecError> {
        self.slots[buffer.0 as usize]
            .try_write()
            .map_err(|_| self.race(buffer))
    }

    fn race(&self, buffer: BufferId) -> ExecError {
        let name = &self.names[buffer.0 as usize];
        ExecError::Disagrees(format!(
            "two operations use `{name}` of rank {} at once, and one writes it",
            self.rank
        ))
    }

    /// Takes a buffer's values.
    pub(super) fn take(&self, buffer: BufferId) -> Result<Vec<f32>, ExecError> {
        Ok(std::mem::take(&mut *self.write(buffer)?))
    }

    /// Most bytes alive at once.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// All buffers, for the next step.
    pub(super) fn into_spare(self) -> Spare {
        let mut spare = self
            .spare
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for slot in self.slots {
            let values = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
            if !values.is_empty() {
                spare.entry(values.len()).or_default().push(values);
            }
        }
        spare
    }
}
