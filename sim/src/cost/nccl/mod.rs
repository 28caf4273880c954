//! Compact models of NCCL's collectives on balanced data.
//!
//! Sizes follow nccl-tests: `bytes` is what one GPU holds in total of the larger buffer. All-gather:
//! the gathered output. Reduce-scatter: the input. All-to-all: one GPU's send buffer, its own slice
//! included. All-reduce: the buffer.
//!
//! Inside a node NCCL's tuner picks LL, LL128 or Simple by its own (published)
//! latency and bandwidth constants; each protocol then takes
//! `base + step * steps + ramp + bytes * steps / n * wire + bytes / n * own`, fitted. The last term,
//! the copy of a GPU's own slice by the same thread blocks, is what makes two GPUs slower on the bus
//! than eight and what four are interpolated by.
//!
//! Between nodes: all-to-all over the NIC with a latency per remote peer and a rate that saturates
//! in the number of remote peers; rings over all rails for the others, a tree for small all-reduce.
//!
//! The pieces ([`Nccl::nvlink_rate`], [`Nccl::nic_rate`], [`Nccl::all_to_all_latency`]) are the very
//! ones that [`Nccl::estimate`] adds up, so a simulator of uneven traffic that composes them agrees
//! with the closed form on even traffic.

mod inter;
mod intra;
mod params;
#[cfg(test)]
mod tests;

pub use params::{
    IntraParams, LibraryParams, NcclParams, NicParams, ParamProblem, PerKind, Protocol, Segment,
    Tuner, TunerProtocol,
};

use crate::cost::provenance::{Estimate, Provenance};
use crate::units::{Bandwidth, Time};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A collective operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CollectiveKind {
    /// Every GPU sends a different slice to every GPU.
    AllToAll,
    /// Every GPU ends with the slices of all.
    AllGather,
    /// Every GPU ends with the sum of one slice.
    ReduceScatter,
    /// Every GPU ends with the sum of everything.
    AllReduce,
}

impl CollectiveKind {
    /// All collectives.
    pub const ALL: [CollectiveKind; 4] = [
        CollectiveKind::AllToAll,
        CollectiveKind::AllGather,
        CollectiveKind::ReduceScatter,
        CollectiveKind::AllReduce,
    ];

    /// The name in configuration files and reports.
    pub const fn name(self) -> &'static str {
        match self {
            CollectiveKind::AllToAll => "all-to-all",
            CollectiveKind::AllGather => "all-gather",
            CollectiveKind::ReduceScatter => "reduce-scatter",
            CollectiveKind::AllReduce => "all-reduce",
        }
    }

    /// Steps of a ring of `gpus` (peers of an all-to-all): `n - 1`, twice that for all-reduce. A
    /// port carries `bytes * steps / gpus`.
    pub const fn steps(self, gpus: usize) -> usize {
        let once = gpus.saturating_sub(1);
        match self {
            CollectiveKind::AllToAll
            | CollectiveKind::AllGather
            | CollectiveKind::ReduceScatter => once,
            CollectiveKind::AllReduce => once * 2,
        }
    }

    /// Bus bandwidth in GB/s as nccl-tests defines it: `bytes / time * (n - 1) / n`, twice that for
    /// all-reduce.
    pub fn busbw_gbps(self, bytes: u64, gpus: usize, time: Time) -> f64 {
        bytes as f64 * self.steps(gpus) as f64 / gpus as f64 / time.as_secs_f64() / 1e9
    }
}

impl fmt::Display for CollectiveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for CollectiveKind {
    type Err = String;
    /// Reads our names and those of nccl-tests (`all_to_all`, `alltoall`, `all_gather`, ...).
    fn from_str(text: &str) -> Result<CollectiveKind, String> {
        match text {
            "all-to-all" | "all_to_all" | "alltoall" => Ok(CollectiveKind::AllToAll),
            "all-gather" | "all_gather" => Ok(CollectiveKind::AllGather),
            "reduce-scatter" | "reduce_scatter" => Ok(CollectiveKind::ReduceScatter),
            "all-reduce" | "all_reduce" => Ok(CollectiveKind::AllReduce),
            _ => Err(format!(
                "expected alltoall (or all_to_all), all_gather, reduce_scatter or all_reduce, \
                 found `{text}`"
            )),
        }
    }
}

