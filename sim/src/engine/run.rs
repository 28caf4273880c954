//! Playing one program.

use super::EventQueue;
use super::rows::Rows;
use crate::cost::provenance::Provenance;
use crate::ir::{OpId, PerRank, Program, Span, Stream, Timeline};
use crate::units::Time;
use serde::{Deserialize, Serialize};

/// What an operation mainly uses, which decides how it and a neighbour slow each other down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    /// Tensor cores.
    Gemm,
    /// HBM.
    Memory,
    /// A collective bound by NVLink: a few SMs and much HBM bandwidth.
    NvLink,
    /// A collective bound by the NIC: a few SMs.
    Nic,
}

/// An operation with its price: how long it takes alone.
#[derive(Debug, Clone, PartialEq)]
pub struct PricedOp {
    /// Time alone on each rank, from the moment all participants are there.
    pub alone: PerRank<Time>,
    /// Time the host needs to issue it.
    pub host: Time,
    /// What it mainly uses.
    pub resource: Resource,
    /// How the price was obtained.
    pub provenance: Provenance,
}

/// Progress per unit of time of two operations that run at once on a GPU, 1 being undisturbed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Contention {
    /// A GEMM beside a collective bound by the NIC, which holds some SMs.
    pub gemm_beside_nic: f64,
    /// A memory-bound kernel beside a collective bound by the NIC.
    pub memory_beside_nic: f64,
    /// A collective bound by the NIC beside any kernel.
    pub nic_beside_kernel: f64,
    /// A GEMM beside a collective bound by NVLink, which also takes HBM bandwidth.
    pub gemm_beside_nvlink: f64,
    /// A memory-bound kernel beside a collective bound by NVLink.
    pub memory_beside_nvlink: f64,
    /// A collective bound by NVLink beside any kernel.
    pub nvlink_beside_kernel: f64,
}

/// How operations of one rank that could run at once share it.
#[derive(Debug, Clone, Copy)]
pub struct Concurrency<'a> {
    /// How they slow each other down.
    pub contention: &'a Contention,
    /// Whether a running kernel keeps collectives out, as it does on a GPU.
    ///
    /// A GPU places thread blocks in order of arrival: blocks of a later launch start when all of
    /// an earlier one are placed, near its end (the "leftover" policy: Amert et al., RTSS 2017;
    /// Gilman and Walls, Performance Evaluation 2021). A collective has few blocks and leaves room
    /// for a kernel that comes later; a kernel leaves none for a collective. So an All-to-All of
    /// four launches (2DH) waits up to four times where a linear one waits once.
    pub kernels_keep_collectives_out: bool,
}

/// Fixed-point unit of rates: an operation that runs undisturbed progresses at `FULL_RATE` per ps.
const FULL_RATE: u64 = 1024;

impl Contention {
    /// Rates of an operation on the compute stream and one on the communication stream.
    fn rates(&self, compute: Resource, communication: Resource) -> (u64, u64) {
        use Resource::{Gemm, Memory, Nic, NvLink};
        let fixed = |rate: f64| ((rate * FULL_RATE as f64).round() as u64).clamp(1, FULL_RATE);
        let (compute, communication) = match (compute, communication) {
            (Gemm, Nic) => (self.gemm_beside_nic, self.nic_beside_kernel),
            (Memory, Nic) => (self.memory_beside_nic, self.nic_beside_kernel),
            (Gemm, NvLink) => (self.gemm_beside_nvlink, self.nvlink_beside_kernel),
            (Memory, NvLink) => (self.memory_beside_nvlink, self.nvlink_beside_kernel),
            // Kernels never run at once, they keep each other out. Collectives of two streams would
            // share what they need evenly.
            (Gemm | Memory | NvLink | Nic, Gemm | Memory) | (NvLink | Nic, NvLink | Nic) => {
                (0.5, 0.5)
            }
        };
        (fixed(compute), fixed(communication))
    }
}

/// Counters of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunStats {
    /// Events handled.
    pub events: u64,
    /// Hash of all events in order: equal for equal runs.
    pub order_hash: u64,
    /// Ranks simulated: 1 where all are alike.
    pub rows: usize,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// The host has issued the operation a stream waits for.
    Issued { row: u32, stream: u8 },
    /// A running operation is done, unless its generation has passed.
    Done {
        row: u32,
        stream: u8,
        generation: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    /// The first operation of the queue is not ready.
    Waiting,
    /// It is ready, but a kernel of the other stream fills the GPU.
    Queued,
    /// It is ready and waits for the other participants of its collective.
    Arrived,
    /// It runs.
    Running,
}

#[derive(Debug, Clone)]
struct Lane {
    /// Position in the stream's list of operations.
    next: usize,
    head: Head,
    /// Work left, in picoseconds times `FULL_RATE`.
    left: u64,
    rate: u64,
    since: Time,
    generation: u32,
}

const STREAMS: usize = 2;

