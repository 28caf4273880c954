//! Prices where ranks are threads on the cores of one machine.
//!
//! An operation is a few matrix products and passes over memory on one core. Where more ranks than
//! cores have work, each gets its turn: what one needs in core time takes longer by ranks over
//! cores, and uneven ranks leave the cores to those that still work.

use super::provenance::{Estimate, Provenance};
use super::{CostModel, Exchange, ExchangePrice, Wire};
use crate::engine::{Concurrency, Contention, PricedOp, Resource};
use crate::hardware::{CpuParams, GemmTerms};
use crate::ir::{
    Elementwise, Expert, ExpertRows, Gradient, Op, OpKind, Pass, PerRank, Program, Scope, Traffic,
    Work,
};
use crate::spec::{Encode, Gate};
use crate::units::Time;

/// Which factor of a product is read along its columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Neither.
    Plain,
    /// The right one.
    RightTransposed,
    /// The left one.
    LeftTransposed,
}

/// Equal products of one operation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Products {
    /// How many.
    pub count: f64,
    /// (m, n, k) of each.
    pub shape: [f64; 3],
    /// How factors are read.
    pub order: Order,
}

/// What an operation asks of a core on one rank, as the CPU executor carries it out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Demand {
    /// Matrix products.
    pub products: Vec<Products>,
    /// The pass over memory, by name, and its bytes.
    pub pass: Option<(&'static str, f64)>,
}

/// What `op` asks of a core on `rank`.
pub fn demand(program: &Program, op: &Op, rank: usize) -> Demand {
    let bytes = || -> f64 {
        let work = op.kind.work(op.pass, rank, program.dtype).into_iter();
        work.map(|work| work.bytes() as f64).sum()
    };
    let pass = |name| Demand {
        products: Vec::new(),
        pass: Some((name, bytes())),
    };
    let products = |count: f64, shape: [f64; 3], order| Products {
        count,
        shape,
        order,
    };
    match &op.kind {
        OpKind::Gate {
            tokens,
            experts,
            model_dim,
            gate,
            ..
        } => {
            let (t, d) = (*tokens as f64, *model_dim as f64);
            // A product of few columns is bound by reading one side, once for every eight experts.
            let comparisons = experts.div_ceil(8);
            let (products, name, reads) = match (*gate, op.pass) {
                (Gate::Linear, Pass::Forward) => (Vec::new(), "gate", model_dim * comparisons),
                (Gate::Linear, Pass::Backward) => {
                    (Vec::new(), "gate gradient", model_dim * comparisons)
                }
                // A projection; its channels are then normalised and compared with each expert's.
                (Gate::Cosine { projection_dim: p }, Pass::Forward) => {
                    let projection = products(1.0, [t, p as f64, d], Order::Plain);
                    (vec![projection], "cosine gate", p * (1 + comparisons))
                }
                (Gate::Cosine { projection_dim: p }, Pass::Backward) => {
                    let of_weight = products(1.0, [d, p as f64, t], Order::LeftTransposed);
                    let of_tokens = products(1.0, [t, d, p as f64], Order::RightTransposed);
                    let reads = p * (1 + comparisons);
                    (vec![of_weight, of_tokens], "cosine gate gradient", reads)
                }
            };
            Demand {
                products,
                pass: Some((name, 4.0 * (tokens * reads) as f64)),
            }
        }
        OpKind::CapacitySync => Demand::default(),
        OpKind::Encode {
            encode: Encode::Sparse,
            ..
        } => pass(match op.pass {
            Pass::Forward => "scatter",
            Pass::Backward => "gather",
        }),
        OpKind::Decode {
            encode: Encode::Sparse,
            ..
        } => pass(match op.pass {
            Pass::Forward => "weighted gather",
            Pass::Backward => "weighted scatter",
        }),
        OpKind::ScoreGradient {
            encode: Encode::Sparse,
            ..
        } => pass("row dots"),
        OpKind::Encode {
            tokens,
            slots,
            model_dim,
            ..
        }
        | OpKind::Decode {
            tokens,
            slots,
            model_dim,
            ..
        }
        | OpKind::ScoreGradient {
            tokens,
            slots,
            model_dim,
            ..
        } => dense(
            op,
            *tokens as f64,
            *slots.get(rank) as f64,
            *model_dim as f64,
        ),
        OpKind::Exchange { traffic, .. } => Demand {
            products: Vec::new(),
            pass: Some((
                "exchange",
                arriving(program, program.traffic(*traffic), rank),
            )),
        },
        OpKind::ExpertGemm {
            matrix,
            gradient,
            rows,
            model_dim,
            hidden_dim,
        } => {
            let (d, h) = (*model_dim as f64, *hidden_dim as f64);
            let of_rows = |rows: f64| match gradient {
                Gradient::Weight => ([h, d, rows], Order::LeftTransposed),
                Gradient::Output | Gradient::Input => {
                    match (*matrix == Expert::Up) == (*gradient == Gradient::Output) {
                        true => ([rows, h, d], Order::RightTransposed),
                        false => ([rows, d, h], Order::Plain),
                    }
                }
            };
            let list = match rows {
                ExpertRows::Padded {
                    experts,
                    blocks,
                    rows,
                } => {
                    let (blocks, rows) = match gradient {
                        Gradient::Weight => (1, blocks * rows),
                        // Blocks of a lone expert lie together.
                        _ if *experts == 1 => (1, blocks * rows),
                        Gradient::Output | Gradient::Input => (*blocks, *rows),
                    };
                    let (shape, order) = of_rows(rows as f64);
                    vec![products((experts * blocks) as f64, shape, order)]
                }
                ExpertRows::Grouped { .. } => rows
                    .by_expert(rank)
                    .filter(|rows| *rows > 0)
                    .map(|rows| {
                        let (shape, order) = of_rows(rows as f64);
                        products(1.0, shape, order)
                    })
                    .collect(),
            };
            Demand {
                products: list,
                pass: None,
            }
        }
        OpKind::Elementwise { what, .. } => pass(match what {
            Elementwise::Bias(_) => "bias",
            Elementwise::Activation => "activation",
            Elementwise::ActivationGradient => "activation gradient",
            Elementwise::BiasGradient(_) => "bias gradient",
            Elementwise::StrideCopy | Elementwise::Gather => "copy",
            Elementwise::Repeat { .. } => "repeat",
            Elementwise::LocalSum { .. } => "local sum",
        }),
        OpKind::AllGather { bytes, .. } => Demand {
            products: Vec::new(),
            pass: Some(("all-gather", *bytes as f64)),
        },
        OpKind::ReduceScatter { bytes, .. } => Demand {
            products: Vec::new(),
            pass: Some(("reduce-scatter", *bytes as f64)),
        },
        // Whole models run on GPUs only.
        OpKind::AllReduce { .. } | OpKind::Model { .. } => Demand::default(),
    }
}

