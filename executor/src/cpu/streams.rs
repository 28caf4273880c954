//! Streams as threads: every stream in order, dependencies waited for, collectives met.

use super::{World, kernels};
use crate::ExecError;
use crate::task::Count;
use cpu_time::ThreadTime;
use moeplan_sim::ir::{BufferId, OpId, Span, Stream, Timeline};
use moeplan_sim::units::Time;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Operations of a rank that are done.
struct Progress {
    done: Mutex<Vec<bool>>,
    changed: Condvar,
}

/// Ranks that have come to a collective, and left it.
struct Meeting {
    members: usize,
    state: Mutex<Met>,
    changed: Condvar,
}

#[derive(Default)]
struct Met {
    arrived: usize,
    left: usize,
    /// When the last member came, and when the last one left.
    started: Option<Instant>,
    ended: Option<Instant>,
}

/// Everything threads share besides buffers.
struct Shared<'a> {
    world: &'a World<'a>,
    uses: &'a [Vec<Vec<BufferId>>],
    progress: Vec<Progress>,
    /// By operation and group; none for operations of one rank.
    meetings: Vec<Vec<Meeting>>,
    failure: Mutex<Option<ExecError>>,
    failed: AtomicBool,
    ready: Barrier,
}

/// One operation of a thread.
struct Entry {
    id: OpId,
    start: Instant,
    end: Instant,
    /// Core time of its tasks.
    busy: Duration,
    count: Count,
}

/// One step, by operation and rank.
pub(super) struct Played {
    pub(super) timeline: Timeline,
    pub(super) busy: Vec<Vec<Time>>,
    pub(super) counts: Vec<Vec<Count>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Plays all streams of all ranks.
pub(super) fn play(world: &World<'_>, uses: &[Vec<Vec<BufferId>>]) -> Result<Played, ExecError> {
    let program = world.job.program;
    let (ranks, ops) = (program.world_size, program.ops.len());
    let streams = [Stream::Compute, Stream::Communication];
    let meetings = program.ops.iter().map(|op| {
        let Some(scope) = op.kind.scope(&program.traffic) else {
            return Vec::new();
        };
        let members = scope.group_size(ranks);
        let meeting = |_| Meeting {
            members,
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        (0..ranks / members).map(meeting).collect()
    });
    let shared = Shared {
        world,
        uses,
        progress: (0..ranks)
            .map(|_| Progress {
                done: Mutex::new(vec![false; ops]),
                changed: Condvar::new(),
            })
            .collect(),
        meetings: meetings.collect(),
        failure: Mutex::new(None),
        failed: AtomicBool::new(false),
        ready: Barrier::new(ranks * streams.len()),
    };
    let logs: Vec<(usize, (Instant, Vec<Entry>))> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .flat_map(|rank| streams.map(|stream| (rank, stream)))
            .map(|(rank, stream)| {
                let shared = &shared;
                (rank, scope.spawn(move || shared.stream(rank, stream)))
            })
            .collect();
        let joined = threads.into_iter().map(|(rank, thread)| {
            let log = thread.join().unwrap_or_else(|_| {
                shared.fail(ExecError::Disagrees("a kernel panicked".into()));
                (Instant::now(), Vec::new())
            });
            (rank, log)
        });
        joined.collect()
    });
    if let Some(error) = lock(&shared.failure).take() {
        return Err(error);
    }
    let origin = logs.iter().map(|(_, (begin, _))| *begin).min();
    let since = |moment: Instant| {
        let origin = origin.unwrap_or(moment);
        Time::from_ns(moment.saturating_duration_since(origin).as_nanos() as u64)
    };
    let never = Span {
        start: Time::ZERO,
        end: Time::ZERO,
    };
    let mut spans = vec![never; ranks * ops];
    let mut busy = vec![vec![Time::ZERO; ranks]; ops];
    let mut counts = vec![vec![Count::default(); ranks]; ops];
    for (rank, (_, log)) in logs {
        for entry in log {
            let op = entry.id.index();
            spans[rank * ops + op] = Span {
                start: since(entry.start),
                end: since(entry.end),
            };
            busy[op][rank] = Time::from_ns(entry.busy.as_nanos() as u64);
            counts[op][rank] = entry.count;
        }
    }
    Ok(Played {
        timeline: Timeline::new(ranks, ops, spans),
        busy,
        counts,
    })
}