/// The time below which no collective can finish: `bytes * steps / gpus` at `port`, the bandwidth of
/// one GPU's port in one direction. Exact for balanced data on full-duplex ports, whatever the
/// algorithm (without in-network reduction).
pub fn port_bound(kind: CollectiveKind, bytes: u64, gpus: usize, port: Bandwidth) -> Time {
    if gpus < 2 {
        return Time::ZERO;
    }
    let carried = bytes as f64 * kind.steps(gpus) as f64 / gpus as f64;
    Time::from_secs_f64(carried / port.bytes_per_second())
}

/// A bandwidth with its provenance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateEstimate {
    /// The estimated rate.
    pub rate: Bandwidth,
    /// How it was obtained.
    pub provenance: Provenance,
}

/// Why no model could be built.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum NcclError {
    /// The preset holds values that no model can be built from.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Params(Vec<ParamProblem>),
    /// The preset has no such library profile.
    #[error("no library profile `{name}` in this preset; it has {known}")]
    Library {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
}

/// The share of its rate that the fabric leaves a NIC, as a factor that can be divided by: anything
/// that is no share above 0 and at most 1 is moved to the nearest end.
fn share(congestion: f64) -> f64 {
    // Not `clamp`, which would let NaN through.
    if congestion > 1e-9 {
        congestion.min(1.0)
    } else {
        1e-9
    }
}

/// The model of one NCCL release on one kind of cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Nccl {
    params: NcclParams,
    name: String,
    library: LibraryParams,
}

