//! All-to-All algorithms as phases of exchanges between ranks of one dimension of the world.

use crate::ir::{
    BufferId, Elementwise, OpKind, PerRank, ProgramBuilder, Scope, Stream, Traffic, Transport,
};
use crate::spec::AllToAll;
use std::sync::Arc;

/// One exchange of an All-to-All.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    /// Who sends how much to whom.
    pub(super) traffic: Traffic,
    /// Elements that a rank holds before it. Ranks that all send as much hold as much all along; uneven rows gather
    /// on the way at ranks that they only pass.
    pub(super) held: PerRank<u64>,
}

/// Emits one All-to-All from `input` to `output` on the communication stream, by the exchanges that [`uniform_phases`] or
/// [`uneven_phases`] cut it into. Hierarchical algorithms copy what they hold before each.
pub(super) fn emit(
    builder: &mut ProgramBuilder,
    algorithm: AllToAll,
    exchanges: Vec<Exchange>,
    input: BufferId,
    output: BufferId,
) {
    let (transport, copies) = match algorithm {
        AllToAll::Linear | AllToAll::TwoDh | AllToAll::ThreeDh => {
            (Transport::Grouped, exchanges.len() > 1)
        }
        AllToAll::TwoDhFused => (Transport::FusedSimple, false),
        AllToAll::TwoDhLl128 => (Transport::FusedLl128, false),
    };
    let staging = |builder: &mut ProgramBuilder, elements: &PerRank<u64>| {
        let element_bytes = builder.dtype().bytes();
        let bytes = elements.map(|elements| elements.saturating_mul(element_bytes));
        builder.buffer("all-to-all staging", bytes)
    };
    let mut current = input;
    let mut exchanges = exchanges.into_iter().peekable();
    let mut first = true;
    while let Some(Exchange { traffic, held }) = exchanges.next() {
        if copies {
            let aligned = staging(builder, &held);
            let kind = OpKind::Elementwise {
                what: Elementwise::StrideCopy,
                elements: held,
            };
            builder.push(Stream::Communication, kind, &[current], &[aligned]);
            current = aligned;
        }
        let target = match exchanges.peek() {
            Some(next) => staging(builder, &next.held),
            None => output,
        };
        let traffic = builder.traffic(traffic);
        let kind = OpKind::Exchange {
            traffic,
            transport,
            first,
        };
        builder.push(Stream::Communication, kind, &[current], &[target]);
        (current, first) = (target, false);
    }
}

/// The dimensions of the world an algorithm walks, innermost first, as scopes. Dimensions of one
/// rank are left out: on a single node every algorithm is the linear one.
fn dimensions(algorithm: AllToAll, world_size: usize, gpus_per_node: usize) -> Vec<Scope> {
    let nodes = world_size / gpus_per_node;
    let sizes = match algorithm {
        AllToAll::Linear => return vec![Scope::World],
        AllToAll::TwoDh | AllToAll::TwoDhFused | AllToAll::TwoDhLl128 => vec![gpus_per_node, nodes],
        AllToAll::ThreeDh => {
            let group = nodes_per_group(nodes);
            vec![gpus_per_node, group, nodes / group]
        }
    };
    let mut stride = 1;
    let mut dimensions = Vec::new();
    for size in sizes {
        if size > 1 {
            dimensions.push(Scope::Strided {
                size: size as u32,
                stride: stride as u32,
            });
        }
        stride *= size;
    }
    if dimensions.len() < 2 {
        vec![Scope::World]
    } else {
        dimensions
    }
}

/// The divisor of `nodes` nearest to its square root from below: balanced groups for 3DH.
fn nodes_per_group(nodes: usize) -> usize {
    (1..=nodes.isqrt())
        .rev()
        .find(|group| nodes.is_multiple_of(*group))
        .unwrap_or(1)
}

/// The exchanges of an All-to-All in which every rank sends every other `bytes_per_peer` of the `held` elements. Every
/// phase of a hierarchical one moves the whole buffer, in messages of 1/size of it: S/m within the
/// node, m·S/n between nodes (Algorithm 2).
pub(super) fn uniform_phases(
    algorithm: AllToAll,
    bytes_per_peer: u64,
    held: &PerRank<u64>,
    world: (usize, usize),
) -> Vec<Exchange> {
    let message = |scope: Scope| bytes_per_peer * (world.0 / scope.group_size(world.0)) as u64;
    let dimensions = dimensions(algorithm, world.0, world.1);
    dimensions
        .into_iter()
        .map(|scope| Exchange {
            traffic: Traffic::Uniform {
                scope,
                bytes_per_peer: message(scope),
            },
            held: held.clone(),
        })
        .collect()
}