/// The einsums of the dense path, and the passes over (T, E, C) tensors where they run.
fn dense(op: &Op, tokens: f64, slots: f64, model_dim: f64) -> Demand {
    let tensor = 4.0 * tokens * slots;
    let to_slots = ([slots, model_dim, tokens], Order::LeftTransposed);
    let from_slots = ([tokens, model_dim, slots], Order::Plain);
    let ((shape, order), pass) = match (&op.kind, op.pass) {
        (OpKind::ScoreGradient { .. }, _) => (
            ([tokens, slots, model_dim], Order::RightTransposed),
            Some(("dense scores", tensor)),
        ),
        (OpKind::Encode { .. }, Pass::Forward) => (to_slots, Some(("dense tensors", tensor))),
        (OpKind::Decode { .. }, Pass::Backward) => (to_slots, None),
        (_, _) => (from_slots, None),
    };
    Demand {
        products: vec![Products {
            count: 1.0,
            shape,
            order,
        }],
        pass,
    }
}

/// Bytes an exchange writes on `rank`, its own rows included.
fn arriving(program: &Program, traffic: &Traffic, rank: usize) -> f64 {
    let received = traffic.received_by(rank, program.world_size) as f64;
    let own = match traffic {
        Traffic::Uniform { bytes_per_peer, .. } => *bytes_per_peer as f64,
        Traffic::Matrix {
            rows,
            row_bytes,
            chunks,
            ..
        } => {
            let rows = f64::from(rows[rank * program.world_size + rank]);
            rows * *row_bytes as f64 / f64::from(*chunks)
        }
    };
    received + own
}

