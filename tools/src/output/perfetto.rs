//! Timelines in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.
//!
//! A process is a GPU, named after its node; a thread is a stream of it. Slices are operations, arrows
//! are dependencies between streams and the largest message of every exchange, counters are the rates
//! at which a GPU sends. Times are microseconds, as the format has them, to the nanosecond.

use crate::error::Error;
use crate::resolve::{Given, Resolved};
use crate::settings::Ranks;
use moeplan_sim::compile::Plan;
use moeplan_sim::engine::PricedOp;
use moeplan_sim::ir::{Op, OpKind, Pass, Program, Ring, Span, Stream, Timeline};
use moeplan_sim::units::Time;
use serde_json::{Value, json};

/// Ranks that are shown when nothing is said.
const RANKS: usize = 64;

/// What is said of a step.
pub struct About<'a> {
    /// Name of its strategy.
    pub strategy: &'a str,
    /// Its number in the recording.
    pub step: u64,
    /// How it ran.
    pub plan: Plan,
}

/// A step and how much of it is written.
struct Export<'a> {
    program: &'a Program,
    timeline: &'a Timeline,
    /// None where it was measured.
    priced: Option<&'a [PricedOp]>,
    /// Ranks that are shown, ascending.
    ranks: Vec<usize>,
}

/// The timeline of a step as text; `priced` where it was simulated.
///
/// # Errors
/// Ranks that are not there.
pub fn export(
    given: &Given,
    resolved: &Resolved,
    what: &About<'_>,
    program: &Program,
    timeline: &Timeline,
    priced: Option<&[PricedOp]>,
) -> Result<String, Error> {
    let export = Export {
        program,
        timeline,
        priced,
        ranks: ranks(given, timeline, program.gpus_per_node)?,
    };
    let about = json!({
        "moeplan": env!("CARGO_PKG_VERSION"),
        "seed": resolved.seed,
        "settings": crate::command::compare::settings(resolved)?,
        "strategy": what.strategy,
        "step": what.step,
        "plan": what.plan.to_string(),
        "ranks": timeline.world_size,
        "ranks shown": export.ranks.len(),
        "times": if priced.is_some() { "simulated" } else { "measured" },
    });
    Ok(render(&export, &about))
}

/// The ranks asked for; of many the first node and the slowest.
fn ranks(given: &Given, timeline: &Timeline, gpus_per_node: usize) -> Result<Vec<usize>, Error> {
    let world = timeline.world_size;
    let mut ranks: Vec<usize> = match given.export().export_ranks {
        Some(Ranks::All) => (0..world).collect(),
        Some(Ranks::Some(ranges)) => {
            if let Some(range) = ranges.iter().find(|range| *range.end() >= world) {
                let message = format!(
                    "expected ranks from 0 to {}, found {}",
                    world - 1,
                    range.end()
                );
                let place = given.place(&["export"], None, "export-ranks");
                return Err(Error::input(place, message));
            }
            ranges.into_iter().flatten().collect()
        }
        None if world <= RANKS => (0..world).collect(),
        None => {
            let node = 0..gpus_per_node.min(world);
            node.chain([timeline.slowest_rank()]).collect()
        }
    };
    ranks.sort_unstable();
    ranks.dedup();
    Ok(ranks)
}

fn render(export: &Export<'_>, about: &Value) -> String {
    let mut events = Events::default();
    for &rank in &export.ranks {
        events.name_tracks(rank, export.program);
    }
    for &rank in &export.ranks {
        let spans = export.timeline.rank(rank);
        for (index, op) in export.program.ops.iter().enumerate() {
            if spans[index].end > spans[index].start {
                events.slice(export, rank, index, op, spans[index]);
                events.dependencies(export.program, rank, op, spans, index);
                events.rates(export, rank, index, op);
                events.message(export, rank, index, op);
            }
        }
    }
    let mut text = String::from("{\"traceEvents\":[\n");
    text += &events.lines.join(",\n");
    text += "\n],\"displayTimeUnit\":\"ns\",\"otherData\":";
    text += &about.to_string();
    text += "}\n";
    text
}