impl Shared<'_> {
    /// Ends the step: wakes everyone who waits.
    fn fail(&self, error: ExecError) {
        lock(&self.failure).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
        for progress in &self.progress {
            let _held = lock(&progress.done);
            progress.changed.notify_all();
        }
        for meeting in self.meetings.iter().flatten() {
            let _held = lock(&meeting.state);
            meeting.changed.notify_all();
        }
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Plays one stream of a rank from its first operation to its last.
    fn stream(&self, rank: usize, stream: Stream) -> (Instant, Vec<Entry>) {
        // A panic anywhere below would leave the others waiting.
        let guard = Alarm(self);
        let program = self.world.job.program;
        let mut log = Vec::new();
        self.ready.wait();
        let begin = Instant::now();
        for (id, op) in program.iter().filter(|(_, op)| op.stream == stream) {
            if !self.wait(rank, &op.after) {
                break;
            }
            match self.operation(rank, id) {
                Ok(Some(entry)) => log.push(entry),
                Ok(None) => break,
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
            let progress = &self.progress[rank];
            lock(&progress.done)[id.index()] = true;
            progress.changed.notify_all();
        }
        std::mem::forget(guard);
        (begin, log)
    }

    /// Waits until all of `before` are done; false where the step has failed.
    fn wait(&self, rank: usize, before: &[OpId]) -> bool {
        let progress = &self.progress[rank];
        let mut done = lock(&progress.done);
        loop {
            if self.has_failed() {
                return false;
            }
            if before.iter().all(|id| done[id.index()]) {
                return true;
            }
            done = progress
                .changed
                .wait(done)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One operation of a rank; `None` where the step has failed.
    fn operation(&self, rank: usize, id: OpId) -> Result<Option<Entry>, ExecError> {
        let job = self.world.job;
        let op = &job.program.ops[id.index()];
        let memory = &self.world.ranks[rank];
        let used = &self.uses[rank][id.index()];
        let meeting = op
            .kind
            .scope(&job.program.traffic)
            .map(|scope| &self.meetings[id.index()][scope.group_of(rank)]);
        let mut start = Instant::now();
        if let Some(meeting) = meeting {
            match self.arrive(meeting) {
                Some(met) => start = met,
                None => return Ok(None),
            }
        }
        for &buffer in used {
            memory.allocate(buffer)?;
        }
        let core = ThreadTime::now();
        let mut count = Count::default();
        for task in &job.lowered.tasks[id.index()][rank] {
            count += kernels::run(self.world, rank, task)?;
        }
        let busy = core.elapsed();
        let mut end = Instant::now();
        if let Some(meeting) = meeting {
            // What was sent may be overwritten only when everybody has it.
            match self.leave(meeting) {
                Some(left) => end = left,
                None => return Ok(None),
            }
        }
        for &buffer in used {
            memory.release(buffer)?;
        }
        Ok(Some(Entry {
            id,
            start,
            end,
            busy,
            count,
        }))
    }

    /// Waits for all members; when the last one came.
    fn arrive(&self, meeting: &Meeting) -> Option<Instant> {
        let mut state = lock(&meeting.state);
        state.arrived += 1;
        if state.arrived == meeting.members {
            state.started = Some(Instant::now());
            meeting.changed.notify_all();
        }
        loop {
            if self.has_failed() {
                return None;
            }
            if let Some(started) = state.started {
                return Some(started);
            }
            state = meeting
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all members have what they came for.
    fn leave(&self, meeting: &Meeting) -> Option<Instant> {
        let mut state = lock(&meeting.state);
        state.left += 1;
        if state.left == meeting.members {
            state.ended = Some(Instant::now());
            meeting.changed.notify_all();
        }
        loop {
            if self.has_failed() {
                return None;
            }
            if let Some(ended) = state.ended {
                return Some(ended);
            }
            state = meeting
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends the step when a thread unwinds.
struct Alarm<'a, 'b>(&'a Shared<'b>);

impl Drop for Alarm<'_, '_> {
    fn drop(&mut self) {
        self.0
            .fail(ExecError::Disagrees("a kernel panicked".into()));
    }
}