/// Prices of a machine of [`CpuParams`] under a number of ranks.
#[derive(Debug, Clone)]
pub struct CpuModel {
    params: CpuParams,
    contention: Contention,
    world_size: f64,
}

impl CpuModel {
    /// Prices for `world_size` ranks that share the machine.
    pub fn new(params: &CpuParams, world_size: u64) -> CpuModel {
        let (ranks, cores) = (world_size as f64, params.cores as f64);
        // With both streams of all ranks at work, twice as many threads share the cores.
        let both = (ranks / cores).max(1.0) / (2.0 * ranks / cores).max(1.0);
        let share = |beside: f64| (both * beside).clamp(1e-3, 1.0);
        let (gemm, copy) = (
            share(params.gemm_beside_copy),
            share(params.copy_beside_gemm),
        );
        let memory = share(params.copy_beside_gemm);
        CpuModel {
            contention: Contention {
                gemm_beside_nic: gemm,
                memory_beside_nic: memory,
                nic_beside_kernel: copy,
                gemm_beside_nvlink: gemm,
                memory_beside_nvlink: memory,
                nvlink_beside_kernel: copy,
            },
            world_size: ranks,
            params: params.clone(),
        }
    }

    fn terms(&self, order: Order) -> &GemmTerms {
        match order {
            Order::Plain => &self.params.gemm.plain,
            Order::RightTransposed => &self.params.gemm.right_transposed,
            Order::LeftTransposed => &self.params.gemm.left_transposed,
        }
    }

    /// Core time of a demand, microseconds.
    pub fn core_us(&self, demand: &Demand) -> f64 {
        let products: f64 = demand
            .products
            .iter()
            .map(|products| {
                let [m, n, k] = products.shape;
                products.count * self.terms(products.order).microseconds(m, n, k)
            })
            .sum();
        let pass = demand.pass.map_or(0.0, |(name, bytes)| {
            self.params
                .passes
                .get(name)
                .map_or(0.0, |curve| curve.at(bytes))
        });
        products + pass
    }

    /// When each rank is done if all start at once and share the cores evenly, microseconds.
    fn shared(&self, core_us: &[f64]) -> Vec<f64> {
        let cores = self.params.cores as f64;
        let mut order: Vec<usize> = (0..core_us.len()).collect();
        order.sort_by(|&a, &b| core_us[a].total_cmp(&core_us[b]));
        let mut done = vec![0.0; core_us.len()];
        let (mut now, mut worked) = (0.0, 0.0);
        for (finished, &rank) in order.iter().enumerate() {
            let left = (core_us.len() - finished) as f64;
            now += (core_us[rank] - worked) * (left / cores).max(1.0);
            worked = core_us[rank];
            done[rank] = now;
        }
        let sharing = self.params.sharing.at(self.world_size);
        done.iter().map(|time| time * sharing).collect()
    }
}

fn microseconds(us: f64) -> Time {
    Time::from_secs_f64(us * 1e-6)
}

impl CostModel for CpuModel {
    fn operation(&self, program: &Program, op: &Op) -> Option<PricedOp> {
        let demands: Vec<Demand> = (0..program.world_size)
            .map(|rank| demand(program, op, rank))
            .collect();
        let core: Vec<f64> = demands.iter().map(|demand| self.core_us(demand)).collect();
        let mut around = self.params.launch_us.at(self.world_size);
        let meets = op.kind.scope(&program.traffic).is_some();
        if meets && program.world_size > 1 {
            around += self.params.meeting_us.at(self.world_size);
        }
        let times = self.shared(&core);
        let alike = demands.windows(2).all(|pair| pair[0] == pair[1]);
        Some(PricedOp {
            // All of an exchange's members leave together.
            alone: match (alike, meets) {
                (true, _) => PerRank::Same(microseconds(around + times[0])),
                (false, true) => {
                    let last = times.iter().copied().fold(0.0, f64::max);
                    PerRank::Each(vec![microseconds(around + last); times.len()])
                }
                (false, false) => {
                    PerRank::Each(times.iter().map(|us| microseconds(around + us)).collect())
                }
            },
            host: Time::ZERO,
            resource: match (meets, demands[0].products.is_empty()) {
                (true, _) => Resource::NvLink,
                (false, false) => Resource::Gemm,
                (false, true) => Resource::Memory,
            },
            provenance: Provenance::Fitted,
        })
    }