/// Events, a line each.
#[derive(Default)]
struct Events {
    lines: Vec<String>,
    arrows: u64,
}

/// Process 0 is the idle task of a kernel to some viewers.
fn process(rank: usize) -> usize {
    rank + 1
}

/// Threads have numbers of their own over all processes.
fn thread(rank: usize, stream: Stream) -> usize {
    let within = match stream {
        Stream::Compute => 0,
        Stream::Communication => 1,
    };
    2 * process(rank) + within
}

/// Microseconds, to the nanosecond: viewers count no finer. Every moment is rounded alike, or slices that follow each other
/// would overlap, and Perfetto drops one that does.
fn micros(nanos: u64) -> String {
    format!("{}.{:03}", nanos / 1000, nanos % 1000)
}

/// The last moment that a viewer still puts into the slice.
fn just_before(end: Time, start: Time) -> Time {
    let nanosecond = Time::from_ns(1);
    match end - start > nanosecond {
        true => end - nanosecond,
        false => start,
    }
}

impl Events {
    fn name_tracks(&mut self, rank: usize, program: &Program) {
        let m = program.gpus_per_node.max(1);
        let name = format!("node {} GPU {} (rank {rank})", rank / m, rank % m);
        let pid = process(rank);
        let mut meta = |what: &str, tid: Option<usize>, args: &Value| {
            let mut event = json!({"ph": "M", "name": what, "pid": pid, "args": args});
            if let Some(tid) = tid {
                event["tid"] = json!(tid);
            }
            self.lines.push(event.to_string());
        };
        meta("process_name", None, &json!({"name": name}));
        meta("process_sort_index", None, &json!({"sort_index": rank}));
        for (stream, name) in [
            (Stream::Compute, "compute"),
            (Stream::Communication, "communication"),
        ] {
            let tid = thread(rank, stream);
            meta("thread_name", Some(tid), &json!({"name": name}));
            meta("thread_sort_index", Some(tid), &json!({"sort_index": tid}));
        }
    }

    /// Appends an event at `time`; its number is kept exact, which a float would not do.
    fn push(&mut self, rank: usize, time: Time, event: &Value) {
        let mut text = event.to_string();
        text.pop();
        text += &format!(
            ",\"pid\":{},\"ts\":{}}}",
            process(rank),
            micros(time.as_ns())
        );
        self.lines.push(text);
    }

    fn slice(&mut self, export: &Export<'_>, rank: usize, index: usize, op: &Op, span: Span) {
        let pass = match op.pass {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        };
        let mut args = json!({
            "op": index, "stage": op.stage.name(), "pass": pass, "chunk": op.chunk,
        });
        let program = export.program;
        match &op.kind {
            OpKind::Exchange { traffic, .. } => {
                let traffic = program.traffic(*traffic);
                args["bytes_sent"] = json!(traffic.sent_by(rank, program.world_size));
                args["bytes_received"] = json!(traffic.received_by(rank, program.world_size));
                args["peers"] = json!(traffic.scope().group_size(program.world_size) - 1);
            }
            OpKind::AllGather { bytes, .. }
            | OpKind::ReduceScatter { bytes, .. }
            | OpKind::AllReduce { bytes, .. } => {
                args["bytes"] = json!(bytes);
            }
            OpKind::Gate { .. }
            | OpKind::CapacitySync
            | OpKind::Encode { .. }
            | OpKind::ScoreGradient { .. }
            | OpKind::Decode { .. }
            | OpKind::ExpertGemm { .. }
            | OpKind::Elementwise { .. }
            | OpKind::Model { .. } => {
                let work = op.kind.work(op.pass, rank, program.dtype);
                args["flops"] = json!(work.iter().map(|work| work.flops()).sum::<f64>());
            }
        }
        args["provenance"] = match export.priced {
            Some(priced) => json!(priced[index].provenance.to_string()),
            None => json!("measured"),
        };
        let event = json!({
            "ph": "X", "name": op.kind.label(), "cat": op.stage.name(),
            "tid": thread(rank, op.stream), "args": args,
        });
        let mut text = event.to_string();
        text.pop();
        text += &format!(
            ",\"pid\":{},\"ts\":{},\"dur\":{}}}",
            process(rank),
            micros(span.start.as_ns()),
            micros(span.end.as_ns() - span.start.as_ns())
        );
        self.lines.push(text);
    }

