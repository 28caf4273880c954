//! Enqueues a step: every rank has a compute and a communication stream, events carry the program's dependencies.
//!
//! A collective meets in the middle: the members' streams record that they have come, a stream of the group's
//! first member waits for all of them, and everybody waits for that one; the same again when they leave, since what was
//! sent may be overwritten only when all have it. The host issues operations in program order, so an event is
//! always recorded before it is waited for.
//!
//! Between GPUs, events order streams as they do on one; times are told from an origin of each GPU's own, which its
//! streams reach when that of the first GPU has passed.

use super::device::{Device, mark, refused};
use super::gpus::Dealt;
use super::memory::{Extra, Memory};
use super::nccl::{End, Message};
use super::plan::{Plan, Planned, Step};
use super::wires::Wires;
use crate::ExecError;
use crate::assign::order;
use crate::backend::Job;
use crate::number::from_bytes;
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream};
use moeplan_sim::ir::{Op, OpId, OpKind, Scope, Span, Stream, Timeline};
use moeplan_sim::spec::DType;
use moeplan_sim::units::Time;
use std::sync::Arc;

/// Streams of one rank.
#[derive(Clone)]
pub(super) struct Lane {
    compute: Arc<CudaStream>,
    communication: Arc<CudaStream>,
    /// Where groups meet that this rank is the first member of.
    meeting: Arc<CudaStream>,
    /// Of cuBLAS on the compute stream.
    workspace: Option<Arc<CudaSlice<u8>>>,
}

impl Lane {
    /// Streams of every rank; where they run `apart`, the one stream that all share.
    ///
    /// # Errors
    /// Ranks apart on several GPUs: messages between them are timed at both ends at once.
    pub(super) fn of_ranks(dealt: Dealt<'_>, apart: bool) -> Result<Vec<Lane>, ExecError> {
        if apart && dealt.devices() > 1 {
            let expected = "1 where ranks run one after the other";
            return Err(ExecError::input("devices", expected, dealt.devices()));
        }
        let workspace = |rank| Ok::<_, ExecError>(dealt.of(rank).workspace(rank)?.map(Arc::new));
        if apart {
            let stream = dealt.of(0).stream()?;
            let shared = Lane {
                compute: stream.clone(),
                communication: stream.clone(),
                meeting: stream,
                workspace: workspace(0)?,
            };
            return Ok(vec![shared; dealt.world]);
        }
        let lane = |rank| {
            let stream = || dealt.of(rank).stream();
            Ok(Lane {
                compute: stream()?,
                communication: stream()?,
                meeting: stream()?,
                workspace: workspace(rank)?,
            })
        };
        (0..dealt.world).map(lane).collect()
    }

    fn of(&self, stream: Stream) -> &Arc<CudaStream> {
        match stream {
            Stream::Compute => &self.compute,
            Stream::Communication => &self.communication,
        }
    }
}

struct Play<'a> {
    dealt: Dealt<'a>,
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
    dealt: Dealt<'_>,
    job: &Job<'_>,
    memory: &Memory,
    lanes: &[Lane],
    plan: &Plan,
) -> Result<Times, ExecError> {
    let (world, ops) = (job.program.world_size, job.program.ops.len());
    let mut play = Play {
        dealt,
        job,
        memory,
        lanes,
        marks: Vec::with_capacity(ops),
    };
    let mut origins: Vec<CudaEvent> = Vec::new();
    for rank in dealt.first_ranks() {
        if let Some(first) = origins.first() {
            play.wait(&lanes[rank].compute, first)?;
        }
        origins.push(mark(&lanes[rank].compute)?);
    }
    for (rank, lane) in lanes.iter().enumerate() {
        for stream in [&lane.compute, &lane.communication] {
            play.wait(stream, &origins[dealt.device_of(rank)])?;
        }
    }
    for (id, op) in job.program.iter() {
        let planned = &plan.ops[id.index()];
        let marks = match op.kind.scope(&job.program.traffic) {
            None => (0..world)
                .map(|rank| play.alone(rank, op, &planned.steps[rank]))
                .collect(),
            Some(scope) => play.together(scope, op, planned),
        };
        play.marks.push(marks?);
        if matches!(op.kind, OpKind::CapacitySync) {
            play.agree(op)?;
        }
    }
    dealt.synchronize()?;
    let since = |rank: usize, event: &CudaEvent| {
        let milliseconds = origins[dealt.device_of(rank)]
            .elapsed_ms(event)
            .map_err(|error| refused("reading a time", error))?;
        Ok(Time::from_secs_f64(f64::from(milliseconds) * 1e-3))
    };
    let mut spans = Vec::with_capacity(world * ops);
    for rank in 0..world {
        for marks in play.marks.iter().map(|ranks| &ranks[rank]) {
            spans.push(Span {
                start: since(rank, &marks.start)?,
                end: since(rank, &marks.end)?,
            });
        }
    }
    let busy = |(rank, marks): (usize, &Marks)| {
        Ok(since(rank, &marks.done)?.saturating_sub(since(rank, &marks.start)?))
    };
    let busy = play
        .marks
        .iter()
        .map(|ranks| ranks.iter().enumerate().map(busy).collect());
    let busy = busy.collect::<Result<Vec<Vec<Time>>, ExecError>>()?;
    Ok(Times {
        timeline: Timeline::new(world, ops, spans),
        busy,
    })
}

