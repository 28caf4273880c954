//! The chain of operations that decides how long a step takes.

use super::{Op, OpId, Program, Stream, Timeline};
use crate::units::Time;

/// One operation of the critical path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathOp {
    /// The rank whose operation it is.
    pub rank: usize,
    /// The operation.
    pub op: OpId,
    /// Time between the end of what it followed and its start, in which nothing on the path ran:
    /// the host had not issued it yet.
    pub waited: Time,
    /// From its start to its end.
    pub ran: Time,
}

/// The critical path of `timeline`, first operation first: from the operation that ends last on the
/// slowest rank back to whatever ended latest of all it had to wait for. That is the operation
/// before it on its stream, its predecessors, a kernel of the other stream that filled the GPU when
/// it was ready and, for a collective, those of every participant.
///
/// The parts add up: the sum of `waited` and `ran` is the time of the step.
pub fn critical_path(program: &Program, timeline: &Timeline) -> Vec<PathOp> {
    let before_on_stream = before_on_stream(program);
    let end = |rank: usize, op: OpId| timeline.span(rank, op).end;
    let mut rank = timeline.slowest_rank();
    let mut next = program
        .iter()
        .map(|(id, _)| id)
        .max_by_key(|&id| end(rank, id));
    let mut path = Vec::new();
    while let Some(op) = next {
        let span = timeline.span(rank, op);
        let participants = participants(program, timeline, op, rank);
        let waits_for = participants.flat_map(|rank| {
            let after = program.ops[op.index()].after.iter().copied();
            let before = before_on_stream[op.index()];
            let (_, kernel) = ready(program, timeline, &before_on_stream, rank, op);
            after.chain(before).chain(kernel).map(move |op| (rank, op))
        });
        // Of equals the first: the lowest rank.
        let latest = waits_for
            .filter(|&(rank, op)| end(rank, op) <= span.start)
            .fold(None, |best: Option<(usize, OpId)>, found| match best {
                Some(best) if end(best.0, best.1) >= end(found.0, found.1) => Some(best),
                Some(_) | None => Some(found),
            });
        let ready = latest.map_or(Time::ZERO, |(rank, op)| end(rank, op));
        path.push(PathOp {
            rank,
            op,
            waited: span.start.saturating_sub(ready),
            ran: span.end.saturating_sub(span.start),
        });
        next = latest.map(|(from, op)| {
            rank = from;
            op
        });
    }
    path.reverse();
    path
}

/// The operation before each on its stream.
fn before_on_stream(program: &Program) -> Vec<Option<OpId>> {
    let mut last = [None, None];
    let mut before = Vec::with_capacity(program.ops.len());
    for (id, op) in program.iter() {
        let stream = match op.stream {
            Stream::Compute => 0,
            Stream::Communication => 1,
        };
        before.push(last[stream].replace(id));
    }
    before
}

/// When `rank` had done everything that `op` needs, and the kernel of the other stream that filled its
/// GPU then, if any.
fn ready(
    program: &Program,
    timeline: &Timeline,
    before_on_stream: &[Option<OpId>],
    rank: usize,
    op: OpId,
) -> (Time, Option<OpId>) {
    let Op { after, stream, .. } = &program.ops[op.index()];
    let needed = after.iter().copied().chain(before_on_stream[op.index()]);
    let ends = needed.map(|op| timeline.span(rank, op).end);
    let ready = ends.max().unwrap_or(Time::ZERO);
    let start = timeline.span(rank, op).start;
    let fills = |(id, other): &(OpId, &Op)| {
        let span = timeline.span(rank, *id);
        other.stream != *stream
            && other.kind.scope(&program.traffic).is_none()
            && span.start <= ready
            && ready < span.end
            && span.end <= start
    };
    (ready, program.iter().find(fills).map(|(id, _)| id))
}

/// The ranks that had to be there before `op` could start on `rank`: itself, or its group. Where one
/// rank was played for all, it is its own group.
fn participants(
    program: &Program,
    timeline: &Timeline,
    op: OpId,
    rank: usize,
) -> impl Iterator<Item = usize> {
    let scope = program.ops[op.index()].kind.scope(&program.traffic);
    let alone = timeline.rows() == 1 || scope.is_none();
    let ranks = if alone {
        rank..rank + 1
    } else {
        0..program.world_size
    };
    ranks.filter(move |&other| {
        other == rank || scope.is_some_and(|scope| scope.group_of(other) == scope.group_of(rank))
    })
}

/// How long each rank waited for others at the start of collectives, by rank: from the moment it had
/// done everything it needed and had room on its GPU to the moment the last participant had. One entry where one rank was
/// played for all, which then never waits.
pub fn waiting_for_others(program: &Program, timeline: &Timeline) -> Vec<Time> {
    let before_on_stream = before_on_stream(program);
    let collectives: Vec<OpId> = program
        .iter()
        .filter(|(_, op)| op.kind.scope(&program.traffic).is_some())
        .map(|(id, _)| id)
        .collect();
    let arrived = |rank: usize, op: OpId| {
        let (ready, kernel) = ready(program, timeline, &before_on_stream, rank, op);
        kernel.map_or(ready, |kernel| timeline.span(rank, kernel).end)
    };
    if timeline.rows() == 1 {
        return vec![Time::ZERO];
    }
    (0..timeline.rows())
        .map(|rank| {
            let waits = collectives.iter().map(|&op| {
                timeline
                    .span(rank, op)
                    .start
                    .saturating_sub(arrived(rank, op))
            });
            waits.sum()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Elementwise, Expert, OpKind, PerRank, ProgramBuilder, Scope, Span};
    use crate::spec::DType;

    /// Rank 0 computes 10 and rank 1 computes 30 ns, then both gather for 5.
    #[test]
    fn the_path_leads_through_the_rank_that_came_last() {
        let mut builder = ProgramBuilder::new(2, 2, DType::Fp16);
        let tensor = builder.buffer("tensor", PerRank::Same(2));
        let gathered = builder.buffer("gathered", PerRank::Same(4));
        let kernel = OpKind::Elementwise {
            what: Elementwise::Bias(Expert::Up),
            elements: PerRank::Same(1),
        };
        builder.push(Stream::Compute, kernel, &[], &[tensor]);
        let gather = OpKind::AllGather {
            scope: Scope::World,
            bytes: 4,
        };
        builder.push(Stream::Communication, gather, &[tensor], &[gathered]);
        let span = |start, end| Span {
            start: Time::from_ns(start),
            end: Time::from_ns(end),
        };
        let spans = vec![span(1, 11), span(31, 36), span(1, 31), span(31, 36)];
        let (program, timeline) = (builder.finish(), Timeline::new(2, 2, spans));
        let path = critical_path(&program, &timeline);
        let steps: Vec<(usize, u32)> = path.iter().map(|step| (step.rank, step.op.0)).collect();
        assert_eq!(steps, [(1, 0), (0, 1)]);
        let total: Time = path.iter().map(|step| step.waited + step.ran).sum();
        assert_eq!(total, timeline.step_time());
        let waits = waiting_for_others(&program, &timeline);
        assert_eq!(waits, [Time::from_ns(20), Time::ZERO]);
    }
}