    /// An arrow from every operation of another stream that this one waited for.
    fn dependencies(
        &mut self,
        program: &Program,
        rank: usize,
        op: &Op,
        spans: &[Span],
        index: usize,
    ) {
        for &before in &op.after {
            let (earlier, span) = (&program.ops[before.index()], spans[before.index()]);
            if earlier.stream != op.stream && span.end > span.start {
                let from = (rank, earlier.stream, just_before(span.end, span.start));
                let to = (rank, op.stream, spans[index].start);
                self.arrow("dependency", from, to);
            }
        }
    }

    fn arrow(
        &mut self,
        name: &str,
        (from, from_stream, begin): (usize, Stream, Time),
        (to, to_stream, end): (usize, Stream, Time),
    ) {
        self.arrows += 1;
        let id = self.arrows;
        let event = |ph: &str, tid: usize| json!({"ph": ph, "cat": name, "name": name, "id": id, "tid": tid});
        self.push(from, begin, &event("s", thread(from, from_stream)));
        let mut finish = event("f", thread(to, to_stream));
        finish["bp"] = json!("e");
        self.push(to, end, &finish);
    }

    /// The rates at which a rank sends as counters.
    fn rates(&mut self, export: &Export<'_>, rank: usize, index: usize, op: &Op) {
        let Some((node, network)) = sent(op, rank, export.program) else {
            return;
        };
        let span = export.timeline.rank(rank)[index];
        let seconds = (span.end - span.start).as_secs_f64();
        let rate = |bytes: u64| bytes as f64 / seconds / 1e9;
        for (time, node, network) in [
            (span.start, rate(node), rate(network)),
            (span.end, 0.0, 0.0),
        ] {
            let event = json!({
                "ph": "C", "name": "sending GB/s", "args": {"in node": node, "network": network},
            });
            self.push(rank, time, &event);
        }
    }

    /// The largest message of an exchange to a rank that is shown.
    fn message(&mut self, export: &Export<'_>, rank: usize, index: usize, op: &Op) {
        let OpKind::Exchange { traffic, .. } = &op.kind else {
            return;
        };
        let program = export.program;
        let traffic = program.traffic(*traffic);
        let span = export.timeline.rank(rank)[index];
        let bytes = |to: usize| traffic.bytes(rank, to, program.world_size);
        let others = export.ranks.iter().copied().filter(|&to| to != rank);
        // Of equals the next in the ring, so that arrows do not all end at one rank.
        let order = |to: usize| (to + program.world_size - rank) % program.world_size;
        let largest = others
            .filter(|&to| bytes(to) > 0)
            .max_by_key(|&to| (bytes(to), std::cmp::Reverse(order(to))));
        if let Some(to) = largest {
            let received = export.timeline.rank(to)[index];
            let end = just_before(received.end, received.start);
            self.arrow(
                "message",
                (rank, op.stream, span.start),
                (to, op.stream, end),
            );
        }
    }
}

/// Bytes that `rank` sends to its own node, and to others, if the operation is one that sends.
fn sent(op: &Op, rank: usize, program: &Program) -> Option<(u64, u64)> {
    let (world, m) = (program.world_size, program.gpus_per_node.max(1));
    let (node, all) = match &op.kind {
        OpKind::Exchange { traffic, .. } => {
            let traffic = program.traffic(*traffic);
            let first = rank / m * m;
            let peers = (first..(first + m).min(world)).filter(|&peer| peer != rank);
            let node = peers.map(|peer| traffic.bytes(rank, peer, world)).sum();
            (node, traffic.sent_by(rank, world))
        }
        kind => {
            let sends = Ring::of(kind, world)?.sends(rank, world, m);
            let near = sends.iter().filter(|(to, _)| to / m == rank / m);
            let all = sends.iter().map(|(_, bytes)| bytes).sum();
            (near.map(|(_, bytes)| bytes).sum(), all)
        }
    };
    Some((node, all - node))
}
