//! One step in full, summed up from its program and timeline.

use super::model::{Detail, Lane, LinkLoad, Matrix, OnPath, OpInfo, Ranks};
use moeplan_sim::hardware::{Hardware, Routing as SpineRouting};
use moeplan_sim::ir::{
    OpKind, Pass, Program, Ring, Stage, Stream, Timeline, Traffic, critical_path,
    waiting_for_others,
};
use moeplan_sim::network::fabric::{Fabric, Leaves, LinkClass, Routing};
use moeplan_sim::simulate::Trace;
use moeplan_sim::units::{Bandwidth, Time};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Timelines kept where ranks differ.
const MOST_LANES: usize = 32;
/// Blocks that ranks are summed up in, each way.
const MOST_BLOCKS: usize = 64;
/// Busiest links kept of a class.
const BUSIEST: usize = 8;

/// What a [`Detail`] is made from.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// Number of the step in the run.
    pub step: usize,
    /// Number of the strategy.
    pub strategy: usize,
    /// The step.
    pub trace: &'a Trace,
    /// What it ran on.
    pub hardware: &'a Hardware,
    /// Token copies by expert.
    pub loads: &'a [u64],
    /// Ranks whose timelines are kept besides those that stand out.
    pub also: &'a Range<usize>,
}

/// The step of `source`, summed up.
pub fn detail(source: Source<'_>) -> Detail {
    let Source {
        step,
        strategy,
        trace,
        hardware,
        loads,
        also,
    } = source;
    let (program, timeline) = (&trace.program, &trace.timeline);
    let path: Vec<OnPath> = critical_path(program, timeline)
        .into_iter()
        .map(|on| OnPath {
            rank: on.rank as u32,
            op: on.op.0,
            start: timeline.span(on.rank, on.op).start.as_ns(),
            waited: on.waited.as_ns(),
            ran: on.ran.as_ns(),
        })
        .collect();
    let (ports, traffic, links) = wires(program, hardware);
    let ranks = ranks(program, timeline, hardware, ports);
    let lanes = chosen(&ranks, &path, program.world_size, also)
        .into_iter()
        .map(|rank| Lane {
            rank: rank as u32,
            spans: timeline
                .rank(rank)
                .iter()
                .map(|span| (span.start.as_ns(), span.end.as_ns().max(span.start.as_ns())))
                .collect(),
        })
        .collect();
    Detail {
        step: step as u32,
        strategy: strategy as u16,
        plan: trace.step.plan.to_string().into(),
        time: trace.step.time.as_ns(),
        gpus: program.world_size as u32,
        gpus_per_node: program.gpus_per_node as u32,
        ops: operations(program),
        lanes,
        path,
        ranks,
        links,
        traffic,
        loads: loads.to_vec(),
    }
}

fn operations(program: &Program) -> Vec<OpInfo> {
    let mut labels: BTreeMap<&str, Arc<str>> = BTreeMap::new();
    program
        .ops
        .iter()
        .map(|op| {
            let label = op.kind.label();
            OpInfo {
                label: labels.entry(label).or_insert_with(|| label.into()).clone(),
                stage: stage_index(op.stage),
                backward: op.pass == Pass::Backward,
                chunk: op.chunk,
                communication: op.stream == Stream::Communication,
            }
        })
        .collect()
}

/// The place of `stage` among all.
pub fn stage_index(stage: Stage) -> u8 {
    Stage::ALL
        .iter()
        .position(|other| *other == stage)
        .unwrap_or(0) as u8
}

/// Figures of every rank. `ports` are the bytes over its ports.
fn ranks(
    program: &Program,
    timeline: &Timeline,
    hardware: &Hardware,
    ports: [Vec<u64>; 4],
) -> Ranks {
    let rows = timeline.rows();
    let busy = |rank: usize, stream: Stream| -> u64 {
        let of_stream = program
            .ops
            .iter()
            .zip(timeline.rank(rank))
            .filter(|(op, _)| op.stream == stream);
        of_stream
            .map(|(_, span)| span.end.saturating_sub(span.start))
            .sum::<Time>()
            .as_ns()
    };
    let each = |of: &(dyn Fn(usize) -> u64 + Sync)| (0..rows).into_par_iter().map(of).collect();
    let uneven_memory = program.buffers.iter().any(|buffer| !buffer.bytes.is_same());
    let memory_rows = if uneven_memory { rows } else { 1 };
    let [nvlink_out, nvlink_in, nic_out, nic_in] = ports;
    Ranks {
        finish: each(&|rank| timeline.finish_of(rank).as_ns()),
        compute: each(&|rank| busy(rank, Stream::Compute)),
        communication: each(&|rank| busy(rank, Stream::Communication)),
        waited: waiting_for_others(program, timeline)
            .into_iter()
            .map(Time::as_ns)
            .collect(),
        memory: (0..memory_rows)
            .into_par_iter()
            .map(|rank| hardware.reserved_bytes() + program.peak_memory(rank).0)
            .collect(),
        rows: each(&|rank| program.expert_rows(rank)),
        nvlink_out,
        nvlink_in,
        nic_out,
        nic_in,
    }
}

