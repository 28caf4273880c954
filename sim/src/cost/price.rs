//! Prices every operation of a program.

use super::provenance::{Estimate, Provenance};
use super::{CostModel, Exchange, ExchangePrice, Wire};
use crate::engine::{PricedOp, Resource};
use crate::ir::{ExpertRows, Op, OpKind, PerRank, Program, TrafficId, Work};
use crate::units::Time;
use std::collections::BTreeMap;

/// Prices `program` operation by operation.
pub fn price(program: &Program, model: &dyn CostModel) -> Vec<PricedOp> {
    let mut known = Known {
        exchanges: vec![None; program.traffic.len()],
        kernels: BTreeMap::new(),
    };
    program
        .ops
        .iter()
        .map(|op| price_op(program, op, model, &mut known))
        .collect()
}

/// What was asked before: operations share their traffic, and ranks and chunks their kernels.
struct Known {
    exchanges: Vec<Option<ExchangePrice>>,
    kernels: BTreeMap<Work, Estimate>,
}

fn price_op(program: &Program, op: &Op, model: &dyn CostModel, known: &mut Known) -> PricedOp {
    if let Some(priced) = model.operation(program, op) {
        return priced;
    }
    let collective = |estimate: Estimate| PricedOp {
        alone: PerRank::Same(estimate.time),
        host: model.host_launch(),
        resource: Resource::Nic,
        provenance: estimate.provenance,
    };
    match &op.kind {
        OpKind::Exchange {
            traffic,
            transport,
            first,
            ..
        } => {
            let TrafficId(index) = *traffic;
            // A matrix is used by one transport at one place in its All-to-All, so one price serves
            // every chunk that shares it.
            let price = known.exchanges[index as usize].get_or_insert_with(|| {
                model.exchange(&Exchange {
                    traffic: program.traffic(*traffic),
                    transport: *transport,
                    first: *first,
                    world_size: program.world_size,
                    gpus_per_node: program.gpus_per_node,
                })
            });
            PricedOp {
                alone: price.alone.clone(),
                host: price.host,
                resource: match price.wire {
                    Wire::NvLink => Resource::NvLink,
                    Wire::Nic => Resource::Nic,
                },
                provenance: price.provenance,
            }
        }
        OpKind::AllGather { scope, bytes } => {
            collective(model.gather(program, *scope, *bytes, false))
        }
        OpKind::ReduceScatter { scope, bytes } => {
            collective(model.gather(program, *scope, *bytes, true))
        }
        OpKind::CapacitySync => collective(model.capacity_sync(program)),
        OpKind::AllReduce { bytes } => PricedOp {
            resource: if program.world_size > program.gpus_per_node {
                Resource::Nic
            } else {
                Resource::NvLink
            },
            ..collective(model.all_reduce(program, *bytes))
        },
        OpKind::Gate { .. }
        | OpKind::Encode { .. }
        | OpKind::Decode { .. }
        | OpKind::ScoreGradient { .. }
        | OpKind::ExpertGemm { .. }
        | OpKind::Elementwise { .. }
        | OpKind::Model { .. } => kernels(program, op, model, &mut known.kernels),
    }
}

/// Operations made of kernels: their times one after the other, on every rank that differs.
fn kernels(
    program: &Program,
    op: &Op,
    model: &dyn CostModel,
    known: &mut BTreeMap<Work, Estimate>,
) -> PricedOp {
    let mut on_rank = |rank: usize| {
        let work = op.kind.work(op.pass, rank, program.dtype);
        let start = Estimate::new(Time::ZERO, Provenance::Measured);
        let price = |work: &Work| *known.entry(*work).or_insert_with(|| model.kernel(work));
        let total = work.iter().map(price).fold(start, Estimate::then);
        (total, model.host_launch().times(work.len() as u64))
    };
    let resource = if op.multiplies_matrices(program.dtype) {
        Resource::Gemm
    } else {
        Resource::Memory
    };
    if !differs_by_rank(&op.kind) {
        let (estimate, host) = on_rank(0);
        return PricedOp {
            alone: PerRank::Same(estimate.time),
            host,
            resource,
            provenance: estimate.provenance,
        };
    }
    let mut times = Vec::with_capacity(program.world_size);
    let (mut longest, mut provenance) = (Time::ZERO, Provenance::Measured);
    for rank in 0..program.world_size {
        let (estimate, host) = on_rank(rank);
        times.push(estimate.time);
        longest = longest.max(host);
        provenance = provenance.worse(estimate.provenance);
    }
    PricedOp {
        alone: PerRank::Each(times),
        host: longest,
        resource,
        provenance,
    }
}

fn differs_by_rank(kind: &OpKind) -> bool {
    match kind {
        OpKind::Encode { copies, slots, .. }
        | OpKind::Decode { copies, slots, .. }
        | OpKind::ScoreGradient { copies, slots, .. } => !copies.is_same() || !slots.is_same(),
        OpKind::ExpertGemm {
            rows: ExpertRows::Grouped { .. },
            ..
        } => true,
        OpKind::Elementwise { elements, .. } => !elements.is_same(),
        OpKind::Gate { .. }
        | OpKind::CapacitySync
        | OpKind::Exchange { .. }
        | OpKind::ExpertGemm {
            rows: ExpertRows::Padded { .. },
            ..
        }
        | OpKind::AllGather { .. }
        | OpKind::ReduceScatter { .. }
        | OpKind::AllReduce { .. }
        | OpKind::Model { .. } => false,
    }
}