struct Run<'a> {
    program: &'a Program,
    priced: &'a [PricedOp],
    concurrency: Concurrency<'a>,
    rows: Rows,
    /// Operations of each stream in issue order.
    order: [Vec<OpId>; STREAMS],
    successors: Vec<Vec<OpId>>,
    /// By operation: the number of a collective's scope.
    scopes: Vec<Option<usize>>,
    /// Predecessors that have not ended, by row and operation.
    blocked_by: Vec<u16>,
    lanes: Vec<[Lane; STREAMS]>,
    /// Rows that have arrived, by operation and group.
    arrived: Vec<Vec<u32>>,
    /// When the host reaches each operation, counted from its last synchronisation.
    issue: Vec<Time>,
    /// The synchronising operation each operation comes after, if any.
    after_sync: Vec<Option<OpId>>,
    spans: Vec<Span>,
    queue: EventQueue<Event>,
    stats: RunStats,
}

/// Plays `program` and returns when everything ran.
///
/// Where every operation takes the same time on every rank, one rank is played for all.
pub fn run(
    program: &Program,
    priced: &[PricedOp],
    concurrency: Concurrency<'_>,
) -> (Timeline, RunStats) {
    let alike = priced.iter().all(|op| op.alone.is_same());
    let rows = if alike {
        Rows::one(program)
    } else {
        Rows::each(program)
    };
    let mut run = Run::new(program, priced, concurrency, rows);
    run.play();
    let stats = RunStats {
        rows: run.rows.len(),
        ..run.stats
    };
    (
        Timeline::new(program.world_size, program.ops.len(), run.spans),
        stats,
    )
}

/// When `program` has ended on all ranks: as [`run`] says, playing ranks that nothing tells apart once.
pub fn step_time(program: &Program, priced: &[PricedOp], concurrency: Concurrency<'_>) -> Time {
    let rows = Rows::told_apart(program, priced);
    let mut run = Run::new(program, priced, concurrency, rows);
    run.play();
    let ends = run.spans.iter().map(|span| span.end);
    ends.max().unwrap_or(Time::ZERO)
}

fn lane_of(stream: Stream) -> usize {
    match stream {
        Stream::Compute => 0,
        Stream::Communication => 1,
    }
}

impl<'a> Run<'a> {
    fn new(
        program: &'a Program,
        priced: &'a [PricedOp],
        concurrency: Concurrency<'a>,
        rows: Rows,
    ) -> Self {
        let ops = program.ops.len();
        let mut order = [Vec::new(), Vec::new()];
        let mut successors = vec![Vec::new(); ops];
        let mut blocked = vec![0u16; ops];
        let mut issue = Vec::with_capacity(ops);
        let mut after_sync = Vec::with_capacity(ops);
        let (mut cursor, mut last_sync) = (Time::ZERO, None);
        for (id, op) in program.iter() {
            order[lane_of(op.stream)].push(id);
            for before in &op.after {
                successors[before.index()].push(id);
            }
            blocked[id.index()] = op.after.len() as u16;
            issue.push(cursor);
            after_sync.push(last_sync);
            cursor += priced[id.index()].host;
            if op.kind.blocks_host() {
                (cursor, last_sync) = (Time::ZERO, Some(id));
            }
        }
        let scopes: Vec<Option<usize>> = program
            .ops
            .iter()
            .map(|op| Some(rows.scope(op.kind.scope(&program.traffic)?)))
            .collect();
        let arrived = scopes
            .iter()
            .map(|scope| vec![0; scope.map_or(0, |scope| rows.groups(scope))])
            .collect();
        let lane = Lane {
            next: 0,
            head: Head::Waiting,
            left: 0,
            rate: FULL_RATE,
            since: Time::ZERO,
            generation: 0,
        };
        Run {
            program,
            priced,
            concurrency,
            order,
            successors,
            scopes,
            blocked_by: blocked.repeat(rows.len()),
            lanes: vec![[lane.clone(), lane]; rows.len()],
            arrived,
            issue,
            after_sync,
            spans: vec![
                Span {
                    start: Time::ZERO,
                    end: Time::ZERO
                };
                rows.len() * ops
            ],
            queue: EventQueue::new(),
            stats: RunStats::default(),
            rows,
        }
    }

    fn play(&mut self) {
        for row in 0..self.rows.len() {
            for stream in 0..STREAMS {
                self.advance(row, stream, Time::ZERO);
            }
        }
        while let Some((now, event)) = self.queue.pop() {
            self.stats.events += 1;
            self.record(now, event);
            match event {
                Event::Issued { row, stream } => self.advance(row as usize, stream as usize, now),
                Event::Done {
                    row,
                    stream,
                    generation,
                } => {
                    let (row, stream) = (row as usize, stream as usize);
                    if self.lanes[row][stream].generation == generation {
                        self.complete(row, stream, now);
                    }
                }
            }
        }
    }

