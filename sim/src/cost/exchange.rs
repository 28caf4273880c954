//! Time of an exchange: NCCL's latency and rates on the flow-level network.

use super::nccl::Nccl;
use super::provenance::{Estimate, Provenance};
use super::{Exchange, ExchangePrice, Wire};
use crate::hardware::{Hardware, Routing};
use crate::ir::{PerRank, Scope, Traffic, Transport};
use crate::network::fabric::{Fabric, FabricError, Leaves, LinkClass, Routing as FabricRouting};
use crate::network::{self, Drained};
use crate::units::{Bandwidth, Time};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Payload of a 128-byte line under the LL128 protocol.
const LL128_PAYLOAD: f64 = 120.0 / 128.0;
/// Most bytes of uneven matrices whose drain times are kept: those of one step's plans, both ways, at
/// 2,048 ranks, and of many steps' at few.
const KEPT_BYTES: usize = 1 << 28;
/// Most of them, as they are looked for one by one.
const KEPT_MATRICES: usize = 1024;

/// Prices exchanges on one kind of cluster.
#[derive(Debug)]
pub(super) struct Exchanges {
    nccl: Nccl,
    network: crate::hardware::Network,
    host_collective: Time,
    host_peer: Time,
    drains: Mutex<Vec<Drain>>,
}

/// A matrix and its drain times, worked out by whoever asks first.
type Drain = (Arc<Vec<u32>>, Arc<OnceLock<Unit>>);

/// Drain times of an uneven matrix of rows at one row a second, local and remote flows apart. They
/// share no link, so a rank is done at the later of the two, each scaled by its own rate.
#[derive(Debug)]
struct Unit {
    local_seconds: Vec<f64>,
    remote_seconds: Vec<f64>,
    /// Rows through the busiest port, NVLink and NIC.
    port_rows: [u64; 2],
    /// What limits, NVLink port and NIC or leaf, by name.
    limits: [String; 2],
    /// Mean rows of a message that is not empty.
    mean_rows: f64,
    /// Peers that get anything, on the node and beyond it, each of the rank that has most of them.
    peers: [usize; 2],
}

/// Peers of a rank in its group: those on its node, and those beyond it.
pub(super) fn peers(scope: Scope, world_size: usize, gpus_per_node: usize) -> (usize, usize) {
    match scope {
        Scope::World => (
            gpus_per_node.min(world_size) - 1,
            world_size - gpus_per_node.min(world_size),
        ),
        Scope::Strided { size, stride } => {
            let (size, stride) = (size as usize, stride as usize);
            let local = (gpus_per_node / stride).clamp(1, size);
            (local - 1, size - local)
        }
    }
}

impl Exchanges {
    pub(super) fn new(nccl: Nccl, hardware: &Hardware) -> Self {
        let us = |us: f64| Time::from_secs_f64(us * 1e-6);
        Exchanges {
            nccl,
            network: hardware.network.clone(),
            host_collective: us(hardware.host.collective_us),
            host_peer: us(hardware.host.peer_us),
            drains: Mutex::default(),
        }
    }

    pub(super) fn price(&self, exchange: &Exchange<'_>) -> ExchangePrice {
        match exchange.traffic {
            Traffic::Uniform {
                scope,
                bytes_per_peer,
            } => self.uniform(exchange, *scope, *bytes_per_peer),
            Traffic::Matrix {
                scope,
                rows,
                row_bytes,
                chunks,
                ..
            } => {
                let cell = self.unit(rows);
                let unit = cell.get_or_init(|| self.drain_unit(exchange, *scope, rows));
                self.uneven(exchange, unit, *row_bytes as f64 / f64::from(*chunks))
            }
        }
    }

    /// The busiest port of an uneven exchange at its full rate: no price of it is below. Adds rows up;
    /// drains no flows.
    pub(super) fn floor(&self, exchange: &Exchange<'_>) -> Time {
        let Traffic::Matrix {
            rows,
            row_bytes,
            chunks,
            ..
        } = exchange.traffic
        else {
            return Time::ZERO;
        };
        let [local, remote] = port_rows(exchange, rows);
        let ports = self.nccl.params();
        // Message sizes, peers and congestion only take away from these.
        let nic = ports.nic.wire_gb_per_s * ports.nic.efficiency.max(1.0);
        let row = *row_bytes as f64 / f64::from(*chunks);
        let seconds = |rows: u64, gb_per_s: f64| rows as f64 * row / (gb_per_s * 1e9);
        let busiest = seconds(local, ports.intra.port_gb_per_s).max(seconds(remote, nic));
        // No finish is below the port bound of its rank (`network`), but for rounding.
        Time::from_secs_f64(busiest * (1.0 - 1e-6))
    }

