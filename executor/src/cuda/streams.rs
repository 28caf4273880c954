//! Enqueues a step: every rank has a compute and a communication stream, events carry the program's dependencies.
//!
//! A collective meets in the middle: the members' streams record that they have come, a stream of the group's
//! first member waits for all of them, and everybody waits for that one; the same again when they leave, since what was
//! sent may be overwritten only when all have it. The host issues operations in program order, so an event is
//! always recorded before it is waited for.

use super::device::{Device, refused};
use super::memory::{Extra, Memory};
use super::plan::{Planned, Step};
use crate::ExecError;
use crate::assign::order;
use crate::backend::Job;
use crate::number::from_bytes;
use cudarc::driver::{CudaEvent, CudaStream};
use moeplan_sim::ir::{Op, OpId, OpKind, Scope, Span, Stream, Timeline};
use moeplan_sim::spec::DType;
use moeplan_sim::units::Time;
use std::sync::Arc;

/// Streams of one rank.
pub(super) struct Lane {
    compute: Arc<CudaStream>,
    communication: Arc<CudaStream>,
    /// Where groups meet that this rank is the first member of.
    meeting: Arc<CudaStream>,
}

impl Lane {
    /// Streams of a rank; with `apart` given, the one stream that all ranks share.
    pub(super) fn new(device: &Device, apart: Option<&Arc<CudaStream>>) -> Result<Lane, ExecError> {
        let stream = || apart.map_or_else(|| device.stream(), |shared| Ok(shared.clone()));
        Ok(Lane {
            compute: stream()?,
            communication: stream()?,
            meeting: stream()?,
        })
    }

    fn of(&self, stream: Stream) -> &Arc<CudaStream> {
        match stream {
            Stream::Compute => &self.compute,
            Stream::Communication => &self.communication,
        }
    }
}

struct Play<'a> {
    device: &'a Device,
    job: &'a Job<'a>,
    memory: &'a Memory,
    lanes: &'a [Lane],
    /// By operation and rank, as far as issued.
    marks: Vec<Vec<Marks>>,
}

/// Events around one operation of a rank.
struct Marks {
    start: CudaEvent,
    /// Its own work is done; a collective then waits for the other members.
    done: CudaEvent,
    end: CudaEvent,
}

/// What the events say.
pub(super) struct Times {
    /// When every operation ran on every rank.
    pub(super) timeline: Timeline,
    /// From start to done, by operation and rank.
    pub(super) busy: Vec<Vec<Time>>,
}

/// Enqueues everything, waits, and reads the times.
pub(super) fn play(
    device: &Device,
    job: &Job<'_>,
    memory: &Memory,
    lanes: &[Lane],
    planned: &Planned,
) -> Result<Times, ExecError> {
    let (world, ops) = (job.program.world_size, job.program.ops.len());
    let origin = device.event()?;
    let mut play = Play {
        device,
        job,
        memory,
        lanes,
        marks: Vec::with_capacity(ops),
    };
    play.record(&origin, &lanes[0].compute)?;
    for lane in lanes {
        for stream in [&lane.compute, &lane.communication] {
            play.wait(stream, &origin)?;
        }
    }
    for (id, op) in job.program.iter() {
        let steps = &planned.steps[id.index()];
        let marks = match op.kind.scope(&job.program.traffic) {
            None => (0..world)
                .map(|rank| play.alone(rank, op, &steps[rank]))
                .collect(),
            Some(scope) => play.together(scope, op, steps),
        };
        play.marks.push(marks?);
        if matches!(op.kind, OpKind::CapacitySync) {
            play.agree(op)?;
        }
    }
    device.synchronize()?;
    let since = |event: &CudaEvent| {
        let milliseconds = origin
            .elapsed_ms(event)
            .map_err(|error| refused("reading a time", error))?;
        Ok(Time::from_secs_f64(f64::from(milliseconds) * 1e-3))
    };
    let mut spans = Vec::with_capacity(world * ops);
    for rank in 0..world {
        for marks in play.marks.iter().map(|ranks| &ranks[rank]) {
            spans.push(Span {
                start: since(&marks.start)?,
                end: since(&marks.end)?,
            });
        }
    }
    let busy = |marks: &Marks| Ok(since(&marks.done)?.saturating_sub(since(&marks.start)?));
    let busy = play
        .marks
        .iter()
        .map(|ranks| ranks.iter().map(busy).collect());
    let busy = busy.collect::<Result<Vec<Vec<Time>>, ExecError>>()?;
    Ok(Times {
        timeline: Timeline::new(world, ops, spans),
        busy,
    })
}

