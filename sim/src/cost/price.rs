//! Prices every operation of a program.

use super::exchange::peers;
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
    if let Some(estimate) = collective(program, op, model) {
        return PricedOp {
            alone: PerRank::Same(estimate.time),
            host: model.host_launch(),
            resource: match op.kind.scope(&program.traffic) {
                Some(scope) if peers(scope, program.world_size, program.gpus_per_node).1 == 0 => {
                    Resource::NvLink
                }
                _ => Resource::Nic,
            },
            provenance: estimate.provenance,
        };
    }
    let (OpKind::Exchange { traffic, .. }, Some(exchange)) = (&op.kind, Exchange::of(program, op))
    else {
        return kernels(program, op, model, &mut known.kernels);
    };
    let TrafficId(index) = *traffic;
    // A matrix is used by one transport at one place in its All-to-All, so one price serves
    // every chunk that shares it.
    let price = known.exchanges[index as usize].get_or_insert_with(|| model.exchange(&exchange));
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

/// What a collective takes that takes all ranks the same time; none for all other operations.
pub(crate) fn collective(program: &Program, op: &Op, model: &dyn CostModel) -> Option<Estimate> {
    Some(match &op.kind {
        OpKind::AllGather { scope, bytes } => model.gather(program, *scope, *bytes, false),
        OpKind::ReduceScatter { scope, bytes } => model.gather(program, *scope, *bytes, true),
        OpKind::AllReduce { scope, bytes } => model.all_reduce(program, *scope, *bytes),
        OpKind::CapacitySync => model.capacity_sync(program),
        OpKind::Exchange { .. }
        | OpKind::Gate { .. }
        | OpKind::Encode { .. }
        | OpKind::Decode { .. }
        | OpKind::ScoreGradient { .. }
        | OpKind::ExpertGemm { .. }
        | OpKind::Elementwise { .. }
        | OpKind::Model { .. } => return None,
    })
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
