//! What a routing step means under a capacity: copies kept, copies dropped, rows by pair of ranks.

use super::Capacity;
use super::uneven::Uneven;
use crate::ir::PerRank;
use crate::spec::{Padding, ResolvedLayer};
use moeplan_traces::RoutingStep;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The routing of a layer's steps; `None` where a step is balanced.
pub type Steps = Vec<Option<Arc<RoutingStep>>>;

/// Routing of one step.
#[derive(Debug, Clone, Copy)]
pub enum Routing<'a> {
    /// Every expert gets the same number of copies from every GPU.
    Balanced,
    /// Recorded or generated counts, already of the layer's shape.
    Step(&'a RoutingStep),
}

impl<'a> Routing<'a> {
    /// These counts; balanced where there are none.
    pub fn of(step: Option<&'a RoutingStep>) -> Routing<'a> {
        step.map_or(Routing::Balanced, Routing::Step)
    }

    /// The largest number of copies any GPU routes to any expert.
    pub fn largest_count(&self, layer: &ResolvedLayer) -> u64 {
        match self {
            Routing::Balanced => layer.routed_copies().div_ceil(layer.num_experts),
            Routing::Step(step) => u64::from(step.all_counts().iter().copied().max().unwrap_or(0)),
        }
    }
}

/// What a capacity leaves out, in one layer or in all of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drops {
    /// Capacity factor f in force, the mean over layers.
    pub capacity_factor: f64,
    /// Token copies dropped over all ranks and layers.
    pub dropped: u64,
    /// Their share of all token copies, 0 to 1.
    pub fraction: f64,
}

impl Drops {
    /// Those of several layers: the load of each, how many layers have it, and their token copies.
    pub fn sum<'a>(layers: impl Iterator<Item = (&'a Load, u64, u64)>) -> Drops {
        let (mut count, mut copies) = (0.0, 0.0);
        let (mut factor, mut dropped, mut share) = (0.0, 0, 0.0);
        for (load, layers, routed) in layers {
            let (weight, routed) = (layers as f64, (layers * routed) as f64);
            count += weight;
            copies += routed;
            factor += weight * load.capacity.factor;
            dropped += layers * load.dropped;
            share += routed * load.dropped_fraction;
        }
        Drops {
            capacity_factor: factor / f64::max(count, 1.0),
            dropped,
            fraction: share / f64::max(copies, 1.0),
        }
    }

    /// Those of so many times as many tokens.
    #[must_use]
    pub const fn times(self, times: u64) -> Drops {
        Drops {
            dropped: self.dropped.saturating_mul(times),
            ..self
        }
    }
}

/// A routing step under a capacity.
#[derive(Debug)]
pub struct Load {
    /// The capacity in force.
    pub capacity: Capacity,
    /// Token copies that keep their place, by source rank.
    pub kept: PerRank<u64>,
    /// Token copies dropped, over all ranks.
    pub dropped: u64,
    /// Share of all token copies that is dropped, 0 to 1.
    pub dropped_fraction: f64,
    /// Kept copies by `[source rank * num_experts + expert]`, for dropless plans.
    counts: Option<Arc<Vec<u32>>>,
    /// Rows laid out over ranks, by r: worked out once for all plans that are tried on this step.
    uneven: Mutex<BTreeMap<u64, Arc<Uneven>>>,
}

impl Load {
    /// The load of `routing` under capacity setting `x`. Dropless plans drop nothing whatever `x`.
    pub fn new(layer: &ResolvedLayer, x: f64, padding: Padding, routing: &Routing<'_>) -> Load {
        let x = match padding {
            Padding::Capacity => x,
            Padding::Dropless => 0.0,
        };
        let mut capacity = Capacity::of(layer, x, routing);
        capacity.agreed &= padding == Padding::Capacity;
        let copies = layer.routed_copies();
        match routing {
            Routing::Balanced => {
                let kept = copies.min(capacity.per_gpu * layer.num_experts);
                let dropped = copies - kept;
                Load {
                    capacity,
                    kept: PerRank::Same(kept),
                    dropped: dropped * layer.world_size,
                    dropped_fraction: dropped as f64 / copies as f64,
                    counts: (padding == Padding::Dropless)
                        .then(|| Arc::new(balanced_counts(layer))),
                    uneven: Mutex::default(),
                }
            }
            Routing::Step(step) => {
                let limit = u32::try_from(capacity.per_gpu).unwrap_or(u32::MAX);
                let kept: Vec<u64> = step
                    .rows()
                    .map(|row| row.iter().map(|&count| u64::from(count.min(limit))).sum())
                    .collect();
                let routed: u64 = step.total();
                let dropped = routed - kept.iter().sum::<u64>();
                let all_same = kept.windows(2).all(|pair| pair[0] == pair[1]);
                Load {
                    capacity,
                    dropped,
                    dropped_fraction: dropped as f64 / routed.max(1) as f64,
                    // Padded programs stay symmetric: the mean stands for all ranks, whose kept
                    // copies differ by sampling noise only and touch nothing but the row copies of
                    // encode and decode.
                    kept: match padding {
                        Padding::Capacity => {
                            PerRank::Same(kept.iter().sum::<u64>() / kept.len().max(1) as u64)
                        }
                        Padding::Dropless if all_same => PerRank::Same(kept[0]),
                        Padding::Dropless => PerRank::Each(kept),
                    },
                    counts: (padding == Padding::Dropless)
                        .then(|| Arc::new(step.all_counts().to_vec())),
                    uneven: Mutex::default(),
                }
            }
        }
    }

    /// What is dropped, and at which capacity factor.
    pub const fn drops(&self) -> Drops {
        Drops {
            capacity_factor: self.capacity.factor,
            dropped: self.dropped,
            fraction: self.dropped_fraction,
        }
    }

    /// Copies an expert accepts from one rank: the capacity, or all where nothing is padded.
    pub fn limit(&self) -> u64 {
        match self.counts {
            None => self.capacity.per_gpu,
            Some(_) => u64::MAX,
        }
    }

    /// Rows by pair of ranks under `adaptive_r`; `None` where everything is padded to capacity.
    pub(super) fn uneven(&self, layer: &ResolvedLayer, adaptive_r: u64) -> Option<Arc<Uneven>> {
        let counts = self.counts.as_ref()?;
        let mut known = self.uneven.lock().unwrap_or_else(PoisonError::into_inner);
        let laid_out = known
            .entry(adaptive_r)
            .or_insert_with(|| Arc::new(Uneven::new(layer, adaptive_r, counts)));
        Some(laid_out.clone())
    }
}

fn balanced_counts(layer: &ResolvedLayer) -> Vec<u32> {
    let (copies, experts) = (layer.routed_copies(), layer.num_experts);
    let row = (0..experts).map(|e| (copies * (e + 1) / experts - copies * e / experts) as u32);
    let row: Vec<u32> = row.collect();
    row.repeat(layer.world_size as usize)
}
