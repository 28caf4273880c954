//! What moving and copying experts costs, priced by the same network as the layer's exchanges.

use super::Arrangement;
use crate::cost::{CostModel, Exchange};
use crate::ir::{Scope, Traffic, Transport};
use crate::units::Time;
use std::sync::Arc;

/// Experts by `[from * world + to]` that ranks send each other so that `old` becomes `new`. A rank that
/// holds an expert already gets none; else it comes from a holder in its own node if there is one, from all
/// holders in turn.
pub(super) fn moves(old: &Arrangement, new: &Arrangement, gpus_per_node: usize) -> Vec<u32> {
    let world = new.experts().len() / new.slots_per_rank();
    let mut moved = vec![0u32; world * world];
    for rank in 0..world {
        let first = rank * new.slots_per_rank();
        let held = &new.experts()[first..first + new.slots_per_rank()];
        for (slot, &expert) in held.iter().enumerate() {
            let holders: Vec<usize> = old
                .copies(expert as usize)
                .iter()
                .map(|&slot| old.rank_of(slot))
                .collect();
            if holders.contains(&rank) || held[..slot].contains(&expert) {
                continue;
            }
            let near: Vec<usize> = holders
                .iter()
                .copied()
                .filter(|holder| holder / gpus_per_node == rank / gpus_per_node)
                .collect();
            let from = if near.is_empty() { &holders } else { &near };
            moved[from[rank % from.len()] * world + rank] += 1;
        }
    }
    moved
}

/// Experts that the copies of every expert pass round to sum their gradients, `[from * world + to]`: a
/// ring over the ranks that hold it. Twice (n-1)/n of an expert cross each link of it.
pub(super) fn ring(arrangement: &Arrangement) -> Vec<(f64, Vec<u32>)> {
    let world = arrangement.experts().len() / arrangement.slots_per_rank();
    let mut by_size: std::collections::BTreeMap<usize, Vec<u32>> =
        std::collections::BTreeMap::new();
    let experts = arrangement
        .experts()
        .iter()
        .max()
        .map_or(0, |&most| most as usize + 1);
    for expert in 0..experts {
        let mut ranks: Vec<usize> = arrangement
            .copies(expert)
            .iter()
            .map(|&slot| arrangement.rank_of(slot))
            .collect();
        ranks.dedup();
        if ranks.len() < 2 {
            continue;
        }
        let matrix = by_size
            .entry(ranks.len())
            .or_insert_with(|| vec![0; world * world]);
        for (index, &from) in ranks.iter().enumerate() {
            matrix[from * world + ranks[(index + 1) % ranks.len()]] += 1;
        }
    }
    by_size
        .into_iter()
        .map(|(ranks, matrix)| (2.0 * (ranks - 1) as f64 / ranks as f64, matrix))
        .collect()
}

/// Time until the last rank has what `moved` says, experts of `bytes` each.
pub(super) fn time(
    model: &dyn CostModel,
    moved: Vec<u32>,
    bytes: u64,
    gpus_per_node: usize,
) -> Time {
    if moved.iter().all(|&experts| experts == 0) {
        return Time::ZERO;
    }
    let world_size = moved.len().isqrt();
    let traffic = Traffic::Matrix {
        scope: Scope::World,
        rows: Arc::new(moved),
        row_bytes: bytes,
        chunk: 0,
        chunks: 1,
    };
    let price = model.exchange(&Exchange {
        traffic: &traffic,
        transport: Transport::Grouped,
        first: true,
        world_size,
        gpus_per_node,
    });
    let alone = &price.alone;
    (0..world_size)
        .map(|rank| *alone.get(rank))
        .fold(Time::ZERO, Time::max)
}
