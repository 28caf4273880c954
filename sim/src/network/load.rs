//! Bytes over every link, exact.

use super::fabric::{Fabric, LinkClass, LinkId, Routing};
use super::traffic::{Scope, Traffic};
use crate::units::Time;

/// Bytes over the links of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLoad {
    /// The link with the most bytes, the first of them on a tie.
    pub busiest: LinkId,
    /// Its bytes.
    pub busiest_bytes: u64,
    /// Bytes over all links of the class.
    pub total_bytes: u128,
}

impl ClassLoad {
    /// `bytes / capacity` of the busiest link.
    pub fn bound(&self, fabric: &Fabric) -> Time {
        fabric
            .capacity(self.busiest.class)
            .time_for(self.busiest_bytes)
    }
}

/// Bytes over each link, by class in the order of [`LinkClass::ALL`], then by index.
pub(super) struct Loads([Vec<u64>; 6]);

impl Loads {
    /// Sums the traffic on every link.
    pub(super) fn new(fabric: &Fabric, traffic: &Traffic) -> Loads {
        match traffic {
            Traffic::Matrix {
                scope: Scope::World,
                bytes,
            } if fabric.leaves().routing == Routing::Adaptive => Loads::of_matrix(fabric, bytes),
            Traffic::Matrix { .. } | Traffic::Uniform { .. } => Loads::by_path(fabric, traffic),
        }
    }

    /// Any traffic, flow by flow.
    pub(super) fn by_path(fabric: &Fabric, traffic: &Traffic) -> Loads {
        let mut loads = Loads::empty(fabric);
        for (src, dst, bytes) in traffic.flows(fabric) {
            for link in fabric.path(src, dst) {
                loads.add(link.class, link.index, bytes);
            }
        }
        loads
    }

    /// A full matrix over pooled uplinks, by whole rows and columns.
    fn of_matrix(fabric: &Fabric, bytes: &[u64]) -> Loads {
        let (n, g) = (
            fabric.world_size() as usize,
            fabric.gpus_per_node() as usize,
        );
        let group = fabric.leaves().nodes_per_leaf as usize * g;
        let mut loads = Loads::empty(fabric);
        for (src, row) in bytes.chunks_exact(n).enumerate() {
            let node = src / g * g..src / g * g + g;
            let mut out = 0u64;
            for (received, &b) in loads.0[LinkClass::NicIn as usize].iter_mut().zip(row) {
                *received = received.saturating_add(b);
                out = out.saturating_add(b);
            }
            for dst in node {
                let b = row[dst];
                out -= b.min(out);
                let received = &mut loads.0[LinkClass::NicIn as usize][dst];
                *received -= b.min(*received);
                if dst != src {
                    loads.add(LinkClass::NvlinkOut, src as u32, b);
                    loads.add(LinkClass::NvlinkIn, dst as u32, b);
                }
            }
            loads.add(LinkClass::NicOut, src as u32, out);
            loads.add(LinkClass::LeafUp, fabric.leaf_of(src as u32), out);
            // What stays inside the leaf neither goes up nor comes down.
            let first = src / group * group + src % g;
            for dst in (first..n.min(first - src % g + group)).step_by(g) {
                if dst / g != src / g {
                    loads.remove(LinkClass::LeafUp, fabric.leaf_of(src as u32), row[dst]);
                    loads.remove(LinkClass::LeafDown, fabric.leaf_of(dst as u32), row[dst]);
                }
            }
        }
        for dst in 0..n {
            let received = loads.0[LinkClass::NicIn as usize][dst];
            loads.add(LinkClass::LeafDown, fabric.leaf_of(dst as u32), received);
        }
        loads
    }

    fn empty(fabric: &Fabric) -> Loads {
        Loads(LinkClass::ALL.map(|class| vec![0; fabric.links(class) as usize]))
    }

    fn add(&mut self, class: LinkClass, index: u32, bytes: u64) {
        let load = &mut self.0[class as usize][index as usize];
        *load = load.wrapping_add(bytes);
    }

    /// The inverse of `add`; a sum may wrap below zero on its way to a total that does not.
    fn remove(&mut self, class: LinkClass, index: u32, bytes: u64) {
        self.add(class, index, bytes.wrapping_neg());
    }

    /// Bytes over the links of a class.
    pub(super) fn of(&self, class: LinkClass) -> &[u64] {
        &self.0[class as usize]
    }

    /// One line for each class.
    pub(super) fn classes(&self) -> Vec<ClassLoad> {
        LinkClass::ALL
            .iter()
            .map(|&class| {
                let (mut index, mut busiest_bytes) = (0, 0);
                for (i, &bytes) in (0u32..).zip(self.of(class)) {
                    if bytes > busiest_bytes {
                        (index, busiest_bytes) = (i, bytes);
                    }
                }
                ClassLoad {
                    busiest: LinkId { class, index },
                    busiest_bytes,
                    total_bytes: self.of(class).iter().map(|&b| u128::from(b)).sum(),
                }
            })
            .collect()
    }

    /// `bytes / capacity` of the busier port of each rank: none finishes earlier.
    pub(super) fn rank_bounds(&self, fabric: &Fabric) -> Vec<Time> {
        let ports = &LinkClass::ALL[..4];
        (0..fabric.world_size() as usize)
            .map(|rank| {
                let bound =
                    |&class: &LinkClass| fabric.capacity(class).time_for(self.of(class)[rank]);
                ports.iter().map(bound).max().unwrap_or(Time::ZERO)
            })
            .collect()
    }
}
