//! What collectives that run around rings send over which wires.

use super::{OpKind, Scope};

/// All-gather, reduce-scatter or all-reduce as NCCL runs them: around rings, one for every GPU of a node, each
/// leaving the node at another GPU. Which wires bytes take is for reports; what they cost is for
/// [`crate::cost`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    scope: Scope,
    /// Bytes that a rank passes on, over all rings.
    bytes: u64,
}

impl Ring {
    /// The rings of an operation, if it runs around some: a rank passes on all but its own part, twice
    /// in an all-reduce.
    pub fn of(kind: &OpKind, world_size: usize) -> Option<Ring> {
        let (scope, bytes, rounds) = match *kind {
            OpKind::AllGather { scope, bytes } | OpKind::ReduceScatter { scope, bytes } => {
                (scope, bytes, 1)
            }
            OpKind::AllReduce { scope, bytes } => (scope, bytes, 2),
            _ => return None,
        };
        let ranks = scope.group_size(world_size) as u64;
        Some(Ring {
            scope,
            bytes: rounds * (bytes - bytes / ranks),
        })
    }

    /// Whom `source` sends to, and how many bytes: its neighbour in the node, and the GPU of equal
    /// place in the next node, which takes the share of the ring that leaves the node at `source`.
    pub fn sends(
        &self,
        source: usize,
        world_size: usize,
        gpus_per_node: usize,
    ) -> [(usize, u64); 2] {
        let size = self.scope.group_size(world_size);
        let here = self.scope.index_in_group(source);
        let peer = |index: usize| self.scope.peer(source, index % size);
        let in_node = |index: &usize| peer(*index) / gpus_per_node == source / gpus_per_node;
        let first = here
            - (1..=here)
                .take_while(|back| in_node(&(here - back)))
                .count();
        let local = (first..size).take_while(in_node).count();
        let leaving = match local {
            _ if local == size => 0,
            1 => self.bytes,
            _ => self.bytes / local as u64,
        };
        let neighbour = peer(first + (here - first + 1) % local);
        [
            (neighbour, self.bytes - leaving),
            (peer(here + local), leaving),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sends(kind: &OpKind, source: usize) -> [(usize, u64); 2] {
        Ring::of(kind, 16).expect("a ring").sends(source, 16, 8)
    }

    #[test]
    fn a_ring_of_nodes_leaves_each_node_at_every_gpu() {
        let gather = OpKind::AllGather {
            scope: Scope::World,
            bytes: 1_600,
        };
        assert_eq!(sends(&gather, 3), [(4, 1_313), (11, 187)]);
        assert_eq!(sends(&gather, 15), [(8, 1_313), (7, 187)]);
        let reduce = OpKind::AllReduce {
            scope: Scope::World,
            bytes: 1_600,
        };
        assert_eq!(sends(&reduce, 7), [(0, 2_625), (15, 375)]);
    }

    #[test]
    fn a_ring_in_a_node_stays_there_and_a_rail_leaves() {
        let of = |size, stride| OpKind::ReduceScatter {
            scope: Scope::Strided { size, stride },
            bytes: 800,
        };
        assert_eq!(sends(&of(4, 1), 7), [(4, 600), (7, 0)]);
        assert_eq!(sends(&of(4, 2), 6), [(0, 600), (6, 0)]);
        assert_eq!(sends(&of(2, 8), 3), [(3, 0), (11, 400)]);
    }

    #[test]
    fn one_rank_sends_nothing() {
        let alone = OpKind::AllGather {
            scope: Scope::Strided { size: 1, stride: 1 },
            bytes: 800,
        };
        assert!(sends(&alone, 5).iter().all(|(_, bytes)| *bytes == 0));
    }
}
