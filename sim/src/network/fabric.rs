//! The wires: which links a transfer crosses, and how fast each one is.
//!
//! Inside a node an NVSwitch joins the GPUs, so only the GPU ports limit. Between nodes every GPU
//! has its own NIC; the NICs of equal local rank form a *rail*. The NICs of one rail in
//! `nodes_per_leaf` neighbouring nodes share a leaf switch, and all leaves meet in the spines:
//!
//! ```text
//! GPU -- nic-out --> leaf --(up)--> spine --(down)--> leaf -- nic-in --> GPU     other leaf
//! GPU -- nic-out --> leaf -- nic-in --> GPU                                      same leaf
//! GPU -- nvlink-out --> NVSwitch -- nvlink-in --> GPU                            same node
//! ```
//!
//! A leaf has `nodes_per_leaf * nic / oversubscription` bytes/s towards the spines and as much back.

use crate::units::Bandwidth;
use std::fmt;

/// How a leaf spreads its flows over the spines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// Packet by packet: the uplinks of a leaf act as one pooled link.
    Adaptive,
    /// A flow `(src, dst)` is hashed to one spine for good, so flows collide.
    Static,
}

/// The tier above the NICs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Leaves {
    /// How many neighbouring nodes share the leaf switch of a rail.
    pub nodes_per_leaf: u32,
    /// NIC bandwidth below a leaf over uplink bandwidth above it; 1.0 is non-blocking.
    pub oversubscription: f64,
    /// How many spines each leaf has an uplink to.
    pub spines: u32,
    /// How flows choose a spine.
    pub routing: Routing,
}

/// Why a fabric cannot be built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FabricError {
    /// A count that must be positive is zero.
    #[error("`{field}` must be at least 1")]
    Zero {
        /// The offending field.
        field: &'static str,
    },
    /// The last node would be partly filled.
    #[error(
        "`world_size` {world_size} does not fill nodes of {gpus_per_node} GPUs: expected a multiple"
    )]
    PartialNode {
        /// Number of ranks.
        world_size: u32,
        /// GPUs of one node.
        gpus_per_node: u32,
    },
    /// Oversubscription is not a finite number of at least 1.
    #[error("`oversubscription` must be a finite number >= 1, found {0}")]
    Oversubscription(f64),
}

/// A kind of link; `Drained::utilisation` reports one figure for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkClass {
    /// GPU to NVSwitch.
    NvlinkOut,
    /// NVSwitch to GPU.
    NvlinkIn,
    /// NIC to leaf switch.
    NicOut,
    /// Leaf switch to NIC.
    NicIn,
    /// Leaf switch to spines.
    LeafUp,
    /// Spines to leaf switch.
    LeafDown,
}

impl LinkClass {
    /// All classes, in the order of the enum.
    pub const ALL: [LinkClass; 6] = [
        LinkClass::NvlinkOut,
        LinkClass::NvlinkIn,
        LinkClass::NicOut,
        LinkClass::NicIn,
        LinkClass::LeafUp,
        LinkClass::LeafDown,
    ];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            LinkClass::NvlinkOut => "nvlink-out",
            LinkClass::NvlinkIn => "nvlink-in",
            LinkClass::NicOut => "nic-out",
            LinkClass::NicIn => "nic-in",
            LinkClass::LeafUp => "leaf-up",
            LinkClass::LeafDown => "leaf-down",
        }
    }
}

/// One directed link: the `index`-th of its class.
///
/// Ports are indexed by rank. Leaf links are indexed by `(leaf * rails + rail) * planes + plane`,
/// where `planes` is the number of separately routed uplinks of a leaf ([`Fabric::planes`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId {
    /// The kind of link.
    pub class: LinkClass,
    /// Which one of that kind.
    pub index: u32,
}

/// Ranks, nodes, ports and switches. See the module text for the picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Fabric {
    world_size: u32,
    gpus_per_node: u32,
    nvlink: Bandwidth,
    nic: Bandwidth,
    leaves: Leaves,
    local_flow_cap: Option<Bandwidth>,
    remote_flow_cap: Option<Bandwidth>,
}

impl Fabric {
    /// A non-blocking fabric of `world_size` GPUs with `nvlink` and `nic` bytes/s per GPU and way.
    /// A world smaller than a node is one smaller node.
    pub fn new(
        world_size: u32,
        gpus_per_node: u32,
        nvlink: Bandwidth,
        nic: Bandwidth,
    ) -> Result<Fabric, FabricError> {
        at_least_one("world_size", world_size)?;
        at_least_one("gpus_per_node", gpus_per_node)?;
        let gpus_per_node = gpus_per_node.min(world_size);
        if !world_size.is_multiple_of(gpus_per_node) {
            return Err(FabricError::PartialNode {
                world_size,
                gpus_per_node,
            });
        }
        Ok(Fabric {
            world_size,
            gpus_per_node,
            nvlink,
            nic,
            leaves: Leaves {
                nodes_per_leaf: world_size / gpus_per_node,
                oversubscription: 1.0,
                spines: 1,
                routing: Routing::Adaptive,
            },
            local_flow_cap: None,
            remote_flow_cap: None,
        })
    }

