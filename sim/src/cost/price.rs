//! Prices every operation of a program.

use super::provenance::{Estimate, Provenance};
use super::{CostModel, Exchange};
use crate::engine::{PricedOp, Resource};
use crate::ir::{Elementwise, ExpertRows, Op, OpKind, PerRank, Program, TrafficId, Work};
use crate::units::Time;

/// Kernels a collective costs the host to launch.
const COLLECTIVE_LAUNCHES: u32 = 1;

/// Prices `program` operation by operation.
pub fn price(program: &Program, model: &dyn CostModel) -> Vec<PricedOp> {
    let mut exchanges: Vec<Option<(PerRank<Time>, Provenance)>> = vec![None; program.traffic.len()];
    program
        .ops
        .iter()
        .map(|op| price_op(program, op, model, &mut exchanges))
        .collect()
}

fn price_op(
    program: &Program,
    op: &Op,
    model: &dyn CostModel,
    exchanges: &mut [Option<(PerRank<Time>, Provenance)>],
) -> PricedOp {
    let collective = |alone, provenance, launches| PricedOp {
        alone,
        launches,
        resource: Resource::Collective,
        provenance,
    };
    let same = |estimate: Estimate| {
        collective(
            PerRank::Same(estimate.time),
            estimate.provenance,
            COLLECTIVE_LAUNCHES,
        )
    };
    match &op.kind {
        OpKind::Exchange {
            traffic,
            transport,
            first,
        } => {
            let TrafficId(index) = *traffic;
            // A matrix is used by one transport at one place in its All-to-All, so one price serves
            // every chunk that shares it.
            let (alone, provenance) = exchanges[index as usize]
                .get_or_insert_with(|| {
                    let exchange = Exchange {
                        traffic: program.traffic(*traffic),
                        transport: *transport,
                        first: *first,
                        world_size: program.world_size,
                        gpus_per_node: program.gpus_per_node,
                    };
                    let price = model.exchange(&exchange);
                    (price.alone, price.provenance)
                })
                .clone();
            collective(alone, provenance, COLLECTIVE_LAUNCHES)
        }
        OpKind::AllGather { scope, bytes } => same(model.gather(program, *scope, *bytes, false)),
        OpKind::ReduceScatter { scope, bytes } => same(model.gather(program, *scope, *bytes, true)),
        OpKind::CapacitySync => same(model.capacity_sync(program)),
        OpKind::Gate { .. }
        | OpKind::Encode { .. }
        | OpKind::Decode { .. }
        | OpKind::ScoreGradient { .. }
        | OpKind::ExpertGemm { .. }
        | OpKind::Elementwise { .. } => kernels(program, op, model),
    }
}

/// Operations made of kernels: their times one after the other, on every rank that differs.
fn kernels(program: &Program, op: &Op, model: &dyn CostModel) -> PricedOp {
    let on_rank = |rank: usize| {
        let work = op.kind.work(op.pass, rank, program.dtype);
        let start = Estimate::new(Time::ZERO, Provenance::Measured);
        let total = work
            .iter()
            .map(|work| model.kernel(work))
            .fold(start, Estimate::then);
        (total, work.len() as u32)
    };
    let resource = match &op.kind {
        OpKind::ExpertGemm { .. } => Resource::Gemm,
        OpKind::Elementwise { .. } => Resource::Memory,
        OpKind::Gate { .. }
        | OpKind::Encode { .. }
        | OpKind::Decode { .. }
        | OpKind::ScoreGradient { .. } => {
            let gemm = |work: &Work| matches!(work, Work::Gemm(_));
            if op.kind.work(op.pass, 0, program.dtype).iter().any(gemm) {
                Resource::Gemm
            } else {
                Resource::Memory
            }
        }
        OpKind::Exchange { .. }
        | OpKind::AllGather { .. }
        | OpKind::ReduceScatter { .. }
        | OpKind::CapacitySync => Resource::Collective,
    };
    if !differs_by_rank(&op.kind) {
        let (estimate, launches) = on_rank(0);
        return PricedOp {
            alone: PerRank::Same(estimate.time),
            launches,
            resource,
            provenance: estimate.provenance,
        };
    }
    let (mut times, mut most, mut provenance) = (
        Vec::with_capacity(program.world_size),
        0,
        Provenance::Measured,
    );
    for rank in 0..program.world_size {
        let (estimate, launches) = on_rank(rank);
        times.push(estimate.time);
        most = most.max(launches);
        provenance = provenance.worse(estimate.provenance);
    }
    PricedOp {
        alone: PerRank::Each(times),
        launches: most,
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
            rows: ExpertRows::Grouped(rows),
            ..
        } => !rows.is_same(),
        OpKind::Elementwise {
            what: Elementwise::StrideCopy,
            elements,
        }
        | OpKind::Elementwise { elements, .. } => !elements.is_same(),
        OpKind::Gate { .. }
        | OpKind::CapacitySync
        | OpKind::Exchange { .. }
        | OpKind::ExpertGemm {
            rows: ExpertRows::Padded { .. },
            ..
        }
        | OpKind::AllGather { .. }
        | OpKind::ReduceScatter { .. } => false,
    }
}
