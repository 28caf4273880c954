//! The most memory that a rank's buffers may take at once, whatever its two streams do.

use super::{BufferId, Lifetime, Op, Program, Stream};

/// Operations of both streams of a rank, by their place in each.
struct Streams {
    /// By operation: its stream and its place in it.
    place: Vec<(usize, usize)>,
    /// By stream and count: operations of the other stream that have ended when so many of this one have.
    needs: [Vec<usize>; 2],
}

/// Which uses of a buffer keep its bytes, by stream: the first and one past the last.
#[derive(Clone, Copy)]
struct Use {
    bytes: u64,
    first: [usize; 2],
    end: [usize; 2],
}

impl Program {
    /// Bytes of the buffers of `rank` that may be alive at the same moment, at the worst one that streams and dependencies
    /// allow: what an allocator needs that lays buffers out before the step, when nobody knows how far one stream
    /// gets ahead of the other. Never less than [`Program::peak_memory`] says of the same buffers.
    ///
    /// `results` are read after the step. Buffers of neighbouring layers are counted, persistent ones that no operation
    /// touches (the optimizer's state of a layer alone) are not.
    pub fn most_at_once(&self, rank: usize, results: &[BufferId]) -> u64 {
        let streams = Streams::new(self);
        let (always, uses) = self.uses(rank, results, &streams);
        let [compute, communication] = [0, 1].map(|stream| streams.needs[stream].len() - 1);
        let transient: u64 = uses.iter().map(|one| one.bytes).sum();
        let mut most = 0;
        for j in 0..=communication {
            // Not begun, with j or j + 1 operations of the communication stream begun, by those of the other stream.
            let not_begun = [j, j + 1].map(|begun| {
                let later = uses.iter().filter(|one| one.first[1] >= begun);
                let mut bytes = vec![0; compute + 2];
                later.for_each(|one| bytes[one.first[0].min(compute + 1)] += one.bytes);
                // From the end: what begins there or later.
                (0..=compute).rev().for_each(|i| bytes[i] += bytes[i + 1]);
                bytes
            });
            let mut ended = vec![0; compute + 2];
            let over = uses.iter().filter(|one| one.end[1] <= j);
            over.for_each(|one| ended[one.end[0].min(compute + 1)] += one.bytes);
            (0..=compute).for_each(|i| ended[i + 1] += ended[i]);
            for (i, ended) in ended[..=compute].iter().enumerate() {
                if !streams.may_end(i, j) {
                    continue;
                }
                let begun = i + usize::from(streams.may_run(0, i, j));
                let running = usize::from(streams.may_run(1, j, i));
                most = most.max(transient - not_begun[running][begun] - ended);
            }
        }
        always + most
    }

    /// Bytes that are there all along, and what keeps the others.
    fn uses(&self, rank: usize, results: &[BufferId], streams: &Streams) -> (u64, Vec<Use>) {
        let mut uses: Vec<Option<Use>> = vec![None; self.buffers.len()];
        for (op, &(stream, place)) in self.ops.iter().zip(&streams.place) {
            for buffer in op.reads.iter().chain(&op.writes) {
                let one = uses[buffer.0 as usize].get_or_insert(Use {
                    bytes: *self.buffers[buffer.0 as usize].bytes.get(rank),
                    first: [usize::MAX; 2],
                    end: [0; 2],
                });
                one.first[stream] = one.first[stream].min(place);
                one.end[stream] = one.end[stream].max(place + 1);
            }
        }
        for result in results {
            if let Some(one) = &mut uses[result.0 as usize] {
                one.end = [usize::MAX; 2];
            }
        }
        let used = self.buffers.iter().zip(uses);
        let used = used.filter_map(|(buffer, one)| Some((buffer.lifetime, one?)));
        let (transient, always): (Vec<_>, Vec<_>) =
            used.partition(|(lifetime, _)| *lifetime == Lifetime::Transient);
        let always = always.iter().map(|(_, one)| one.bytes).sum();
        (always, transient.into_iter().map(|(_, one)| one).collect())
    }
}