    /// This fabric with other switches above the NICs.
    pub fn with_leaves(self, leaves: Leaves) -> Result<Fabric, FabricError> {
        at_least_one("nodes_per_leaf", leaves.nodes_per_leaf)?;
        at_least_one("spines", leaves.spines)?;
        if !(leaves.oversubscription.is_finite() && leaves.oversubscription >= 1.0) {
            return Err(FabricError::Oversubscription(leaves.oversubscription));
        }
        Ok(Fabric { leaves, ..self })
    }

    /// This fabric where one pair of ranks alone cannot exceed a rate, inside a node and between.
    pub fn with_flow_caps(self, local: Option<Bandwidth>, remote: Option<Bandwidth>) -> Fabric {
        Fabric {
            local_flow_cap: local,
            remote_flow_cap: remote,
            ..self
        }
    }

    /// Number of ranks.
    pub const fn world_size(&self) -> u32 {
        self.world_size
    }

    /// GPUs of a node, and so the number of rails.
    pub const fn gpus_per_node(&self) -> u32 {
        self.gpus_per_node
    }

    /// Number of nodes.
    pub const fn nodes(&self) -> u32 {
        self.world_size / self.gpus_per_node
    }

    /// The tier above the NICs.
    pub const fn leaves(&self) -> Leaves {
        self.leaves
    }

    /// Separately routed uplinks of a leaf: 1 pooled link, or one per spine under static routing.
    pub const fn planes(&self) -> u32 {
        match self.leaves.routing {
            Routing::Adaptive => 1,
            Routing::Static => self.leaves.spines,
        }
    }

    /// The most a flow between two ranks of one node gets, or of two nodes; infinite without a cap.
    pub(super) fn flow_cap(&self, local: bool) -> f64 {
        let cap = if local {
            self.local_flow_cap
        } else {
            self.remote_flow_cap
        };
        cap.map_or(f64::INFINITY, Bandwidth::bytes_per_second)
    }

    /// Whether leaf links can never limit: pooled, and as fast as all NICs below.
    pub fn core_is_non_blocking(&self) -> bool {
        self.leaves.routing == Routing::Adaptive && self.leaves.oversubscription <= 1.0
    }

    /// Number of links of a class.
    pub const fn links(&self, class: LinkClass) -> u32 {
        match class {
            LinkClass::LeafUp | LinkClass::LeafDown => {
                self.nodes().div_ceil(self.leaves.nodes_per_leaf)
                    * self.gpus_per_node
                    * self.planes()
            }
            LinkClass::NvlinkOut | LinkClass::NvlinkIn | LinkClass::NicOut | LinkClass::NicIn => {
                self.world_size
            }
        }
    }

    /// Bytes per second of each link of a class.
    pub fn capacity(&self, class: LinkClass) -> Bandwidth {
        match class {
            LinkClass::NvlinkOut | LinkClass::NvlinkIn => self.nvlink,
            LinkClass::NicOut | LinkClass::NicIn => self.nic,
            LinkClass::LeafUp | LinkClass::LeafDown => {
                let nics = f64::from(self.leaves.nodes_per_leaf) / f64::from(self.planes());
                let rate = self.nic.bytes_per_second() * nics / self.leaves.oversubscription;
                // Positive and finite unless the inputs are absurd; then the NIC alone limits.
                Bandwidth::from_bytes_per_second(rate).unwrap_or(self.nic)
            }
        }
    }

    /// Whether two ranks share a node.
    pub const fn same_node(&self, a: u32, b: u32) -> bool {
        a / self.gpus_per_node == b / self.gpus_per_node
    }

    /// The leaf switch a rank's NIC hangs on, as `leaf * rails + rail`.
    pub const fn leaf_of(&self, rank: u32) -> u32 {
        let node = rank / self.gpus_per_node;
        node / self.leaves.nodes_per_leaf * self.gpus_per_node + rank % self.gpus_per_node
    }

    /// The plane (spine, under static routing) a flow takes.
    pub const fn plane_of(&self, src: u32, dst: u32) -> u32 {
        match self.leaves.routing {
            Routing::Adaptive => 0,
            Routing::Static => {
                // The high half of the hash scaled to 0..spines: a division would cost more.
                let hash = mix((src as u64) << 32 | dst as u64) >> 32;
                ((hash * self.leaves.spines as u64) >> 32) as u32
            }
        }
    }

    /// The up and down link between leaves of a remote flow, or `None` inside one leaf.
    pub const fn core_links(&self, src: u32, dst: u32) -> Option<(u32, u32)> {
        let (from, to) = (self.leaf_of(src), self.leaf_of(dst));
        if from == to {
            return None;
        }
        let plane = self.plane_of(src, dst);
        Some((from * self.planes() + plane, to * self.planes() + plane))
    }