/// One exchange of uneven rows.
#[derive(Debug)]
pub(super) struct UnevenPhase {
    /// The ranks that meet.
    pub(super) scope: Scope,
    /// Rows by (rank, peer).
    pub(super) rows: Arc<Vec<u32>>,
    /// Rows that each rank holds before it.
    pub(super) held: PerRank<u64>,
}

impl UnevenPhase {
    fn new(scope: Scope, rows: Arc<Vec<u32>>, world_size: usize) -> UnevenPhase {
        let sum = |row: &[u32]| row.iter().map(|&rows| u64::from(rows)).sum();
        let held = PerRank::Each(rows.chunks(world_size).map(sum).collect());
        UnevenPhase { scope, rows, held }
    }
}

/// The same on uneven rows: after the phase of a dimension, a row sits on a rank that agrees with
/// its destination in that dimension.
pub(super) fn uneven_phases(
    algorithm: AllToAll,
    rows: &Arc<Vec<u32>>,
    world: (usize, usize),
) -> Vec<UnevenPhase> {
    let dimensions = dimensions(algorithm, world.0, world.1);
    if let [scope] = dimensions[..] {
        return vec![UnevenPhase::new(scope, rows.clone(), world.0)];
    }
    let mut held = rows.as_ref().clone();
    let mut phase = |scope| {
        let (moved, next) = walk(&held, scope, world.0);
        held = next;
        UnevenPhase::new(scope, Arc::new(moved), world.0)
    };
    dimensions.into_iter().map(&mut phase).collect()
}

/// One phase on uneven rows: `held[rank][destination]` -> (rows by (rank, peer), rows held after).
fn walk(held: &[u32], scope: Scope, world_size: usize) -> (Vec<u32>, Vec<u32>) {
    let Scope::Strided { size, stride } = scope else {
        return (held.to_vec(), Vec::new());
    };
    let (size, stride) = (size as usize, stride as usize);
    let mut moved = vec![0u32; world_size * world_size];
    let mut next = vec![0u32; world_size * world_size];
    for rank in 0..world_size {
        let place = rank / stride % size;
        let origin = rank - place * stride;
        for destination in 0..world_size {
            let rows = held[rank * world_size + destination];
            let peer = origin + destination / stride % size * stride;
            moved[rank * world_size + peer] += rows;
            next[peer * world_size + destination] += rows;
        }
    }
    (moved, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchical_phases_deliver_every_row() {
        let world = 16;
        let rows: Vec<u32> = (0..world * world).map(|i| (i * 7 % 13) as u32).collect();
        for algorithm in [AllToAll::TwoDh, AllToAll::ThreeDh] {
            let mut held = rows.clone();
            for scope in dimensions(algorithm, world, 4) {
                held = walk(&held, scope, world).1;
            }
            for (index, &count) in held.iter().enumerate() {
                let (rank, destination) = (index / world, index % world);
                let due: u32 = (0..world)
                    .map(|source| rows[source * world + destination])
                    .sum();
                assert_eq!(count, if rank == destination { due } else { 0 });
            }
        }
    }

    #[test]
    fn two_dh_messages_have_the_sizes_of_algorithm_2() {
        let phases = uniform_phases(AllToAll::TwoDh, 10, &PerRank::Same(160), (64, 8));
        // S = 640: S/m = 80 to a neighbour in the node, m·S/n = 80 to each of the 8 nodes.
        assert_eq!(phases[0].traffic.bytes(0, 1, 64), 80);
        assert_eq!(phases[1].traffic.bytes(0, 8, 64), 80);
        assert_eq!(phases[1].traffic.bytes(0, 9, 64), 0);
    }

    #[test]
    fn one_node_needs_no_hierarchy() {
        assert_eq!(dimensions(AllToAll::TwoDh, 8, 8), [Scope::World]);
    }
}