    fn uniform(&self, exchange: &Exchange<'_>, scope: Scope, message: u64) -> ExchangePrice {
        let (local, remote) = peers(scope, exchange.world_size, exchange.gpus_per_node);
        let rates = self.rates(exchange, message, local, remote);
        let within = rates.nvlink.time_for(message.saturating_mul(local as u64));
        let beyond = match self.drained_uniform(exchange, scope, message, &rates) {
            Ok(Some(drained)) => drained.makespan.max(within),
            Ok(None) | Err(_) => rates.nic.time_for(message.saturating_mul(remote as u64)),
        };
        let nic_bound = remote > 0 && beyond > within;
        let ports = self.nccl.params();
        let bound = |peers: usize, gb_per_s: f64| {
            Time::from_secs_f64(message as f64 * peers as f64 / (gb_per_s * 1e9))
        };
        ExchangePrice {
            alone: PerRank::Same(rates.latency + within.max(beyond)),
            host: self.host(exchange, local + remote),
            provenance: rates.provenance,
            wire: if nic_bound { Wire::Nic } else { Wire::NvLink },
            bottleneck: if nic_bound {
                "every NIC alike".into()
            } else {
                "every NVLink port alike".into()
            },
            port_bound: bound(local, ports.intra.port_gb_per_s)
                .max(bound(remote, ports.nic.wire_gb_per_s)),
        }
    }

    /// Even traffic on the switches above the NICs, where they can be a bottleneck.
    fn drained_uniform(
        &self,
        exchange: &Exchange<'_>,
        scope: Scope,
        message: u64,
        rates: &Rates,
    ) -> Result<Option<Drained>, FabricError> {
        let blocking =
            self.network.oversubscription > 1.0 || self.network.routing == Routing::Static;
        let Some(scope) = network_scope(scope, exchange).filter(|_| blocking) else {
            return Ok(None);
        };
        let fabric = self.fabric(exchange, rates.nvlink, rates.nic)?;
        let traffic = network::traffic::Traffic::Uniform {
            scope,
            bytes_per_pair: message,
        };
        Ok(network::drain(&fabric, &traffic).ok())
    }

    fn uneven(&self, exchange: &Exchange<'_>, unit: &Unit, row_bytes: f64) -> ExchangePrice {
        let [local, remote] = unit.peers;
        let message = (unit.mean_rows * row_bytes) as u64;
        let rates = self.rates(exchange, message, local, remote);
        let [nvlink, nic] =
            [rates.nvlink, rates.nic].map(|rate| row_bytes / rate.bytes_per_second());
        let rank_time = |rank: usize| {
            let slower = (unit.local_seconds[rank] * nvlink).max(unit.remote_seconds[rank] * nic);
            rates.latency + Time::from_secs_f64(slower)
        };
        let bound = |rows: u64, gb_per_s: f64| {
            Time::from_secs_f64(rows as f64 * row_bytes / (gb_per_s * 1e9))
        };
        let latest = |seconds: &[f64]| seconds.iter().copied().fold(0.0, f64::max);
        let beyond = latest(&unit.remote_seconds) * nic;
        let nic_bound = beyond > 0.0 && beyond >= latest(&unit.local_seconds) * nvlink;
        let ports = self.nccl.params();
        let [local_rows, remote_rows] = unit.port_rows;
        ExchangePrice {
            alone: PerRank::Each((0..exchange.world_size).map(rank_time).collect()),
            host: self.host(exchange, local + remote),
            provenance: rates.provenance,
            wire: if nic_bound { Wire::Nic } else { Wire::NvLink },
            bottleneck: unit.limits[usize::from(nic_bound)].clone(),
            port_bound: bound(local_rows, ports.intra.port_gb_per_s)
                .max(bound(remote_rows, ports.nic.wire_gb_per_s)),
        }
    }

