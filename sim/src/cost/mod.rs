//! How long an operation takes, and how far to believe it.

pub mod analytic;
pub mod cpu;
mod exchange;
pub mod gemm;
pub mod gemm_table;
pub mod moe_ffn;
pub mod moe_table;
pub mod nccl;
pub mod nccl_table;
pub mod one_gpu;
mod power_law;
pub mod price;
pub mod provenance;

use crate::engine::{Concurrency, PricedOp};
use crate::hardware::Hardware;
use crate::ir::{Op, OpKind, PerRank, Program, Scope, Traffic, Transport, Work};
use crate::units::Time;
use provenance::{Estimate, Provenance};

/// One exchange to be priced.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    /// Who sends how much to whom.
    pub traffic: &'a Traffic,
    /// How it is carried.
    pub transport: Transport,
    /// Whether it is the first phase of its All-to-All.
    pub first: bool,
    /// W.
    pub world_size: usize,
    /// m.
    pub gpus_per_node: usize,
}

impl<'a> Exchange<'a> {
    /// What `op` asks for, if it is an exchange of `program`.
    pub fn of(program: &'a Program, op: &Op) -> Option<Exchange<'a>> {
        let OpKind::Exchange {
            traffic,
            transport,
            first,
        } = op.kind
        else {
            return None;
        };
        Some(Exchange {
            traffic: program.traffic(traffic),
            transport,
            first,
            world_size: program.world_size,
            gpus_per_node: program.gpus_per_node,
        })
    }
}

/// What an exchange keeps busy longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// NVLink ports: much HBM bandwidth on both sides.
    NvLink,
    /// NICs.
    Nic,
}

/// The price of one exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct ExchangePrice {
    /// Time on each rank from the moment all participants are there: its last byte in or out.
    pub alone: PerRank<Time>,
    /// Time the host needs to issue its sends and receives.
    pub host: Time,
    /// How it was obtained.
    pub provenance: Provenance,
    /// What it keeps busy.
    pub wire: Wire,
    /// What limits it, for people: `nic-out of rank 17`.
    pub bottleneck: String,
    /// No exchange of these bytes ends before this, whatever the software: the busiest port at its
    /// full rate.
    pub port_bound: Time,
}

/// Prices for everything a program does. Each answer says where it comes from.
pub trait CostModel: Sync {
    /// One kernel on one GPU, from its start.
    fn kernel(&self, work: &Work) -> Estimate;

    /// One exchange of an All-to-All.
    fn exchange(&self, exchange: &Exchange<'_>) -> ExchangePrice;

    /// A time that no such exchange ends before, cheaper than its price; nothing where none is known.
    fn exchange_floor(&self, _exchange: &Exchange<'_>) -> Time {
        Time::ZERO
    }

    /// All-gather or reduce-scatter of `bytes` in groups of `scope`, all groups at once.
    fn gather(&self, program: &Program, scope: Scope, bytes: u64, reduce: bool) -> Estimate;

    /// All-reduce of `bytes` in groups of `scope`, all groups at once.
    fn all_reduce(&self, program: &Program, scope: Scope, bytes: u64) -> Estimate;

    /// All-reduce of one number over `program`'s world, and the host's wait for it.
    fn capacity_sync(&self, program: &Program) -> Estimate;

    /// Time the host needs to issue one kernel, or a collective as a whole.
    fn host_launch(&self) -> Time;

    /// How kernels and collectives of one rank share it.
    fn concurrency(&self) -> Concurrency<'_>;

    /// The price of an operation as a whole, where its kernels and collectives alone do not make it.
    fn operation(&self, _program: &Program, _op: &Op) -> Option<PricedOp> {
        None
    }
}

/// The prices of `hardware` for `world_size` ranks: GPUs, or threads of a CPU where it describes one.
///
/// # Errors
/// Collective parameters that make no model.
pub fn model_of(
    hardware: &Hardware,
    world_size: u64,
) -> Result<Box<dyn CostModel>, nccl::NcclError> {
    Ok(match &hardware.cpu {
        Some(params) => Box::new(cpu::CpuModel::new(params, world_size)),
        None => Box::new(analytic::Analytic::new(hardware)?),
    })
}
