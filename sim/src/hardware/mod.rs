//! The cluster's constants: GPU, host, node, network, collectives, software. Built-in presets and a
//! user's own file have one schema.

mod cpu;
mod load;

pub use cpu::{CpuGemm, CpuParams, Curve, GemmTerms};
pub use load::{HardwareError, PRESETS, builtin};

use crate::cost::gemm::GemmParams;
use crate::cost::moe_ffn::MoeFfnParams;
use crate::cost::nccl::NcclParams;
use crate::engine::Contention;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A kind of cluster. Every constant has its source in [`Hardware::sources`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hardware {
    /// Short name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// One GPU.
    pub gpu: Gpu,
    /// The CPU that drives it.
    pub host: Host,
    /// GPUs that share NVSwitches.
    pub node: Node,
    /// What connects nodes.
    pub network: Network,
    /// NCCL on this hardware.
    pub collectives: NcclParams,
    /// The framework that runs the layer.
    pub software: Software,
    /// A CPU whose threads are the ranks; it alone is then priced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuParams>,
    /// Where each constant comes from, by its path (`gpu.hbm-gb-per-s`) or that of its table.
    pub sources: BTreeMap<String, String>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Gpu {
    /// Marketing name.
    pub name: String,
    /// Memory, GiB.
    pub memory_gib: f64,
    /// Rate of a memory-bound kernel, bytes read plus bytes written, GB/s.
    pub hbm_gb_per_s: f64,
    /// Start and end of a memory-bound kernel, microseconds.
    pub kernel_us: f64,
    /// Matrix products.
    pub gemm: GemmParams,
    /// Fused MoE feed-forwards of inference servers; layers of the paper do not use them.
    pub moe_ffn: MoeFfnParams,
    /// Kernels beside collectives.
    pub contention: Contention,
}

/// The host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Host {
    /// Time to issue one kernel, microseconds.
    pub launch_us: f64,
    /// Time to issue a collective through the framework, microseconds.
    pub collective_us: f64,
    /// Time to issue the send and the receive of one peer of an All-to-All, microseconds.
    pub peer_us: f64,
    /// Time from the end of an operation the host waits for to its next kernel's start, microseconds.
    pub synchronise_us: f64,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Node {
    /// m.
    pub gpus: u64,
}

/// How flows choose an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    /// Switches spread a flow over all uplinks.
    Adaptive,
    /// A flow is hashed to one spine.
    Static,
}

/// What connects nodes: one NIC a GPU, one rail a local rank, leaves and spines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    /// Nodes whose NICs of one rail share a leaf switch.
    pub nodes_per_leaf: u64,
    /// Bandwidth of a leaf's NICs over bandwidth of its uplinks; 1 is non-blocking.
    pub oversubscription: f64,
    /// Spine switches.
    pub spines: u64,
    /// How flows choose a spine.
    pub routing: Routing,
    /// What many-to-many traffic loses beyond ports and links.
    pub congestion: Congestion,
}

/// Losses of many-to-many traffic that ports and links do not explain (Section 10 of the spec
/// sheet): the fabric's, which grows with the nodes that all talk to each other, and the NIC's,
/// which sets in beyond a number of peers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Congestion {
    /// Nodes beyond two at which half of a NIC's rate is left.
    pub half_nodes: f64,
    /// How steeply the loss grows with nodes.
    pub exponent: f64,
    /// Remote peers a NIC serves at full rate.
    pub peer_limit: f64,
    /// Slow-down at twice that many peers, less one.
    pub peer_penalty: f64,
}

impl Congestion {
    /// Share of a NIC's rate left when `nodes` nodes exchange with each other and each NIC serves
    /// `remote_peers`: `1 / ((1 + ((nodes - 2) / half)^exponent) · (1 + penalty · (peers / limit - 1)))`.
    pub fn share(&self, nodes: usize, remote_peers: usize) -> f64 {
        let beyond = nodes.saturating_sub(2) as f64 / self.half_nodes;
        let fabric = if beyond > 0.0 {
            beyond.powf(self.exponent)
        } else {
            0.0
        };
        let crowd = (remote_peers as f64 / self.peer_limit - 1.0).max(0.0);
        1.0 / ((1.0 + fabric) * (1.0 + self.peer_penalty * crowd))
    }
}

/// The software that runs the layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Software {
    /// What it is.
    pub name: String,
    /// Share of the fitted GEMM rates it reaches.
    pub gemm_efficiency: f64,
    /// One row of a scan that walks down columns, a thread each, nanoseconds; 0 where it scans in parallel.
    #[serde(default)]
    pub scan_row_ns: f64,
    /// How it runs whole models.
    #[serde(default)]
    pub framework: Framework,
    /// Memory it holds on every GPU whatever the program (context, libraries, NCCL), GiB.
    pub reserved_gib: f64,
}

/// What a framework adds to a model's own work. The default adds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Framework {
    /// Bytes of element-wise passes moved over bytes counted, forward.
    pub forward_passes: f64,
    /// The same, backward.
    pub backward_passes: f64,
    /// Share of the step by which every node beyond the first slows all: input pipelines and
    /// stragglers, not the network.
    pub loss_per_node: f64,
}

impl Default for Framework {
    fn default() -> Self {
        Framework {
            forward_passes: 1.0,
            backward_passes: 1.0,
            loss_per_node: 0.0,
        }
    }
}

impl Hardware {
    /// Memory of one GPU.
    pub fn memory_bytes(&self) -> u64 {
        gib(self.gpu.memory_gib)
    }

    /// Memory the software holds.
    pub fn reserved_bytes(&self) -> u64 {
        gib(self.software.reserved_gib)
    }
}

fn gib(value: f64) -> u64 {
    (value * (1u64 << 30) as f64) as u64
}