impl Streams {
    fn new(program: &Program) -> Streams {
        let mut place = Vec::with_capacity(program.ops.len());
        let mut needs = [vec![0], vec![0]];
        for Op { stream, after, .. } in &program.ops {
            let own = usize::from(*stream == Stream::Communication);
            let before = needs[own].len() - 1;
            let others = after.iter().map(|before| place[before.index()]);
            let others = others.filter(|(stream, _)| *stream != own);
            let needed = others.map(|(_, place)| place + 1).max().unwrap_or(0);
            let needed = needed.max(needs[own][before]);
            place.push((own, before));
            needs[own].push(needed);
        }
        Streams { place, needs }
    }

    /// Whether just the first `i` operations of computation and `j` of communication can have ended.
    fn may_end(&self, i: usize, j: usize) -> bool {
        self.needs[0][i] <= j && self.needs[1][j] <= i
    }

    /// Whether operation `next` of `stream` can run when so many of the `other` stream have ended.
    fn may_run(&self, stream: usize, next: usize, other: usize) -> bool {
        let needed = self.needs[stream].get(next + 1);
        needed.is_some_and(|needed| *needed <= other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{OpKind, PerRank, ProgramBuilder};
    use crate::spec::DType;
    use proptest::prelude::*;

    /// An operation of a random program: whether it communicates, what it reads and what it writes.
    type Draw = (bool, Vec<u32>, Vec<u32>);

    fn program(draws: &[Draw], kinds: &[u8]) -> Program {
        let mut builder = ProgramBuilder::new(1, 1, DType::Fp32);
        let buffers: Vec<BufferId> = (0u64..)
            .zip(kinds)
            .map(|(index, kind)| match kind {
                0 => builder.persistent("p", 1 << index),
                1 => builder.external("e", PerRank::Same(1 << index)),
                _ => builder.buffer("t", PerRank::Same(1 << index)),
            })
            .collect();
        for (communicates, reads, writes) in draws {
            let stream = match communicates {
                true => Stream::Communication,
                false => Stream::Compute,
            };
            let of = |ids: &[u32]| -> Vec<BufferId> {
                ids.iter()
                    .map(|&id| buffers[id as usize % buffers.len()])
                    .collect()
            };
            builder.push(stream, OpKind::CapacitySync, &of(reads), &of(writes));
        }
        builder.finish()
    }

    /// Every set of ended operations that the order allows, and all that may run then.
    fn by_definition(program: &Program, results: &[BufferId]) -> u64 {
        let ops = &program.ops;
        let before = |index: usize| {
            let stream = move |other: &usize| ops[*other].stream == ops[index].stream;
            let last = (0..index).rev().find(stream);
            ops[index].after.iter().map(|op| op.index()).chain(last)
        };
        let mut most = 0;
        for ended in 0u32..1 << ops.len() {
            let has = |index: usize| ended >> index & 1 == 1;
            let ready = |index: usize| before(index).all(has);
            if !(0..ops.len()).filter(|&index| has(index)).all(ready) {
                continue;
            }
            let begun = |index: usize| has(index) || ready(index);
            let alive = program.buffers.iter().enumerate().filter(|(id, buffer)| {
                let id = BufferId(*id as u32);
                let touches =
                    |op: &&usize| ops[**op].reads.contains(&id) || ops[**op].writes.contains(&id);
                let all: Vec<usize> = (0..ops.len()).collect();
                let mut uses = all.iter().filter(touches).peekable();
                if uses.peek().is_none() {
                    return false;
                }
                let uses: Vec<usize> = uses.copied().collect();
                let over = uses.iter().all(|&op| has(op)) && !results.contains(&id);
                buffer.lifetime != Lifetime::Transient || uses.iter().any(|&op| begun(op)) && !over
            });
            most = most.max(alive.map(|(_, buffer)| buffer.bytes.get(0)).sum());
        }
        most
    }

    proptest! {
        #[test]
        fn it_is_the_worst_of_all_moments(
            draws in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(0u32..8, 0..3), prop::collection::vec(0u32..8, 0..3)),
                0..9,
            ),
            kinds in prop::collection::vec(0u8..6, 1..8),
            result in 0u32..8,
        ) {
            let program = program(&draws, &kinds);
            let results = [BufferId(result % kinds.len() as u32)];
            prop_assert_eq!(program.most_at_once(0, &results), by_definition(&program, &results));
        }
    }
}