/// Ranks whose timelines are kept: all of a few; else those that stand out, those on the path, one
/// whole node, those asked for, and some spread over the world.
fn chosen(ranks: &Ranks, path: &[OnPath], world: usize, also: &Range<usize>) -> BTreeSet<usize> {
    if ranks.finish.len() == 1 {
        return BTreeSet::from([0]);
    }
    if world <= MOST_LANES {
        return (0..world).collect();
    }
    let extremes = |column: &[u64]| {
        let most = (0..column.len()).rev().max_by_key(|&rank| column[rank]);
        let least = (0..column.len()).min_by_key(|&rank| column[rank]);
        most.into_iter().chain(least)
    };
    let mut kept: BTreeSet<usize> = extremes(&ranks.finish)
        .chain(extremes(&ranks.waited))
        .chain(extremes(&ranks.compute))
        .chain(path.iter().map(|on| on.rank as usize).take(8))
        .chain(also.clone().filter(|rank| *rank < world))
        .collect();
    let spread = MOST_LANES.saturating_sub(kept.len());
    kept.extend((0..spread).map(|index| index * world / spread));
    kept
}

/// The fabric of `hardware` with its ports at full rate; none for threads of a CPU.
fn fabric(program: &Program, hardware: &Hardware) -> Option<Fabric> {
    if hardware.cpu.is_some() {
        return None;
    }
    let rate = |gb_per_s: f64| Bandwidth::from_bytes_per_second(gb_per_s * 1e9);
    let network = &hardware.network;
    let whole = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let nvlink = rate(hardware.collectives.intra.port_gb_per_s)?;
    let nic = rate(hardware.collectives.nic.wire_gb_per_s)?;
    let (world, node) = (program.world_size as u32, program.gpus_per_node as u32);
    Fabric::new(world, node, nvlink, nic)
        .and_then(|fabric| {
            fabric.with_leaves(Leaves {
                nodes_per_leaf: whole(network.nodes_per_leaf),
                oversubscription: network.oversubscription,
                spines: whole(network.spines),
                routing: match network.routing {
                    SpineRouting::Adaptive => Routing::Adaptive,
                    SpineRouting::Static => Routing::Static,
                },
            })
        })
        .ok()
}

/// Byte matrices of all exchanges with how often each is sent; chunks that together are a whole
/// matrix are one, as their parts add up to it.
fn matrices(program: &Program) -> Vec<(Traffic, u64)> {
    let mut times: Vec<u64> = vec![0; program.traffic.len()];
    for op in &program.ops {
        if let OpKind::Exchange { traffic, .. } = op.kind {
            times[traffic.0 as usize] += 1;
        }
    }
    let mut whole: Vec<(Traffic, u64)> = Vec::new();
    let mut taken = vec![false; times.len()];
    for (index, traffic) in program.traffic.iter().enumerate() {
        if taken[index] || times[index] == 0 {
            continue;
        }
        let Traffic::Matrix {
            scope,
            rows,
            row_bytes,
            chunks,
            ..
        } = traffic
        else {
            whole.push((traffic.clone(), times[index]));
            continue;
        };
        let alike: Vec<usize> = (index..times.len())
            .filter(|&other| {
                times[other] == times[index]
                    && matches!(&program.traffic[other], Traffic::Matrix { scope: s, rows: r, row_bytes: b, chunks: c, .. }
                        if s == scope && Arc::ptr_eq(r, rows) && b == row_bytes && c == chunks)
            })
            .collect();
        if alike.len() == *chunks as usize {
            alike.iter().for_each(|&other| taken[other] = true);
            let all = Traffic::Matrix {
                scope: *scope,
                rows: rows.clone(),
                row_bytes: *row_bytes,
                chunk: 0,
                chunks: 1,
            };
            whole.push((all, times[index]));
        } else {
            whole.push((traffic.clone(), times[index]));
        }
    }
    whole
}

/// Ports by rank, blocks of ranks, and links by class.
type Wires = ([Vec<u64>; 4], Matrix, Vec<LinkLoad>);

/// What one source rank sends: its ports, its row of blocks, what others receive, leaf links.
struct Sent {
    out: [u64; 2],
    row: Vec<u64>,
    received: [Vec<u64>; 2],
    leaves: Vec<(LinkClass, u32, u64)>,
}