impl Play<'_> {
    fn record(&self, event: &CudaEvent, stream: &CudaStream) -> Result<(), ExecError> {
        event
            .record(stream)
            .map_err(|error| refused("recording an event", error))
    }

    fn wait(&self, stream: &CudaStream, event: &CudaEvent) -> Result<(), ExecError> {
        stream
            .wait(event)
            .map_err(|error| refused("waiting for an event", error))
    }

    /// A new event, recorded.
    fn mark(&self, stream: &CudaStream) -> Result<CudaEvent, ExecError> {
        let event = self.device.event()?;
        self.record(&event, stream)?;
        Ok(event)
    }

    /// Waits for what `op` comes after, as far as it is on another stream.
    fn await_others(&self, rank: usize, op: &Op) -> Result<(), ExecError> {
        let stream = self.lanes[rank].of(op.stream);
        let others = op
            .after
            .iter()
            .filter(|&&OpId(id)| self.job.program.ops[id as usize].stream != op.stream);
        for before in others {
            self.wait(stream, &self.marks[before.index()][rank].end)?;
        }
        Ok(())
    }

    fn alone(&self, rank: usize, op: &Op, steps: &[Step]) -> Result<Marks, ExecError> {
        let stream = self.lanes[rank].of(op.stream);
        self.await_others(rank, op)?;
        let start = self.mark(stream)?;
        self.enqueue(stream, steps)?;
        Ok(Marks {
            start,
            done: self.mark(stream)?,
            end: self.mark(stream)?,
        })
    }

    fn together(
        &self,
        scope: Scope,
        op: &Op,
        steps: &[Vec<Step>],
    ) -> Result<Vec<Marks>, ExecError> {
        let stream = |rank: usize| self.lanes[rank].of(op.stream);
        for rank in 0..steps.len() {
            self.await_others(rank, op)?;
        }
        self.meet(scope, op.stream)?;
        let mut halves = Vec::with_capacity(steps.len());
        for (rank, steps) in steps.iter().enumerate() {
            let start = self.mark(stream(rank))?;
            self.enqueue(stream(rank), steps)?;
            halves.push((start, self.mark(stream(rank))?));
        }
        self.meet(scope, op.stream)?;
        let halves = halves.into_iter().enumerate();
        halves
            .map(|(rank, (start, done))| {
                Ok(Marks {
                    start,
                    done,
                    end: self.mark(stream(rank))?,
                })
            })
            .collect()
    }

    /// Lets the streams of every group wait for each other.
    fn meet(&self, scope: Scope, stream: Stream) -> Result<(), ExecError> {
        let world = self.job.program.world_size;
        for first in (0..world).filter(|&rank| scope.index_in_group(rank) == 0) {
            let group = scope.group_of(first);
            let members = || (0..world).filter(move |&rank| scope.group_of(rank) == group);
            let meeting = &self.lanes[first].meeting;
            for rank in members() {
                let come = self.mark(self.lanes[rank].of(stream))?;
                self.wait(meeting, &come)?;
            }
            let all = self.mark(meeting)?;
            for rank in members() {
                self.wait(self.lanes[rank].of(stream), &all)?;
            }
        }
        Ok(())
    }

    fn enqueue(&self, stream: &Arc<CudaStream>, steps: &[Step]) -> Result<(), ExecError> {
        for step in steps {
            match step {
                Step::Launch(launch) => self.device.launch(stream, launch)?,
                Step::Zero { bytes: 0, .. } | Step::Copy { bytes: 0, .. } => {}
                Step::Zero { at, bytes } => self.device.zero(stream, *at, *bytes)?,
                Step::Copy { to, from, bytes } => self.device.copy(stream, *to, *from, *bytes)?,
                Step::Multiply {
                    products,
                    precision,
                    fallback,
                } => match &self.device.blas {
                    Some(blas) => blas.multiply(stream, products, *precision)?,
                    None => self.device.launch(stream, fallback)?,
                },
                Step::Prioritize { scores, order } => self.prioritize(stream, *scores, *order)?,
            }
        }
        Ok(())
    }

    /// Sorts the tokens by their best score on the host: the stream waits for it.
    fn prioritize(&self, stream: &CudaStream, scores: u64, to: u64) -> Result<(), ExecError> {
        let geometry = &self.job.lowered.geometry;
        let scores =
            self.device
                .download(stream, scores, geometry.tokens * geometry.experts * 4)?;
        let scores = from_bytes(DType::Fp32, &scores);
        let rows = scores.chunks_exact(geometry.experts);
        let best: Vec<f32> = rows
            .map(|row| row.iter().copied().fold(0.0, f32::max))
            .collect();
        let order: Vec<u8> = order(&best, true)
            .iter()
            .flat_map(|token| token.to_ne_bytes())
            .collect();
        self.device.upload(to, &order)
    }

    /// The host reads every rank's counts and holds the largest against the capacity the step was compiled for.
    fn agree(&self, op: &Op) -> Result<(), ExecError> {
        let mut largest = 0;
        for (rank, lane) in self.lanes.iter().enumerate() {
            let Some((totals, bytes)) = self.memory.known(self.device, rank, Extra::Totals) else {
                return Err(ExecError::Disagrees(
                    "a capacity is agreed on before the gate".into(),
                ));
            };
            let counts = self.device.download(lane.of(op.stream), totals, bytes)?;
            largest = words(&counts).into_iter().fold(largest, u32::max);
        }
        let limit = self.job.lowered.geometry.limit as u64;
        if limit != u64::MAX && limit > u64::from(largest).max(1) {
            return Err(ExecError::Disagrees(format!(
                "the ranks agreed on {largest} slots an expert, the program has {limit}"
            )));
        }
        Ok(())
    }
}

/// Bytes of the device as numbers.
pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| u32::from_ne_bytes(*word))
        .collect()
}