    /// The links a flow crosses, in order. Empty from a rank to itself.
    pub fn path(&self, src: u32, dst: u32) -> impl Iterator<Item = LinkId> + use<> {
        let link = |class, index| Some(LinkId { class, index });
        let hops = if src == dst {
            [None; 4]
        } else if self.same_node(src, dst) {
            let out = link(LinkClass::NvlinkOut, src);
            [out, link(LinkClass::NvlinkIn, dst), None, None]
        } else {
            let core = self.core_links(src, dst);
            [
                link(LinkClass::NicOut, src),
                core.and_then(|(up, _)| link(LinkClass::LeafUp, up)),
                core.and_then(|(_, down)| link(LinkClass::LeafDown, down)),
                link(LinkClass::NicIn, dst),
            ]
        };
        hops.into_iter().flatten()
    }

    /// The name of a link for people: `nic-out of rank 17`, `leaf 3 rail 2 up (spine 5)`.
    pub fn name(&self, link: LinkId) -> LinkName {
        LinkName {
            link,
            rails: self.gpus_per_node,
            planes: self.planes(),
            hashed: self.leaves.routing == Routing::Static,
        }
    }
}

/// Displays a link; made by [`Fabric::name`].
#[derive(Debug, Clone, Copy)]
pub struct LinkName {
    link: LinkId,
    rails: u32,
    planes: u32,
    hashed: bool,
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LinkId { class, index } = self.link;
        let way = match class {
            LinkClass::LeafUp => "up",
            LinkClass::LeafDown => "down",
            LinkClass::NvlinkOut | LinkClass::NvlinkIn | LinkClass::NicOut | LinkClass::NicIn => {
                return write!(f, "{} of rank {index}", class.name());
            }
        };
        let (switch, plane) = (index / self.planes, index % self.planes);
        write!(
            f,
            "leaf {} rail {} {way}",
            switch / self.rails,
            switch % self.rails
        )?;
        if self.hashed {
            write!(f, " (spine {plane})")?;
        }
        Ok(())
    }
}

fn at_least_one(field: &'static str, value: u32) -> Result<(), FabricError> {
    if value == 0 {
        return Err(FabricError::Zero { field });
    }
    Ok(())
}

/// The finaliser of SplitMix64: a fixed hash, so that static routes are the same on every machine.
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fabric(routing: Routing) -> Fabric {
        let gb = |x| Bandwidth::from_bytes_per_second(x * 1e9).unwrap();
        Fabric::new(32, 4, gb(300.0), gb(25.0))
            .unwrap()
            .with_leaves(Leaves {
                nodes_per_leaf: 2,
                oversubscription: 2.0,
                spines: 4,
                routing,
            })
            .unwrap()
    }

    fn names(fabric: &Fabric, src: u32, dst: u32) -> Vec<String> {
        fabric
            .path(src, dst)
            .map(|link| fabric.name(link).to_string())
            .collect()
    }

    #[test]
    fn a_path_stays_as_low_as_it_can() {
        let fabric = fabric(Routing::Adaptive);
        assert!(names(&fabric, 5, 5).is_empty());
        assert_eq!(
            names(&fabric, 1, 3),
            ["nvlink-out of rank 1", "nvlink-in of rank 3"]
        );
        assert_eq!(
            names(&fabric, 1, 5),
            ["nic-out of rank 1", "nic-in of rank 5"]
        );
        // Another rail is another leaf switch, even in the neighbouring node.
        assert_eq!(
            names(&fabric, 1, 30),
            [
                "nic-out of rank 1",
                "leaf 0 rail 1 up",
                "leaf 3 rail 2 down",
                "nic-in of rank 30"
            ]
        );
    }

    #[test]
    fn static_routing_names_the_spine_and_splits_the_uplink() {
        let (pooled, hashed) = (fabric(Routing::Adaptive), fabric(Routing::Static));
        assert!(names(&hashed, 1, 30)[1].starts_with("leaf 0 rail 1 up (spine "));
        let rate = |fabric: &Fabric| fabric.capacity(LinkClass::LeafUp).gbps();
        assert!((rate(&pooled) - 25.0).abs() < 1e-9);
        assert!((rate(&hashed) - 6.25).abs() < 1e-9);
        assert_eq!(hashed.links(LinkClass::LeafUp), 4 * 4 * 4);
    }

    #[test]
    fn impossible_fabrics_are_refused() {
        let gb = Bandwidth::from_bytes_per_second(1e9).unwrap();
        assert!(Fabric::new(0, 8, gb, gb).is_err());
        assert!(Fabric::new(12, 8, gb, gb).is_err());
        assert_eq!(Fabric::new(4, 8, gb, gb).unwrap().nodes(), 1);
        let leaves = Leaves {
            oversubscription: 0.5,
            ..fabric(Routing::Adaptive).leaves()
        };
        assert!(fabric(Routing::Adaptive).with_leaves(leaves).is_err());
    }
}