    /// Folds an event into the hash of the run (FNV-1a over its fields).
    fn record(&mut self, now: Time, event: Event) {
        let (row, tag) = match event {
            Event::Issued { row, stream } => (row, u64::from(stream)),
            Event::Done { row, stream, .. } => (row, 2 + u64::from(stream)),
        };
        for word in [now.as_ps(), u64::from(row), tag] {
            self.stats.order_hash = (self.stats.order_hash ^ word).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Starts the first operation of a stream if everything it waits for is there.
    fn advance(&mut self, row: usize, stream: usize, now: Time) {
        let lane = &self.lanes[row][stream];
        if lane.head != Head::Waiting {
            return;
        }
        let Some(&op) = self.order[stream].get(lane.next) else {
            return;
        };
        let index = op.index();
        if self.blocked_by[row * self.program.ops.len() + index] > 0 {
            return;
        }
        let Some(issued) = self.issued(row, op) else {
            return;
        };
        if issued > now {
            self.queue.push(
                issued,
                Event::Issued {
                    row: row as u32,
                    stream: stream as u8,
                },
            );
            return;
        }
        if self.kept_out(row, stream) {
            self.lanes[row][stream].head = Head::Queued;
            return;
        }
        match self.scopes[index] {
            None => self.start(row, stream, op, now),
            Some(scope) => self.arrive(row, stream, op, scope, now),
        }
    }

    /// When the host issues `op`, or `None` while it waits for a synchronisation.
    fn issued(&self, row: usize, op: OpId) -> Option<Time> {
        let issue = self.issue[op.index()];
        let Some(sync) = self.after_sync[op.index()] else {
            return Some(issue);
        };
        let end = self.spans[row * self.program.ops.len() + sync.index()].end;
        (end > Time::ZERO).then(|| end + issue)
    }

    fn arrive(&mut self, row: usize, stream: usize, op: OpId, scope: usize, now: Time) {
        self.lanes[row][stream].head = Head::Arrived;
        let group = self.rows.group(scope, row);
        let arrived = &mut self.arrived[op.index()][group];
        *arrived += 1;
        let members = self.rows.members(scope, group).len();
        if (*arrived as usize) < members {
            return;
        }
        for place in 0..members {
            let member = self.rows.members(scope, group)[place];
            self.start(member as usize, stream, op, now);
        }
    }

    fn start(&mut self, row: usize, stream: usize, op: OpId, now: Time) {
        self.spans[row * self.program.ops.len() + op.index()].start = now;
        let lane = &mut self.lanes[row][stream];
        lane.head = Head::Running;
        lane.left = self.priced[op.index()]
            .alone
            .get(self.rows.rank[row])
            .as_ps()
            .saturating_mul(FULL_RATE);
        lane.since = now;
        lane.rate = 0;
        self.balance(row, now);
    }

    fn complete(&mut self, row: usize, stream: usize, now: Time) {
        let lane = &mut self.lanes[row][stream];
        let op = self.order[stream][lane.next];
        lane.head = Head::Waiting;
        lane.next += 1;
        lane.generation += 1;
        let ops = self.program.ops.len();
        // An end of zero would read as "not ended"; nothing real takes no time at all.
        self.spans[row * ops + op.index()].end = now.max(Time::from_ps(1));
        for successor in &self.successors[op.index()] {
            self.blocked_by[row * ops + successor.index()] -= 1;
        }
        self.balance(row, now);
        // What was ready before goes first; at the same moment the stream's own next operation
        // does, as it needs no event between streams.
        let other = 1 - stream;
        if self.lanes[row][other].head == Head::Queued {
            self.lanes[row][other].head = Head::Waiting;
            self.advance(row, other, now);
        }
        self.advance(row, stream, now);
        self.advance(row, other, now);
    }

    /// Whether a kernel runs on the other stream of `row`, and so fills the GPU.
    fn kept_out(&self, row: usize, stream: usize) -> bool {
        let lane = &self.lanes[row][1 - stream];
        self.concurrency.kernels_keep_collectives_out
            && lane.head == Head::Running
            && self.scopes[self.order[1 - stream][lane.next].index()].is_none()
    }

    /// Sets the rates of what runs on `row`, and when it will end at these rates.
    fn balance(&mut self, row: usize, now: Time) {
        let running = |run: &Run<'_>, stream: usize| {
            let lane = &run.lanes[row][stream];
            (lane.head == Head::Running)
                .then(|| run.priced[run.order[stream][lane.next].index()].resource)
        };
        let rates = match (running(self, 0), running(self, 1)) {
            (Some(compute), Some(communication)) => {
                self.concurrency.contention.rates(compute, communication)
            }
            _ => (FULL_RATE, FULL_RATE),
        };
        for (stream, rate) in [(0, rates.0), (1, rates.1)] {
            let lane = &mut self.lanes[row][stream];
            if lane.head != Head::Running || lane.rate == rate {
                continue;
            }
            let elapsed = (now - lane.since).as_ps();
            lane.left = lane.left.saturating_sub(elapsed.saturating_mul(lane.rate));
            lane.since = now;
            lane.rate = rate;
            lane.generation += 1;
            let end = now + Time::from_ps(lane.left.div_ceil(rate));
            let event = Event::Done {
                row: row as u32,
                stream: stream as u8,
                generation: lane.generation,
            };
            self.queue.push(end, event);
        }
    }
}