    fn rates(&self, exchange: &Exchange<'_>, message: u64, local: usize, remote: usize) -> Rates {
        let nodes = match remote {
            0 => 1,
            _ => exchange.world_size / exchange.gpus_per_node,
        };
        let share = self.network.congestion.share(nodes, remote);
        let payload = match exchange.transport {
            Transport::Grouped | Transport::FusedSimple => 1.0,
            Transport::FusedLl128 => LL128_PAYLOAD,
        };
        let nvlink = self.nccl.nvlink_rate(message, local.max(1));
        let nic = self.nccl.nic_rate(message, remote.max(1), share);
        let latency = match (exchange.transport, exchange.first) {
            (Transport::Grouped, _) | (_, true) => self.nccl.all_to_all_latency(local, remote),
            // A later phase of a fused kernel needs no launch and no group of its own, only the
            // handshake with its peers.
            (Transport::FusedSimple | Transport::FusedLl128, false) => {
                let whole = self.nccl.all_to_all_latency(local, remote);
                Estimate::new(
                    whole.time - self.nccl.all_to_all_latency(0, 0).time,
                    Provenance::Extrapolated,
                )
            }
        };
        let used = [(local, nvlink.provenance), (remote, nic.provenance)];
        let provenance = used
            .into_iter()
            .filter(|(peers, _)| *peers > 0)
            .fold(latency.provenance, |worst, (_, provenance)| {
                worst.worse(provenance)
            });
        let scaled = |rate: Bandwidth| {
            Bandwidth::from_bytes_per_second(rate.bytes_per_second() * payload).unwrap_or(rate)
        };
        Rates {
            latency: latency.time,
            nvlink: scaled(nvlink.rate),
            nic: scaled(nic.rate),
            provenance,
        }
    }

    fn host(&self, exchange: &Exchange<'_>, peers: usize) -> Time {
        // Every exchange of an unfused algorithm is a group call of its own.
        match (exchange.transport, exchange.first) {
            (Transport::Grouped, _) => self.host_collective + self.host_peer.times(peers as u64),
            (Transport::FusedSimple | Transport::FusedLl128, true) => self.host_collective,
            (Transport::FusedSimple | Transport::FusedLl128, false) => Time::ZERO,
        }
    }

    fn fabric(
        &self,
        exchange: &Exchange<'_>,
        nvlink: Bandwidth,
        nic: Bandwidth,
    ) -> Result<Fabric, FabricError> {
        let whole = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let (world, node) = (exchange.world_size as u64, exchange.gpus_per_node as u64);
        Fabric::new(whole(world), whole(node), nvlink, nic)?.with_leaves(Leaves {
            nodes_per_leaf: whole(self.network.nodes_per_leaf),
            oversubscription: self.network.oversubscription,
            spines: whole(self.network.spines),
            routing: match self.network.routing {
                Routing::Adaptive => FabricRouting::Adaptive,
                Routing::Static => FabricRouting::Static,
            },
        })
    }

    /// The drain times of `rows`, worked out once for all plans and chunks that share the matrix.
    fn unit(&self, rows: &Arc<Vec<u32>>) -> Arc<OnceLock<Unit>> {
        let mut drains = self.drains.lock().unwrap_or_else(PoisonError::into_inner);
        match drains.iter().find(|(known, _)| Arc::ptr_eq(known, rows)) {
            Some((_, cell)) => cell.clone(),
            None => {
                let room = KEPT_BYTES / size_of_val(&rows[..]).max(1);
                if drains.len() >= room.clamp(1, KEPT_MATRICES) {
                    drains.remove(0);
                }
                let cell = Arc::new(OnceLock::new());
                drains.push((rows.clone(), cell.clone()));
                cell
            }
        }
    }

