//! What no run of a program can beat, without playing it.
//!
//! A rank has two in-order streams and a host that issues in program order. An operation never takes
//! less than its time alone, so the step takes at least
//!
//! - the sum of the kernels on any one rank's compute stream,
//! - the sum of what communication streams carry. An exchange of the whole world starts when all
//!   ranks have ended the one before, so its makespan counts in full, whichever rank is the last;
//!   an operation that takes all ranks the same time counts in full as well, and all else as nothing,
//! - the host's time to issue all operations but the last.
//!
//! Kernels and even collectives are priced exactly as the engine's are, by the same cost model; uneven
//! exchanges, whose flows are what makes a simulation slow, by [`CostModel::exchange_floor`].

use crate::cost::price::collective;
use crate::cost::{CostModel, Exchange};
use crate::ir::{ExpertRows, Op, OpKind, Program, Scope, Stream, Traffic, TrafficId, Work};
use crate::units::Time;
use std::collections::BTreeMap;

/// What one rank has to do at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// Kernels of its compute stream.
    compute: Time,
    /// What communication streams carry.
    communication: Time,
    /// Its host, which issues all operations.
    host: Time,
    /// Of which the last.
    last_issue: Time,
}

impl Floor {
    /// What `program` asks of its busiest rank.
    pub fn of(program: &Program, model: &dyn CostModel) -> Floor {
        Floor::on(busiest_rank(program).unwrap_or(0), program, model)
    }

    /// What `program` asks of `rank`. GPUs only: models that price whole operations at once have no such parts.
    pub fn on(rank: usize, program: &Program, model: &dyn CostModel) -> Floor {
        let mut kernels = BTreeMap::new();
        let mut exchanges = BTreeMap::new();
        let mut floor = Floor::default();
        for op in &program.ops {
            let (alone, issue) = floor_of(program, op, rank, model, &mut kernels, &mut exchanges);
            match op.stream {
                Stream::Compute => floor.compute += alone,
                Stream::Communication => floor.communication += alone,
            }
            floor.host += issue;
            floor.last_issue = issue;
        }
        floor
    }

    /// This, and then `next` so many times.
    #[must_use]
    pub fn then(self, next: Floor, times: u64) -> Floor {
        Floor {
            compute: self.compute + next.compute.times(times),
            communication: self.communication + next.communication.times(times),
            host: self.host + next.host.times(times),
            last_issue: next.last_issue,
        }
    }

    /// A time that no run is shorter than.
    pub fn step_time(self) -> Time {
        let issued = self.host - self.last_issue;
        self.compute.max(self.communication).max(issued)
    }
}

/// The least time of `op` on `rank`, and of its host.
fn floor_of(
    program: &Program,
    op: &Op,
    rank: usize,
    model: &dyn CostModel,
    kernels: &mut BTreeMap<Work, Time>,
    exchanges: &mut BTreeMap<TrafficId, Time>,
) -> (Time, Time) {
    if let Some(estimate) = collective(program, op, model) {
        return (estimate.time, model.host_launch());
    }
    if let (OpKind::Exchange { traffic, .. }, Some(exchange)) =
        (&op.kind, Exchange::of(program, op))
    {
        return match exchange.traffic {
            Traffic::Uniform { .. } => {
                let price = model.exchange(&exchange);
                (*price.alone.get(rank), price.host)
            }
            // Groups do not wait for each other.
            Traffic::Matrix {
                scope: Scope::Strided { .. },
                ..
            } => (Time::ZERO, Time::ZERO),
            Traffic::Matrix { .. } => {
                let floor = *exchanges
                    .entry(*traffic)
                    .or_insert_with(|| model.exchange_floor(&exchange));
                (floor, Time::ZERO)
            }
        };
    }
    if let OpKind::Elementwise { elements, .. } = &op.kind
        && op.stream == Stream::Communication
        && !elements.is_same()
    {
        return (Time::ZERO, Time::ZERO);
    }
    let work = op.kind.work(op.pass, rank, program.dtype);
    let time = |work: &Work| {
        *kernels
            .entry(*work)
            .or_insert_with(|| model.kernel(work).time)
    };
    let alone = work.iter().map(time).sum();
    (alone, model.host_launch().times(work.len() as u64))
}

/// The rank whose experts multiply most rows, if they differ; any rank's bound holds, this one's is the tightest.
pub(super) fn busiest_rank(program: &Program) -> Option<usize> {
    let uneven = program.ops.iter().find_map(|op| match &op.kind {
        OpKind::ExpertGemm {
            rows: rows @ ExpertRows::Grouped { .. },
            ..
        } => Some(rows),
        OpKind::ExpertGemm { .. }
        | OpKind::Gate { .. }
        | OpKind::CapacitySync
        | OpKind::Encode { .. }
        | OpKind::Decode { .. }
        | OpKind::ScoreGradient { .. }
        | OpKind::Elementwise { .. }
        | OpKind::Exchange { .. }
        | OpKind::AllGather { .. }
        | OpKind::ReduceScatter { .. }
        | OpKind::AllReduce { .. }
        | OpKind::Model { .. } => None,
    });
    uneven.and_then(|rows| (0..program.world_size).max_by_key(|&rank| rows.total(rank)))
}