/// Bytes of all exchanges and rings over every port and link.
fn wires(program: &Program, hardware: &Hardware) -> Wires {
    let (world, node) = (program.world_size, program.gpus_per_node);
    let per_block = match world.div_ceil(MOST_BLOCKS) {
        1 => 1,
        some => some.next_multiple_of(node),
    };
    let side = world.div_ceil(per_block);
    let fabric = fabric(program, hardware);
    let matrices = matrices(program);
    let ops = program.ops.iter();
    let rings: Vec<Ring> = ops.filter_map(|op| Ring::of(&op.kind, world)).collect();
    let from = |source: usize| {
        let mut row: Vec<u64> = (0..world)
            .map(|to| {
                let bytes = matrices
                    .iter()
                    .map(|(traffic, times)| traffic.bytes(source, to, world) * times);
                bytes.sum()
            })
            .collect();
        for (to, bytes) in rings
            .iter()
            .flat_map(|ring| ring.sends(source, world, node))
        {
            row[to] += bytes;
        }
        sent(source, &row, node, per_block, fabric.as_ref())
    };
    let mut ports: [Vec<u64>; 4] = std::array::from_fn(|_| vec![0; world]);
    let mut blocks = vec![0u64; side * side];
    let mut leaves: BTreeMap<LinkClass, BTreeMap<u32, u64>> = BTreeMap::new();
    // Some ranks at a time: what each sends takes a row of the world.
    for first in (0..world).step_by(64) {
        let some: Vec<Sent> = (first..world.min(first + 64))
            .into_par_iter()
            .map(from)
            .collect();
        for (source, sent) in (first..).zip(some) {
            ports[0][source] = sent.out[0];
            ports[2][source] = sent.out[1];
            for (way, received) in [1, 3].into_iter().zip(&sent.received) {
                ports[way]
                    .iter_mut()
                    .zip(received)
                    .for_each(|(sum, bytes)| *sum += bytes);
            }
            let row = &mut blocks[source / per_block * side..][..side];
            row.iter_mut()
                .zip(&sent.row)
                .for_each(|(sum, bytes)| *sum += bytes);
            for (class, link, bytes) in sent.leaves {
                *leaves.entry(class).or_default().entry(link).or_default() += bytes;
            }
        }
    }
    let traffic = Matrix {
        side: side as u32,
        ranks_per_block: per_block as u32,
        bytes: blocks,
    };
    let links = fabric.map_or_else(Vec::new, |fabric| links(&fabric, &ports, &leaves));
    (ports.map(collapsed), traffic, links)
}

/// Takes what `source` sends to everyone apart by wire.
fn sent(
    source: usize,
    row: &[u64],
    node: usize,
    per_block: usize,
    fabric: Option<&Fabric>,
) -> Sent {
    let world = row.len();
    let mut sent = Sent {
        out: [0; 2],
        row: vec![0; world.div_ceil(per_block)],
        received: [vec![0; world], vec![0; world]],
        leaves: Vec::new(),
    };
    let mut core: BTreeMap<(LinkClass, u32), u64> = BTreeMap::new();
    for (destination, &bytes) in row.iter().enumerate().filter(|(_, bytes)| **bytes > 0) {
        let wire = usize::from(source / node != destination / node);
        sent.out[wire] += bytes;
        sent.received[wire][destination] += bytes;
        sent.row[destination / per_block] += bytes;
        let core_links =
            fabric.and_then(|fabric| fabric.core_links(source as u32, destination as u32));
        if let Some((up, down)) = core_links.filter(|_| wire == 1) {
            *core.entry((LinkClass::LeafUp, up)).or_default() += bytes;
            *core.entry((LinkClass::LeafDown, down)).or_default() += bytes;
        }
    }
    sent.leaves = core
        .into_iter()
        .map(|((class, link), bytes)| (class, link, bytes))
        .collect();
    sent
}

/// One value where all are alike.
fn collapsed(column: Vec<u64>) -> Vec<u64> {
    match column.split_first() {
        Some((first, rest)) if rest.iter().all(|value| value == first) => vec![*first],
        Some(_) | None => column,
    }
}

fn links(
    fabric: &Fabric,
    ports: &[Vec<u64>; 4],
    leaves: &BTreeMap<LinkClass, BTreeMap<u32, u64>>,
) -> Vec<LinkLoad> {
    LinkClass::ALL
        .into_iter()
        .zip(0..)
        .map(|(class, place)| {
            let mut loads: Vec<(u32, u64)> = match ports.get(place) {
                Some(port) => (0u32..).zip(port.iter().copied()).collect(),
                None => leaves
                    .get(&class)
                    .map(|links| links.iter().map(|(link, bytes)| (*link, *bytes)).collect())
                    .unwrap_or_default(),
            };
            let total_bytes = loads.iter().map(|(_, bytes)| bytes).sum();
            loads.retain(|(_, bytes)| *bytes > 0);
            loads.sort_by_key(|(link, bytes)| (std::cmp::Reverse(*bytes), *link));
            loads.truncate(BUSIEST);
            LinkLoad {
                name: class.name().into(),
                links: u64::from(fabric.links(class)),
                bytes_per_s: fabric.capacity(class).bytes_per_second(),
                total_bytes,
                busiest: loads,
            }
        })
        .collect()
}
