//! The built-in prices: fitted GEMM and NCCL models, memory at HBM's rate, flows on the network.

use super::exchange::{Exchanges, peers};
use super::gemm::GemmShape;
use super::gemm_table::GemmTable;
use super::nccl::{CollectiveKind, Nccl};
use super::provenance::{Estimate, Provenance};
use super::{CostModel, Exchange, ExchangePrice};
use crate::engine::Concurrency;
use crate::hardware::Hardware;
use crate::ir::{Pass, Program, Scope, Work};
use crate::units::Time;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Prices from the constants of a [`Hardware`].
#[derive(Debug)]
pub struct Analytic {
    hardware: Hardware,
    nccl: Nccl,
    exchanges: Exchanges,
    host_launch: Time,
    gemm_table: Option<GemmTable>,
    /// Matrix products priced so far: plans and steps ask for the same ones over and over.
    products: Mutex<BTreeMap<GemmShape, Estimate>>,
}

/// Most products that are kept.
const KEPT_PRODUCTS: usize = 1 << 16;

impl Analytic {
    fn collective(
        &self,
        kind: CollectiveKind,
        program: &Program,
        scope: Scope,
        bytes: u64,
    ) -> Estimate {
        let (local, remote) = peers(scope, program.world_size, program.gpus_per_node);
        self.nccl
            .estimate(kind, bytes, local + 1 + remote, local + 1)
    }

    /// Prices on `hardware`, matrix products at the rate its software reaches.
    ///
    /// # Errors
    /// Collective parameters that make no model.
    pub fn new(hardware: &Hardware) -> Result<Self, super::nccl::NcclError> {
        let mut hardware = hardware.clone();
        hardware.gpu.gemm.efficiency *= hardware.software.gemm_efficiency;
        let nccl = Nccl::new(hardware.collectives.clone(), None)?;
        let exchanges = Exchanges::new(nccl.clone(), &hardware);
        let host_launch = Time::from_secs_f64(hardware.host.launch_us * 1e-6);
        Ok(Analytic {
            hardware,
            nccl,
            host_launch,
            exchanges,
            gemm_table: None,
            products: Mutex::default(),
        })
    }

    /// These prices with matrix products by a user's own measurements: what was measured is taken
    /// as it is, not at the software's share of a fitted rate.
    pub fn with_gemm_table(self, table: GemmTable) -> Self {
        Analytic {
            gemm_table: Some(table),
            products: Mutex::default(),
            ..self
        }
    }

    /// A kernel that moves `bytes` through memory and takes `least_s` seconds at least, its start and end besides.
    fn pass(&self, bytes: u64, least_s: f64) -> Estimate {
        let gpu = &self.hardware.gpu;
        let moved_s = bytes as f64 / (gpu.hbm_gb_per_s * 1e9);
        let seconds = gpu.kernel_us * 1e-6 + moved_s.max(least_s);
        Estimate::new(Time::from_secs_f64(seconds), Provenance::Roofline)
    }

    fn product(&self, shape: &GemmShape) -> Estimate {
        let known = || self.products.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&estimate) = known().get(shape) {
            return estimate;
        }
        let estimate = match &self.gemm_table {
            Some(table) => table.estimate(shape),
            None => self.hardware.gpu.gemm.estimate(shape),
        };
        let mut known = known();
        if known.len() < KEPT_PRODUCTS {
            known.insert(*shape, estimate);
        }
        estimate
    }
}

impl CostModel for Analytic {
    fn kernel(&self, work: &Work) -> Estimate {
        match work {
            Work::Gemm(shape) => self.product(shape),
            Work::Memory { bytes: 0 } => Estimate::new(Time::ZERO, Provenance::Roofline),
            Work::Memory { bytes } => self.pass(*bytes, 0.0),
            Work::ColumnScan { rows, bytes } => self.pass(
                *bytes,
                *rows as f64 * self.hardware.software.scan_row_ns * 1e-9,
            ),
            Work::Framework { bytes, pass } => {
                let framework = &self.hardware.software.framework;
                let factor = match pass {
                    Pass::Forward => framework.forward_passes,
                    Pass::Backward => framework.backward_passes,
                };
                let bytes = (*bytes as f64 * factor) as u64;
                self.kernel(&Work::Memory { bytes })
            }
        }
    }

    fn exchange(&self, exchange: &Exchange<'_>) -> ExchangePrice {
        self.exchanges.price(exchange)
    }

    fn exchange_floor(&self, exchange: &Exchange<'_>) -> Time {
        self.exchanges.floor(exchange)
    }

    fn gather(&self, program: &Program, scope: Scope, bytes: u64, reduce: bool) -> Estimate {
        let kind = if reduce {
            CollectiveKind::ReduceScatter
        } else {
            CollectiveKind::AllGather
        };
        self.collective(kind, program, scope, bytes)
    }

    fn all_reduce(&self, program: &Program, scope: Scope, bytes: u64) -> Estimate {
        self.collective(CollectiveKind::AllReduce, program, scope, bytes)
    }

    fn capacity_sync(&self, program: &Program) -> Estimate {
        let reduced = self.all_reduce(program, Scope::World, 8);
        let wait = Time::from_secs_f64(self.hardware.host.synchronise_us * 1e-6);
        reduced.then(Estimate::new(wait, Provenance::Roofline))
    }

    fn host_launch(&self) -> Time {
        self.host_launch
    }

    fn concurrency(&self) -> Concurrency<'_> {
        Concurrency {
            contention: &self.hardware.gpu.contention,
            kernels_keep_collectives_out: true,
        }
    }
}
