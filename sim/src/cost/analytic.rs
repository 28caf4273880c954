//! The built-in prices: fitted GEMM and NCCL models, memory at HBM's rate, flows on the network.

use super::nccl::{CollectiveKind, Nccl};
use super::provenance::{Estimate, Provenance};
use super::{CostModel, Exchange, ExchangePrice};
use crate::engine::Contention;
use crate::hardware::Hardware;
use crate::ir::{PerRank, Program, Scope, Traffic, Transport, Work};
use crate::units::Time;

/// Payload of a 128-byte line under LL128.
const LL128_PAYLOAD: f64 = 120.0 / 128.0;

/// Prices from the constants of a [`Hardware`].
#[derive(Debug, Clone)]
pub struct Analytic {
    hardware: Hardware,
    nccl: Nccl,
    host_launch: Time,
    host_peer: Time,
    host_collective: Time,
}

impl Analytic {
    /// Prices on `hardware`, matrix products at the rate its software reaches.
    ///
    /// # Errors
    /// Collective parameters that make no model.
    pub fn new(hardware: &Hardware) -> Result<Self, super::nccl::NcclError> {
        let mut hardware = hardware.clone();
        hardware.gpu.gemm.efficiency *= hardware.software.gemm_efficiency;
        let nccl = Nccl::new(hardware.collectives.clone(), None)?;
        let host_peer = Time::from_secs_f64(hardware.host.peer_us * 1e-6);
        let host_collective = Time::from_secs_f64(hardware.host.collective_us * 1e-6);
        let host_launch = Time::from_secs_f64(hardware.host.launch_us * 1e-6);
        Ok(Analytic {
            hardware,
            nccl,
            host_launch,
            host_peer,
            host_collective,
        })
    }
}

/// Peers of a rank in its group: those on its node, and those beyond it.
fn peers(scope: Scope, world_size: usize, gpus_per_node: usize) -> (usize, usize) {
    match scope {
        Scope::World => (gpus_per_node - 1, world_size - gpus_per_node),
        Scope::Strided { size, stride } => {
            let (size, stride) = (size as usize, stride as usize);
            let local = (gpus_per_node / stride.min(gpus_per_node)).min(size);
            let local = if stride >= gpus_per_node { 1 } else { local };
            (local - 1, size - local)
        }
    }
}

impl CostModel for Analytic {
    fn kernel(&self, work: &Work) -> Estimate {
        match work {
            Work::Gemm(shape) => self.hardware.gpu.gemm.estimate(shape),
            Work::Memory { bytes: 0 } => Estimate::new(Time::ZERO, Provenance::Roofline),
            Work::Memory { bytes } => {
                let seconds = self.hardware.gpu.kernel_us * 1e-6
                    + *bytes as f64 / (self.hardware.gpu.hbm_gb_per_s * 1e9);
                Estimate::new(Time::from_secs_f64(seconds), Provenance::Roofline)
            }
        }
    }

    fn exchange(&self, exchange: &Exchange<'_>) -> ExchangePrice {
        let Exchange {
            traffic,
            world_size,
            gpus_per_node,
            transport,
            first,
        } = *exchange;
        let scope = traffic.scope();
        let (local, remote) = peers(scope, world_size, gpus_per_node);
        let message = match traffic {
            Traffic::Uniform { bytes_per_peer, .. } => *bytes_per_peer,
            Traffic::Matrix { .. } => 0,
        };
        let nodes = world_size / gpus_per_node;
        let share = self
            .hardware
            .network
            .congestion
            .share(if remote == 0 { 1 } else { nodes }, remote);
        let payload = if transport == Transport::FusedLl128 {
            LL128_PAYLOAD
        } else {
            1.0
        };
        let nvlink = self.nccl.nvlink_rate(message, local);
        let nic = self.nccl.nic_rate(message, remote, share);
        let latency = match (transport, first) {
            (Transport::Grouped, _) | (_, true) => self.nccl.all_to_all_latency(local, remote).time,
            (Transport::FusedSimple | Transport::FusedLl128, false) => Time::from_us(3),
        };
        let within = nvlink.rate.time_for(message * local as u64);
        let beyond = nic.rate.time_for(message * remote as u64);
        let time = latency + within.max(beyond).scale(1.0 / payload);
        let call = if first { self.host_collective } else { Time::ZERO };
        let issued = match transport {
            Transport::Grouped => call + self.host_peer.times((local + remote) as u64),
            Transport::FusedSimple | Transport::FusedLl128 => call,
        };
        ExchangePrice {
            host: issued,
            alone: PerRank::Same(time),
            provenance: nvlink.provenance.worse(nic.provenance),
            bottleneck: if beyond > within {
                "NICs"
            } else {
                "NVLink ports"
            }
            .into(),
            port_bound: Time::ZERO,
        }
    }

    fn gather(&self, program: &Program, scope: Scope, bytes: u64, reduce: bool) -> Estimate {
        let (local, remote) = peers(scope, program.world_size, program.gpus_per_node);
        let kind = if reduce {
            CollectiveKind::ReduceScatter
        } else {
            CollectiveKind::AllGather
        };
        self.nccl
            .estimate(kind, bytes, local + 1 + remote, local + 1)
    }

    fn capacity_sync(&self, program: &Program) -> Estimate {
        let reduced = self.nccl.estimate(
            CollectiveKind::AllReduce,
            8,
            program.world_size,
            program.gpus_per_node,
        );
        let wait = Time::from_secs_f64(self.hardware.host.synchronise_us * 1e-6);
        reduced.then(Estimate::new(wait, Provenance::Roofline))
    }

    fn host_launch(&self) -> Time {
        self.host_launch
    }

    fn contention(&self) -> &Contention {
        &self.hardware.gpu.contention
    }
}