impl Nccl {
    /// The model of `library` (the preset's default if `None`) on the hardware of `params`.
    pub fn new(params: NcclParams, library: Option<&str>) -> Result<Nccl, NcclError> {
        let problems = params.problems();
        if !problems.is_empty() {
            return Err(NcclError::Params(problems));
        }
        let name = library.unwrap_or(&params.default_library).to_owned();
        match params.library.get(&name).cloned() {
            Some(library) => Ok(Nccl {
                params,
                name,
                library,
            }),
            None => Err(NcclError::Library {
                name,
                known: params
                    .library
                    .keys()
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// The parameters that this model was built from.
    pub const fn params(&self) -> &NcclParams {
        &self.params
    }

    /// The name of the library profile.
    pub fn library(&self) -> &str {
        &self.name
    }

    /// The time of a balanced collective of `bytes` (nccl-tests size) over `gpus` GPUs placed
    /// `gpus_per_node` to a node, without fabric congestion.
    pub fn estimate(
        &self,
        kind: CollectiveKind,
        bytes: u64,
        gpus: usize,
        gpus_per_node: usize,
    ) -> Estimate {
        self.estimate_congested(kind, bytes, gpus, gpus_per_node, 1.0)
    }

    /// [`Nccl::estimate`] where the fabric leaves every NIC only the share `congestion` of its rate
    /// (1: none lost). The many-to-many congestion beyond two nodes is not in this model: the caller
    /// knows the fabric and passes the share.
    pub fn estimate_congested(
        &self,
        kind: CollectiveKind,
        bytes: u64,
        gpus: usize,
        gpus_per_node: usize,
        congestion: f64,
    ) -> Estimate {
        if gpus < 2 || bytes == 0 {
            return Estimate::new(Time::ZERO, Provenance::Roofline);
        }
        let local = gpus_per_node.clamp(1, gpus);
        let nodes = gpus.div_ceil(local);
        let us = if nodes == 1 {
            self.wide_intra_us(kind, bytes as f64, gpus)
        } else if kind == CollectiveKind::AllToAll {
            self.inter_all_to_all_us(bytes as f64, gpus, local, share(congestion))
        } else {
            self.inter_ring_us(kind, bytes as f64, nodes, local, share(congestion))
        };
        Estimate::new(
            Time::from_secs_f64(us * 1e-6),
            self.provenance(kind, bytes, local, nodes),
        )
    }

    /// The latency of an all-to-all with `local_peers` on the node and `remote_peers` beyond it:
    /// `base + step * local + remote_peer * remote`; add the bytes at [`Nccl::nvlink_rate`] and
    /// [`Nccl::nic_rate`], whichever takes longer. Source: fits to the one-node table and to the
    /// 1 KiB latencies of the multi-node table.
    pub fn all_to_all_latency(&self, local_peers: usize, remote_peers: usize) -> Estimate {
        let us = self.all_to_all_latency_us(local_peers, remote_peers);
        let nodes = if remote_peers == 0 { 1 } else { 2 };
        // Two nodes of eight are the most that was measured.
        let seen = remote_peers <= self.params.intra.fitted_gpus[1];
        let mut provenance = self.provenance(
            CollectiveKind::AllToAll,
            self.library.fitted_bytes[0].max(self.params.nic.fitted_bytes[0]),
            local_peers + 1,
            nodes,
        );
        if !seen {
            provenance = provenance.worse(Provenance::Extrapolated);
        }
        Estimate::new(Time::from_secs_f64(us * 1e-6), provenance)
    }

    /// The rate at which a GPU sends `message_bytes` to each of `peers` GPUs of its node at once, in
    /// sum over the peers: `message * peers / (T - latency)` with `T` the one-node all-to-all of
    /// `message * (peers + 1)` bytes, so the copy of its own slice is in it. Never above the port.
    /// Source: fit to the one-node table.
    pub fn nvlink_rate(&self, message_bytes: u64, peers: usize) -> RateEstimate {
        let peers = peers.max(1);
        let message = message_bytes.max(1);
        let sent = message as f64 * peers as f64;
        let us = self.nvlink_us(message as f64, peers);
        RateEstimate {
            rate: self.rate(sent / (us * 1e-6)),
            provenance: self.provenance(
                CollectiveKind::AllToAll,
                message.saturating_mul(peers as u64 + 1),
                peers + 1,
                1,
            ),
        }
    }

    /// The rate at which a NIC sends `message_bytes` to each of `remote_peers` at once, in sum over
    /// the peers: `message / max(gap, overhead + message / wire)` (RDMA write by message size) times
    /// `efficiency * peers / (peers + peer_half)` (how far point-to-point NCCL fills it) times
    /// `congestion` (the share that the fabric leaves, 1 for none lost; see
    /// [`Nccl::estimate_congested`]). Sources: `ib_write_<bytes>` of the `SuperBench` table, 1 GiB
    /// all-to-all on 2x1 and 2x8 GPUs.
    pub fn nic_rate(
        &self,
        message_bytes: u64,
        remote_peers: usize,
        congestion: f64,
    ) -> RateEstimate {
        let peers = remote_peers.max(1);
        let message = message_bytes.max(1);
        let sent = message as f64 * peers as f64;
        let us = self.nic_us(message as f64, peers as f64, share(congestion));
        let seen = peers <= self.params.intra.fitted_gpus[1] && congestion >= 1.0;
        RateEstimate {
            rate: self.rate(sent / (us * 1e-6)),
            provenance: if seen {
                Provenance::Fitted
            } else {
                Provenance::Extrapolated
            },
        }
    }

    /// The rate at which an idle NIC writes messages of `message_bytes` one after the other, as `ib_write_bw`
    /// of perftest measures it: `message / max(gap, overhead + message / wire)`. Source:
    /// `ib_write_<bytes>` of the `SuperBench` table.
    pub fn write_rate(&self, message_bytes: u64) -> Bandwidth {
        let message = message_bytes.max(1) as f64;
        self.rate(message / (self.message_us(message) * 1e-6))
    }

    /// The bandwidth of `bytes_per_second`, or of one byte a second where that is no bandwidth.
    fn rate(&self, bytes_per_second: f64) -> Bandwidth {
        let capped = bytes_per_second.clamp(1.0, f64::MAX);
        Bandwidth::from_bytes_per_second(capped)
            .expect("a clamped rate is finite and positive, as all parameters were checked")
    }

    /// Fitted inside the range that the parameters saw, extrapolated outside.
    fn provenance(
        &self,
        kind: CollectiveKind,
        bytes: u64,
        local: usize,
        nodes: usize,
    ) -> Provenance {
        let within = |range: [u64; 2]| range[0] <= bytes && bytes <= range[1];
        let intra = &self.params.intra;
        let nic = &self.params.nic;
        let kind_seen = self.library.measured.contains(&kind);
        let seen = if nodes == 1 {
            kind_seen
                && within(self.library.fitted_bytes)
                && local >= intra.fitted_gpus[0].max(self.library.fewest_gpus)
                && local <= intra.fitted_gpus[1]
        } else {
            // Measured were all-to-all on 2x1 and 2x8 and all-gather on 2x1, at both ends of the
            // range only: rings over several rails are physics, not a fit.
            let shape = match kind {
                CollectiveKind::AllToAll => local <= intra.fitted_gpus[1],
                CollectiveKind::AllGather => local == 1,
                CollectiveKind::ReduceScatter | CollectiveKind::AllReduce => false,
            };
            shape && within(nic.fitted_bytes) && nodes <= nic.fitted_nodes
        };
        if seen {
            Provenance::Fitted
        } else {
            Provenance::Extrapolated
        }
    }
}