impl Play<'_> {
    fn wait(&self, stream: &CudaStream, event: &CudaEvent) -> Result<(), ExecError> {
        stream
            .wait(event)
            .map_err(|error| refused("waiting for an event", error))
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
        let start = mark(stream)?;
        self.enqueue(rank, stream, steps)?;
        Ok(Marks {
            start,
            done: mark(stream)?,
            end: mark(stream)?,
        })
    }

    fn together(&self, scope: Scope, op: &Op, planned: &Planned) -> Result<Vec<Marks>, ExecError> {
        let stream = |rank: usize| self.lanes[rank].of(op.stream);
        for rank in 0..planned.steps.len() {
            self.await_others(rank, op)?;
        }
        self.meet(scope, op.stream)?;
        let sent = match planned.wires.is_used() {
            true => Some(self.send(op, &planned.wires)?),
            false => None,
        };
        let mut sent = sent.into_iter().flatten();
        let mut halves = Vec::with_capacity(planned.steps.len());
        for (rank, steps) in planned.steps.iter().enumerate() {
            let start = sent.next().map_or_else(|| mark(stream(rank)), Ok)?;
            self.enqueue(rank, stream(rank), steps)?;
            halves.push((start, mark(stream(rank))?));
        }
        self.meet(scope, op.stream)?;
        let halves = halves.into_iter().enumerate();
        halves
            .map(|(rank, (start, done))| {
                Ok(Marks {
                    start,
                    done,
                    end: mark(stream(rank))?,
                })
            })
            .collect()
    }

    /// Sends what goes between GPUs; where every rank started.
    fn send(&self, op: &Op, wires: &Wires) -> Result<Vec<CudaEvent>, ExecError> {
        let stream = |rank: usize| self.lanes[rank].of(op.stream);
        let mut starts = Vec::with_capacity(wires.packing.len());
        for (rank, packing) in wires.packing.iter().enumerate() {
            starts.push(mark(stream(rank))?);
            self.enqueue(rank, stream(rank), packing)?;
        }
        let end = |rank: usize, at: u64| End {
            device: self.dealt.device_of(rank),
            stream: stream(rank),
            at,
        };
        let messages = wires.parcels.iter().map(|parcel| Message {
            from: end(parcel.sender, parcel.from),
            to: end(parcel.receiver, parcel.to),
            bytes: parcel.bytes,
        });
        let messages: Vec<Message<'_>> = messages.collect();
        if let Some(nccl) = self.dealt.nccl() {
            nccl.exchange(&messages)?;
        }
        Ok(starts)
    }

    /// Lets the streams of every group wait for each other.
    fn meet(&self, scope: Scope, stream: Stream) -> Result<(), ExecError> {
        let world = self.job.program.world_size;
        for first in (0..world).filter(|&rank| scope.index_in_group(rank) == 0) {
            let group = scope.group_of(first);
            let members = || (0..world).filter(move |&rank| scope.group_of(rank) == group);
            let meeting = &self.lanes[first].meeting;
            for rank in members() {
                let come = mark(self.lanes[rank].of(stream))?;
                self.wait(meeting, &come)?;
            }
            let all = mark(meeting)?;
            for rank in members() {
                self.wait(self.lanes[rank].of(stream), &all)?;
            }
        }
        Ok(())
    }

    fn enqueue(
        &self,
        rank: usize,
        stream: &Arc<CudaStream>,
        steps: &[Step],
    ) -> Result<(), ExecError> {
        let device = self.dealt.of(rank);
        for step in steps {
            match step {
                Step::Launch(launch) => device.launch(stream, launch)?,
                Step::Zero { bytes: 0, .. } | Step::Copy { bytes: 0, .. } => {}
                Step::Zero { at, bytes } => device.zero(stream, *at, *bytes)?,
                Step::Copy { to, from, bytes } => device.copy(stream, *to, *from, *bytes)?,
                Step::Multiply {
                    products,
                    precision,
                    fallback,
                } => {
                    let workspace = self.lanes[rank].workspace.as_deref();
                    device.multiply(stream, workspace, products, *precision, fallback)?;
                }
                Step::Prioritize { scores, order } => {
                    self.prioritize(device, stream, *scores, *order)?;
                }
            }
        }
        Ok(())
    }

    /// Sorts the tokens by their best score on the host: the stream waits for it.
    fn prioritize(
        &self,
        device: &Device,
        stream: &CudaStream,
        scores: u64,
        to: u64,
    ) -> Result<(), ExecError> {
        let geometry = &self.job.lowered.geometry;
        let scores = device.download(stream, scores, geometry.tokens * geometry.experts * 4)?;
        let scores = from_bytes(DType::Fp32, &scores);
        let rows = scores.chunks_exact(geometry.experts);
        let best: Vec<f32> = rows
            .map(|row| row.iter().copied().fold(0.0, f32::max))
            .collect();
        let order: Vec<u8> = order(&best, true)
            .iter()
            .flat_map(|token| token.to_ne_bytes())
            .collect();
        device.upload(to, &order)
    }

    /// The host reads every rank's counts and holds the largest against the capacity the step was compiled for.
    fn agree(&self, op: &Op) -> Result<(), ExecError> {
        let mut largest = 0;
        for (rank, lane) in self.lanes.iter().enumerate() {
            let Some(totals) = self.memory.known(rank, Extra::Totals) else {
                return Err(ExecError::Disagrees(
                    "a capacity is agreed on before the gate".into(),
                ));
            };
            let device = self.dealt.of(rank);
            let counts = device.download(lane.of(op.stream), totals.at, totals.bytes)?;
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