    fn kernel(&self, work: &Work) -> Estimate {
        let us = match work {
            Work::Gemm(shape) => {
                let [m, n, k] = [shape.m, shape.n, shape.k].map(|size| size as f64);
                shape.batch as f64 * self.params.gemm.plain.microseconds(m, n, k)
            }
            Work::Memory { .. } | Work::Framework { .. } | Work::ColumnScan { .. } => {
                let copy = self.params.passes.get("copy");
                copy.map_or(0.0, |curve| curve.at(work.bytes() as f64))
            }
        };
        Estimate::new(microseconds(us), Provenance::Fitted)
    }

    fn exchange(&self, exchange: &Exchange<'_>) -> ExchangePrice {
        let members = exchange.traffic.scope().group_size(exchange.world_size);
        let bytes = exchange.traffic.received_by(0, exchange.world_size);
        let demand = Demand {
            products: Vec::new(),
            pass: Some(("exchange", bytes as f64)),
        };
        let time = self.shared(&vec![self.core_us(&demand); members])[0];
        ExchangePrice {
            alone: PerRank::Same(microseconds(time)),
            host: Time::ZERO,
            provenance: Provenance::Fitted,
            wire: Wire::NvLink,
            bottleneck: "memory of the machine".into(),
            port_bound: Time::ZERO,
        }
    }

    fn gather(&self, program: &Program, _: Scope, bytes: u64, reduce: bool) -> Estimate {
        let name = if reduce {
            "reduce-scatter"
        } else {
            "all-gather"
        };
        let demand = Demand {
            products: Vec::new(),
            pass: Some((name, bytes as f64)),
        };
        let time = self.shared(&vec![self.core_us(&demand); program.world_size])[0];
        Estimate::new(microseconds(time), Provenance::Fitted)
    }

    fn all_reduce(&self, program: &Program, scope: Scope, bytes: u64) -> Estimate {
        self.gather(program, scope, bytes, true)
            .then(self.gather(program, scope, bytes, false))
    }

    fn capacity_sync(&self, _: &Program) -> Estimate {
        let us = self.params.meeting_us.at(self.world_size);
        Estimate::new(microseconds(us), Provenance::Fitted)
    }

    fn host_launch(&self) -> Time {
        Time::ZERO
    }

    fn concurrency(&self) -> Concurrency<'_> {
        // A rank's streams are threads of their own.
        Concurrency {
            contention: &self.contention,
            kernels_keep_collectives_out: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{CpuGemm, Curve};
    use std::collections::BTreeMap;

    fn model(cores: u64, ranks: u64) -> CpuModel {
        let terms = GemmTerms {
            call_us: 0.0,
            multiply_add_ps: 50.0,
            left_ps: 0.0,
            right_ps: 0.0,
            result_ps: 0.0,
        };
        let one = || Curve((0..8).map(|power| [f64::from(1 << power), 1.0]).collect());
        let params = CpuParams {
            cores,
            launch_us: one(),
            meeting_us: one(),
            sharing: one(),
            gemm: CpuGemm {
                plain: terms,
                right_transposed: terms,
                left_transposed: terms,
            },
            passes: BTreeMap::new(),
            gemm_beside_copy: 1.0,
            copy_beside_gemm: 1.0,
        };
        CpuModel::new(&params, ranks)
    }

    #[test]
    fn even_ranks_wait_for_their_turn() {
        assert_eq!(model(2, 2).shared(&[10.0; 2]), [10.0; 2]);
        assert_eq!(model(2, 8).shared(&[10.0; 8]), [40.0; 8]);
    }

    #[test]
    fn ranks_that_are_done_leave_their_cores() {
        // Three at 2/3 of a core each until the short ones end at 15, then the long one alone.
        assert_eq!(model(2, 3).shared(&[10.0, 30.0, 10.0]), [15.0, 35.0, 15.0]);
    }

    #[test]
    fn streams_that_share_a_core_gain_nothing_from_overlap() {
        assert_eq!(model(2, 4).concurrency().contention.gemm_beside_nic, 0.5);
        assert_eq!(model(8, 4).concurrency().contention.gemm_beside_nic, 1.0);
    }
}
