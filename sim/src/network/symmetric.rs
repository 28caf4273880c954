//! Uniform traffic: all ranks of full leaves look alike, and so do those of a last, shorter leaf.
//!
//! Flows then fall into at most seven classes (inside a node; inside a leaf; between leaves by
//! kind), which [`fair`](super::fair) drains exactly. Cost does not depend on the world size.

use super::drained::Drained;
use super::fabric::{Fabric, LinkClass, LinkId};
use super::fair::{FlowClass, drain as drain_classes};
use super::load::ClassLoad;
use super::traffic::Scope;
use crate::units::Time;

/// The ranks whose leaves have the same number of nodes.
struct Kind {
    /// Nodes on one leaf of this kind.
    leaf_nodes: u32,
    /// Nodes of this kind.
    nodes: u32,
}

/// Uniform traffic over pooled uplinks.
pub(super) fn drain(fabric: &Fabric, scope: Scope, bytes_per_pair: u64) -> Drained {
    let quotient = Quotient::new(fabric, scope, bytes_per_pair);
    let ends = drain_classes(&quotient.capacity, &quotient.classes);
    let mut by_kind = vec![Time::ZERO; quotient.kinds.len()];
    for (class, end) in quotient.classes.iter().zip(ends) {
        for &(link, _) in &class.crosses {
            if link % LINKS < 4 {
                let kind = &mut by_kind[link / LINKS];
                *kind = Time::from_secs_f64(end).max(*kind);
            }
        }
    }
    let loads = quotient.loads(fabric, bytes_per_pair);
    let mut finish = Vec::with_capacity(fabric.world_size() as usize);
    for (k, kind) in quotient.kinds.iter().enumerate() {
        let floor = (0..4)
            .map(|class| quotient.link_bytes(k, class, bytes_per_pair))
            .zip(LinkClass::ALL)
            .map(|(bytes, class)| fabric.capacity(class).time_for(bytes))
            .fold(by_kind[k], Time::max);
        let ranks = (kind.nodes * fabric.gpus_per_node()) as usize;
        finish.extend(std::iter::repeat_n(floor, ranks));
    }
    Drained::new(fabric, loads, finish, 1e-9, 1e-9)
}

/// Links of one kind: one of each [`LinkClass`], in its order.
const LINKS: usize = LinkClass::ALL.len();

/// One rank, one link of each class and one flow class for every way to be alike.
struct Quotient {
    kinds: Vec<Kind>,
    /// By kind, then class.
    capacity: Vec<f64>,
    classes: Vec<FlowClass>,
}

impl Quotient {
    fn new(fabric: &Fabric, scope: Scope, bytes_per_pair: u64) -> Quotient {
        let (nodes, per_leaf) = (fabric.nodes(), fabric.leaves().nodes_per_leaf);
        let tail = nodes % per_leaf;
        let mut kinds = Vec::new();
        for (leaf_nodes, nodes) in [(per_leaf, nodes - tail), (tail, tail)] {
            if nodes > 0 {
                kinds.push(Kind { leaf_nodes, nodes });
            }
        }
        let rate = |class| fabric.capacity(class).bytes_per_second();
        let capacity = kinds
            .iter()
            .flat_map(|_| LinkClass::ALL.map(rate))
            .collect();
        let mut quotient = Quotient {
            kinds,
            capacity,
            classes: Vec::new(),
        };
        if bytes_per_pair > 0 {
            quotient.add_classes(fabric, scope, bytes_per_pair as f64);
        }
        quotient
    }

    fn add_classes(&mut self, fabric: &Fabric, scope: Scope, bytes: f64) {
        let g = u64::from(fabric.gpus_per_node());
        let ranks_per_node = if scope == Scope::World { g } else { 1 };
        for a in 0..self.kinds.len() {
            if scope != Scope::Rail {
                let out = [LinkClass::NvlinkOut, LinkClass::NvlinkIn].map(|c| (a, c, 1));
                self.add(fabric, bytes, true, g - 1, &out);
            }
            if scope == Scope::Node {
                continue;
            }
            let leaf = u64::from(self.kinds[a].leaf_nodes);
            let ports = [LinkClass::NicOut, LinkClass::NicIn].map(|c| (a, c, 1));
            self.add(fabric, bytes, false, leaf - 1, &ports);
            for b in 0..self.kinds.len() {
                // Peers on other leaves: of the same kind without the own node and leaf.
                let peers = u64::from(self.kinds[b].nodes) * ranks_per_node;
                let near = if a == b { ranks_per_node + leaf - 1 } else { 0 };
                // From the other side the same holds with the kinds swapped.
                let back = u64::from(self.kinds[a].nodes) * ranks_per_node;
                let crosses = [
                    (a, LinkClass::NicOut, peers - near),
                    (a, LinkClass::LeafUp, (peers - near) * leaf),
                    (
                        b,
                        LinkClass::LeafDown,
                        (back - near) * u64::from(self.kinds[b].leaf_nodes),
                    ),
                    (b, LinkClass::NicIn, back - near),
                ];
                self.add(fabric, bytes, false, 1, &crosses);
            }
        }
    }

    /// Adds a class unless it is empty; weights are `flows` times the factor of each link.
    fn add(
        &mut self,
        fabric: &Fabric,
        bytes: f64,
        local: bool,
        flows: u64,
        crosses: &[(usize, LinkClass, u64)],
    ) {
        let crosses: Vec<(usize, f64)> = crosses
            .iter()
            .map(|&(kind, class, factor)| {
                let weight = (flows * factor) as f64;
                (kind * LINKS + class as usize, weight)
            })
            .collect();
        if crosses.iter().all(|&(_, weight)| weight > 0.0) {
            self.classes.push(FlowClass {
                bytes,
                cap: fabric.flow_cap(local),
                crosses,
            });
        }
    }

    /// Bytes over one link of a kind.
    fn link_bytes(&self, kind: usize, class: usize, bytes_per_pair: u64) -> u64 {
        let flows: f64 = self
            .classes
            .iter()
            .flat_map(|c| &c.crosses)
            .filter_map(|&(link, weight)| (link == kind * LINKS + class).then_some(weight))
            .sum();
        // Counts of flows are whole and below 2^53.
        bytes_per_pair.saturating_mul(flows as u64)
    }

    fn loads(&self, fabric: &Fabric, bytes_per_pair: u64) -> Vec<ClassLoad> {
        let g = fabric.gpus_per_node();
        let full_leaves = self.kinds[0].nodes / self.kinds[0].leaf_nodes;
        LinkClass::ALL
            .iter()
            .map(|&class| {
                let leaf_link = matches!(class, LinkClass::LeafUp | LinkClass::LeafDown);
                let (mut busiest, mut busiest_bytes, mut total_bytes) = (0, 0, 0u128);
                for (k, kind) in self.kinds.iter().enumerate() {
                    let bytes = self.link_bytes(k, class as usize, bytes_per_pair);
                    let (links, first) = match (leaf_link, k) {
                        (true, 0) => (full_leaves * g, 0),
                        (true, _) => (g, full_leaves * g),
                        (false, 0) => (kind.nodes * g, 0),
                        (false, _) => (kind.nodes * g, self.kinds[0].nodes * g),
                    };
                    total_bytes += u128::from(bytes) * u128::from(links);
                    if bytes > busiest_bytes {
                        (busiest, busiest_bytes) = (first, bytes);
                    }
                }
                ClassLoad {
                    busiest: LinkId {
                        class,
                        index: busiest,
                    },
                    busiest_bytes,
                    total_bytes,
                }
            })
            .collect()
    }
}