    fn drain_unit(&self, exchange: &Exchange<'_>, scope: Scope, rows: &[u32]) -> Unit {
        let (world, node) = (exchange.world_size, exchange.gpus_per_node);
        let rate = |rows_per_second| {
            Bandwidth::from_bytes_per_second(rows_per_second)
                .expect("both rates are positive constants")
        };
        let drain = |traffic: &network::traffic::Traffic, ports: [LinkClass; 2]| {
            let fabric = self
                .fabric(exchange, rate(1e6), rate(1e6))
                .expect("the compiler checked the world's shape");
            let drained =
                network::drain(&fabric, traffic).expect("the matrix has one entry a pair of ranks");
            let loads = drained.loads.iter();
            let of_ports = loads.filter(|load| ports.contains(&load.busiest.class));
            let busiest_rows = of_ports.map(|load| load.busiest_bytes).max().unwrap_or(0);
            let name = drained
                .bottleneck
                .map(|link| fabric.name(link).to_string())
                .unwrap_or_default();
            // At one row a microsecond, so that picoseconds resolve a millionth of a row.
            let seconds = drained.finish.iter().map(|time| time.as_secs_f64() * 1e6);
            (seconds.collect::<Vec<f64>>(), busiest_rows, name)
        };
        let (local_traffic, remote_traffic) = split(exchange, scope, rows);
        let (local_seconds, local_rows, local) =
            drain(&local_traffic, [LinkClass::NvlinkOut, LinkClass::NvlinkIn]);
        let (remote_seconds, remote_rows, remote) =
            drain(&remote_traffic, [LinkClass::NicOut, LinkClass::NicIn]);
        let (mut total, mut messages, mut peers) = (0u64, 0u64, [0; 2]);
        for source in 0..world {
            let mut of_source = [0; 2];
            for (destination, &count) in rows[source * world..(source + 1) * world]
                .iter()
                .enumerate()
            {
                if count > 0 && destination != source {
                    total += u64::from(count);
                    messages += 1;
                    of_source[usize::from(destination / node != source / node)] += 1;
                }
            }
            peers = [0, 1].map(|kind: usize| peers[kind].max(of_source[kind]));
        }
        Unit {
            local_seconds,
            remote_seconds,
            port_rows: [local_rows, remote_rows],
            limits: [local, remote],
            mean_rows: total as f64 / messages.max(1) as f64,
            peers,
        }
    }
}

/// Rows through the busiest NVLink port and the busiest NIC, in or out.
fn port_rows(exchange: &Exchange<'_>, rows: &[u32]) -> [u64; 2] {
    let (world, node) = (exchange.world_size, exchange.gpus_per_node);
    let mut through = vec![[0u64; 4]; world];
    for (source, row) in rows.chunks_exact(world).enumerate() {
        for (destination, &count) in row.iter().enumerate() {
            if destination != source {
                let beyond = usize::from(destination / node != source / node);
                through[source][beyond] += u64::from(count);
                through[destination][2 + beyond] += u64::from(count);
            }
        }
    }
    let busiest = |port: usize| {
        let of_rank = |ports: &[u64; 4]| ports[port].max(ports[2 + port]);
        through.iter().map(of_rank).max().unwrap_or(0)
    };
    [busiest(0), busiest(1)]
}

struct Rates {
    latency: Time,
    nvlink: Bandwidth,
    nic: Bandwidth,
    provenance: Provenance,
}

/// The network's name for a scope, where it has one.
fn network_scope(scope: Scope, exchange: &Exchange<'_>) -> Option<network::traffic::Scope> {
    let (world, node) = (exchange.world_size, exchange.gpus_per_node);
    match scope {
        Scope::World => Some(network::traffic::Scope::World),
        Scope::Strided { size, stride: 1 } if size as usize == node => {
            Some(network::traffic::Scope::Node)
        }
        Scope::Strided { size, stride }
            if stride as usize == node && size as usize == world / node =>
        {
            Some(network::traffic::Scope::Rail)
        }
        Scope::Strided { .. } => None,
    }
}

/// The rows that stay within nodes, and those that leave them, as the network takes them.
fn split(
    exchange: &Exchange<'_>,
    scope: Scope,
    rows: &[u32],
) -> (network::traffic::Traffic, network::traffic::Traffic) {
    use network::traffic::{Scope as Peers, Traffic};
    let (world, node) = (exchange.world_size, exchange.gpus_per_node);
    let local = (0..world).flat_map(|rank| {
        let first = rank / node * node;
        rows[rank * world + first..rank * world + first + node]
            .iter()
            .map(|&rows| u64::from(rows))
    });
    let local = Traffic::Matrix {
        scope: Peers::Node,
        bytes: local.collect(),
    };
    let remote = match network_scope(scope, exchange) {
        Some(Peers::Rail) => {
            let column =
                |rank: usize| (0..world / node).map(move |k| rank * world + k * node + rank % node);
            let bytes = (0..world)
                .flat_map(column)
                .map(|index| u64::from(rows[index]))
                .collect();
            Traffic::Matrix {
                scope: Peers::Rail,
                bytes,
            }
        }
        Some(Peers::Node) => Traffic::Matrix {
            scope: Peers::Node,
            bytes: vec![0; world * node],
        },
        Some(Peers::World) | None => {
            let mut bytes: Vec<u64> = rows.iter().map(|&rows| u64::from(rows)).collect();
            for rank in 0..world {
                let first = rank / node * node;
                bytes[rank * world + first..rank * world + first + node].fill(0);
            }
            Traffic::Matrix {
                scope: Peers::World,
                bytes,
            }
        }
    };
    (local, remote)
}
