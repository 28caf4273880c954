//! Slots of experts on ranks, and what a routing step becomes on them.

use crate::spec::{ResolvedLayer, SpecError};
use moeplan_traces::RoutingStep;

/// Which expert every slot holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    /// Slots of one rank.
    slots_per_rank: usize,
    /// Expert by `[rank * slots_per_rank + slot]`.
    experts: Vec<u32>,
    /// Slots by expert, ascending.
    copies: Vec<Vec<u32>>,
}

impl Arrangement {
    /// Slots that hold `experts`, in the order of ranks.
    ///
    /// # Panics
    /// An expert from 0 to `num_experts` that no slot holds.
    pub fn new(experts: Vec<u32>, slots_per_rank: usize, num_experts: usize) -> Arrangement {
        let mut copies = vec![Vec::new(); num_experts];
        for (slot, &expert) in experts.iter().enumerate() {
            copies[expert as usize].push(slot as u32);
        }
        assert!(
            copies.iter().all(|slots| !slots.is_empty()),
            "every expert has a slot"
        );
        Arrangement {
            slots_per_rank,
            experts,
            copies,
        }
    }

    /// The layer's own placement: rank r holds experts r·E_g to (r+1)·E_g - 1. Further slots of a rank hold
    /// its own experts again, in turn.
    pub fn contiguous(layer: &ResolvedLayer, slots_per_rank: usize) -> Arrangement {
        let local = layer.local_experts as usize;
        let experts = (0..layer.world_size as usize).flat_map(|rank| {
            (0..slots_per_rank).map(move |slot| (rank * local + slot % local) as u32)
        });
        Arrangement::new(
            experts.collect(),
            slots_per_rank,
            layer.num_experts as usize,
        )
    }

    /// Slots of a rank.
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// The expert of every slot.
    pub fn experts(&self) -> &[u32] {
        &self.experts
    }

    /// Slots that hold `expert`.
    pub fn copies(&self, expert: usize) -> &[u32] {
        &self.copies[expert]
    }

    /// The rank of a slot.
    pub fn rank_of(&self, slot: u32) -> usize {
        slot as usize / self.slots_per_rank
    }

    /// The layer that runs on these slots: every slot is an expert of its own, the gate chooses among the
    /// real ones.
    pub fn layer(&self, layer: &ResolvedLayer) -> ResolvedLayer {
        ResolvedLayer {
            num_experts: self.experts.len() as u64,
            local_experts: self.slots_per_rank as u64,
            gate_experts: layer.gate_experts,
            ..layer.clone()
        }
    }

    /// `step` on these slots. A source sends an expert's rows to the copy on its own rank where there is
    /// one; else it deals them out over all copies, starting at another one than its neighbour.
    ///
    /// # Errors
    /// A step of another shape.
    pub fn apply(&self, step: &RoutingStep) -> Result<RoutingStep, SpecError> {
        let (experts, slots) = (self.copies.len(), self.experts.len());
        if step.num_experts() != experts {
            let expected = format!("routing over {experts} experts");
            return Err(SpecError::new("trace", expected, step.num_experts()));
        }
        let mut counts = vec![0u32; step.source_ranks() * slots];
        for (source, (row, to)) in step.rows().zip(counts.chunks_mut(slots)).enumerate() {
            for (expert, &count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
                self.deal(source, expert, count, to);
            }
        }
        RoutingStep::new(step.step(), step.layer(), step.top_k(), slots, counts)
            .map_err(|error| SpecError::new("trace", "a routing step", error))
    }

    fn deal(&self, source: usize, expert: usize, count: u32, to: &mut [u32]) {
        let copies = &self.copies[expert];
        if let Some(&own) = copies.iter().find(|&&slot| self.rank_of(slot) == source) {
            to[own as usize] += count;
            return;
        }
        let many = copies.len() as u32;
        let (each, rest) = (count / many, count % many);
        for (index, _) in copies.iter().enumerate() {
            let slot = copies[(source + index) % copies.len()] as usize;
            to[slot] += each + u32::from((index as u32) < rest);
        }
    }

    /// Load of the fullest rank if every expert's load is dealt out evenly over its copies.
    pub fn max_load(&self, loads: &[f64]) -> f64 {
        let share = |slot: &u32| loads[*slot as usize] / self.copies[*slot as usize].len() as f64;
        let ranks = self.experts.chunks(self.slots_per_rank);
        let sums = ranks.map(|slots| slots.iter().map(share).sum());
        sums.fold(0.0, f64::max)
    }
}
