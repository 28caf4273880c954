//! Blocks as columns, and back.

use super::columns::{Damage, In, Out};
use super::model::{
    Block, Detail, End, Header, Lane, LayerStep, Layers, LinkLoad, MEAN_LOAD, Matrix, OnPath,
    OpInfo, Ranks, RoutingRecord, RunRecord, STAGES, StepRecord,
};
use std::sync::Arc;

const HEADER: u8 = 1;
const STEPS: u8 = 2;
const DETAIL: u8 = 3;
const LAYERS: u8 = 4;
const END: u8 = 5;

/// The kind of a block, and its payload before it is packed.
pub(super) fn encode(block: &Block) -> Result<(u8, Vec<u8>), serde_json::Error> {
    let mut out = Out::default();
    let kind = match block {
        Block::Header(header) => return Ok((HEADER, serde_json::to_vec(header)?)),
        Block::Steps(steps) => {
            write_steps(&mut out, steps);
            STEPS
        }
        Block::Detail(detail) => {
            write_detail(&mut out, detail);
            DETAIL
        }
        Block::Layers(layers) => {
            write_layers(&mut out, layers);
            LAYERS
        }
        Block::End(end) => {
            out.u64(u64::from(end.interrupted));
            END
        }
    };
    Ok((kind, out.0))
}

/// The block of `kind` with this payload; `None` for a kind that this version does not know.
pub(super) fn decode(kind: u8, bytes: &[u8]) -> Result<Option<Block>, Damage> {
    let mut read = In(bytes);
    let block = match kind {
        HEADER => {
            let header: Header =
                serde_json::from_slice(bytes).map_err(|_| "a header as this version writes it")?;
            check_header(&header)?;
            return Ok(Some(Block::Header(Box::new(header))));
        }
        STEPS => Block::Steps(read_steps(&mut read)?),
        DETAIL => Block::Detail(Arc::new(read_detail(&mut read)?)),
        LAYERS => Block::Layers(Arc::new(read_layers(&mut read)?)),
        END => Block::End(End {
            interrupted: read.u64()? == 1,
        }),
        _ => return Ok(None),
    };
    read.end()?;
    Ok(Some(block))
}

/// Views divide by these.
fn check_header(header: &Header) -> Result<(), Damage> {
    let some = 1..=1u64 << 32;
    let fine = (1..=1 << 20).contains(&header.gpus)
        && (1..=header.gpus).contains(&header.gpus_per_node)
        && header.gpus.is_multiple_of(header.gpus_per_node)
        && some.contains(&header.experts)
        && some.contains(&header.tokens_per_gpu)
        && (1..=1 << 42).contains(&header.copies_per_gpu)
        && (1..=10_000).contains(&header.strategies.len());
    match fine {
        true => Ok(()),
        false => Err("a header of a run with GPUs in whole nodes, experts and strategies"),
    }
}

/// Writes one field of all runs of all steps.
macro_rules! runs_column {
    ($out:ident, $steps:ident, $run:ident => $value:expr) => {{
        let values: Vec<u64> = $steps
            .iter()
            .flat_map(|step| &step.runs)
            .map(|$run| $value)
            .collect();
        $out.column(values.into_iter());
    }};
}

fn write_steps(out: &mut Out, steps: &[StepRecord]) {
    out.column(steps.iter().map(|step| u64::from(step.index)));
    out.column(steps.iter().map(|step| step.label));
    out.u64(steps.first().map_or(0, |step| step.runs.len()) as u64);
    let routing = || steps.iter().map(|step| &step.routing);
    out.reals(routing().map(|routing| routing.needed_factor));
    out.reals(routing().map(|routing| routing.max_over_mean));
    out.reals(routing().map(|routing| routing.variation));
    for routing in routing() {
        out.column(routing.hottest.iter().map(|(expert, _)| u64::from(*expert)));
        out.column(routing.hottest.iter().map(|(_, load)| *load));
        out.column(routing.bins.iter().map(|bin| u64::from(*bin)));
    }
    let mut plans: Vec<&str> = Vec::new();
    for run in steps.iter().flat_map(|step| &step.runs) {
        if !plans.contains(&&*run.plan) {
            plans.push(&run.plan);
        }
    }
    out.u64(plans.len() as u64);
    plans.iter().for_each(|plan| out.text(plan));
    let number = |plan: &str| plans.iter().position(|known| *known == plan).unwrap_or(0) as u64;
    runs_column!(out, steps, run => run.time);
    for stage in 0..STAGES {
        runs_column!(out, steps, run => run.stages[stage]);
    }
    runs_column!(out, steps, run => run.exposed);
    runs_column!(out, steps, run => run.all_to_all);
    runs_column!(out, steps, run => run.compute);
    runs_column!(out, steps, run => run.memory_bytes);
    runs_column!(out, steps, run => u64::from(run.fits) | u64::from(run.trial) << 1);
    runs_column!(out, steps, run => run.capacity_factor.to_bits());
    runs_column!(out, steps, run => run.dropped.to_bits());
    runs_column!(out, steps, run => number(&run.plan));
    // 0 for none.
    runs_column!(out, steps, run => run.oracle.map_or(0, |time| time + 1));
    runs_column!(out, steps, run => run.predicted.map_or(0, |time| time + 1));
}

fn read_steps(read: &mut In<'_>) -> Result<Vec<StepRecord>, Damage> {
    let index: Vec<u32> = read.smalls()?;
    let count = index.len();
    let label = read.column_of(count)?;
    let strategies: usize = read.small()?;
    let needed = read.reals_of(count)?;
    let max_over_mean = read.reals_of(count)?;
    let variation = read.reals_of(count)?;
    let mut steps = Vec::with_capacity(count);
    for step in 0..count {
        let experts: Vec<u32> = read.smalls()?;
        let loads = read.figures_of(experts.len())?;
        let routing = RoutingRecord {
            needed_factor: needed[step],
            max_over_mean: max_over_mean[step],
            variation: variation[step],
            hottest: experts.into_iter().zip(loads).collect(),
            bins: read.smalls()?,
        };
        steps.push(StepRecord {
            index: index[step],
            label: label[step],
            routing,
            runs: Vec::new(),
        });
    }
    let plans = (0..read.count()?)
        .map(|_| Ok(read.text()?.into()))
        .collect::<Result<Vec<Arc<str>>, Damage>>()?;
    let runs = count.checked_mul(strategies).ok_or("fewer runs")?;
    let time = read.figures_of(runs)?;
    let stages = (0..STAGES)
        .map(|_| read.figures_of(runs))
        .collect::<Result<Vec<_>, _>>()?;
    let exposed = read.figures_of(runs)?;
    let all_to_all = read.figures_of(runs)?;
    let compute = read.figures_of(runs)?;
    let memory = read.figures_of(runs)?;
    let flags = read.column_of(runs)?;
    let factor = read.column_of(runs)?;
    let dropped = read.column_of(runs)?;
    let plan = read.column_of(runs)?;
    let oracle = read.figures_of(runs)?;
    let predicted = read.figures_of(runs)?;
    for run in 0..runs {
        let plan = usize::try_from(plan[run])
            .ok()
            .and_then(|plan| plans.get(plan));
        steps[run / strategies].runs.push(RunRecord {
            time: time[run],
            stages: std::array::from_fn(|stage| stages[stage][run]),
            exposed: exposed[run],
            all_to_all: all_to_all[run],
            compute: compute[run],
            memory_bytes: memory[run],
            fits: flags[run] & 1 == 1,
            trial: flags[run] & 2 == 2,
            capacity_factor: f64::from_bits(factor[run]),
            dropped: f64::from_bits(dropped[run]),
            plan: plan.ok_or("a plan of the block")?.clone(),
            oracle: oracle[run].checked_sub(1),
            predicted: predicted[run].checked_sub(1),
        });
    }
    Ok(steps)
}

fn write_detail(out: &mut Out, detail: &Detail) {
    out.u64(u64::from(detail.step));
    out.u64(u64::from(detail.strategy));
    out.text(&detail.plan);
    out.u64(detail.time);
    out.u64(u64::from(detail.gpus));
    out.u64(u64::from(detail.gpus_per_node));
    let ops = &detail.ops;
    out.u64(ops.len() as u64);
    ops.iter().for_each(|op| out.text(&op.label));
    out.column(ops.iter().map(|op| {
        u64::from(op.stage) | u64::from(op.backward) << 3 | u64::from(op.communication) << 4
    }));
    out.column(ops.iter().map(|op| u64::from(op.chunk)));
    out.u64(detail.lanes.len() as u64);
    for lane in &detail.lanes {
        out.u64(u64::from(lane.rank));
        out.column(lane.spans.iter().map(|(start, _)| *start));
        out.column(lane.spans.iter().map(|(start, end)| end - start));
    }
    out.column(detail.path.iter().map(|on| u64::from(on.rank)));
    out.column(detail.path.iter().map(|on| u64::from(on.op)));
    out.column(detail.path.iter().map(|on| on.start));
    out.column(detail.path.iter().map(|on| on.waited));
    out.column(detail.path.iter().map(|on| on.ran));
    for column in detail.ranks.columns() {
        out.column(column.iter().copied());
    }
    out.u64(detail.links.len() as u64);
    for link in &detail.links {
        out.text(&link.name);
        out.u64(link.links);
        out.f64(link.bytes_per_s);
        out.u64(link.total_bytes);
        out.column(link.busiest.iter().map(|(index, _)| u64::from(*index)));
        out.column(link.busiest.iter().map(|(_, bytes)| *bytes));
    }
    out.u64(u64::from(detail.traffic.side));
    out.u64(u64::from(detail.traffic.ranks_per_block));
    out.column(detail.traffic.bytes.iter().copied());
    out.column(detail.loads.iter().copied());
}

fn read_detail(read: &mut In<'_>) -> Result<Detail, Damage> {
    let (step, strategy) = (read.small()?, read.small()?);
    let plan = read.text()?.into();
    let time = read.figure()?;
    let (gpus, gpus_per_node): (u32, u32) = (read.small()?, read.small()?);
    if gpus_per_node == 0 || gpus == 0 || !gpus.is_multiple_of(gpus_per_node) {
        return Err("GPUs in whole nodes");
    }
    let labels = (0..read.count()?)
        .map(|_| Ok(read.text()?.into()))
        .collect::<Result<Vec<Arc<str>>, Damage>>()?;
    let flags = read.column_of(labels.len())?;
    let chunks: Vec<u16> = read.smalls()?;
    if chunks.len() != labels.len() || flags.iter().any(|flags| (flags & 7) as usize >= STAGES) {
        return Err("operations of known stages");
    }
    let ops: Vec<OpInfo> = labels
        .into_iter()
        .zip(flags)
        .zip(chunks)
        .map(|((label, flags), chunk)| OpInfo {
            label,
            stage: (flags & 7) as u8,
            backward: flags & 8 != 0,
            communication: flags & 16 != 0,
            chunk,
        })
        .collect();
    let mut lanes = Vec::new();
    for _ in 0..read.count()? {
        let rank = read.small()?;
        let starts = read.figures_of(ops.len())?;
        let lengths = read.figures_of(ops.len())?;
        let ends = starts.iter().zip(lengths);
        let spans = ends
            .map(|(start, length)| (*start, start + length))
            .collect();
        lanes.push(Lane { rank, spans });
    }
    let ranks_on_path: Vec<u32> = read.smalls()?;
    let on_path = ranks_on_path.len();
    let ops_on_path: Vec<u32> = read.smalls()?;
    if ops_on_path.len() != on_path || ops_on_path.iter().any(|op| *op as usize >= ops.len()) {
        return Err("a path of operations of the program");
    }
    let (start, waited) = (read.figures_of(on_path)?, read.figures_of(on_path)?);
    let ran = read.figures_of(on_path)?;
    let path = (0..on_path)
        .map(|index| OnPath {
            rank: ranks_on_path[index],
            op: ops_on_path[index],
            start: start[index],
            waited: waited[index],
            ran: ran[index],
        })
        .collect();
    let mut ranks = Ranks::default();
    for column in ranks.columns_mut() {
        *column = read.figures()?;
        if column.len() != 1 && column.len() != gpus as usize {
            return Err("one figure a rank");
        }
    }
    let mut links = Vec::new();
    for _ in 0..read.count()? {
        let name = read.text()?.into();
        let count = read.figure()?;
        let bytes_per_s = read.f64()?;
        let total_bytes = read.figure()?;
        let busiest: Vec<u32> = read.smalls()?;
        let bytes = read.figures_of(busiest.len())?;
        links.push(LinkLoad {
            name,
            links: count,
            bytes_per_s,
            total_bytes,
            busiest: busiest.into_iter().zip(bytes).collect(),
        });
    }
    let (side, ranks_per_block): (u32, u32) = (read.small()?, read.small()?);
    let bytes = read.figures()?;
    if u64::from(side) * u64::from(side) != bytes.len() as u64 {
        return Err("a square matrix");
    }
    let traffic = Matrix {
        side,
        ranks_per_block,
        bytes,
    };
    let loads = read.figures()?;
    Ok(Detail {
        step,
        strategy,
        plan,
        time,
        gpus,
        gpus_per_node,
        ops,
        lanes,
        path,
        ranks,
        links,
        traffic,
        loads,
    })
}

fn write_layers(out: &mut Out, layers: &Layers) {
    out.column(layers.layers.iter().map(|layer| u64::from(*layer)));
    out.u64(u64::from(layers.experts));
    out.u64(u64::from(layers.bins));
    out.u64(layers.steps.len() as u64);
    for step in &layers.steps {
        out.u64(step.label);
        out.reals(step.needed_factor.iter().copied());
        // As differences from an even load.
        let even = MEAN_LOAD as u64;
        out.column(
            step.loads
                .iter()
                .map(|load| u64::from(*load).wrapping_sub(even)),
        );
    }
}

fn read_layers(read: &mut In<'_>) -> Result<Layers, Damage> {
    let layers: Vec<u32> = read.smalls()?;
    let (experts, bins): (u32, u32) = (read.small()?, read.small()?);
    let mut steps = Vec::new();
    for _ in 0..read.count()? {
        let label = read.u64()?;
        let needed_factor = read.reals_of(layers.len())?;
        let loads = read.column()?;
        if loads.len() as u64 != layers.len() as u64 * u64::from(bins) {
            return Err("a load of every layer and group of experts");
        }
        let whole = |load: u64| u16::try_from(load.wrapping_add(MEAN_LOAD as u64));
        let loads = loads
            .into_iter()
            .map(|load| whole(load).map_err(|_| "smaller loads"))
            .collect::<Result<_, _>>()?;
        steps.push(LayerStep {
            label,
            needed_factor,
            loads,
        });
    }
    Ok(Layers {
        layers,
        experts,
        bins,
        steps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dash::recording::Recording;
    use crate::dash::state::{Msg, State, View};
    use crate::dash::theme::{Depth, Ground, Theme};
    use crate::dash::{screen, update};
    use crate::run_file::Reader;
    use proptest::prelude::*;
    use std::io::Cursor;
    use std::sync::OnceLock;

    /// Kinds and payloads of a recorded run.
    fn payloads() -> &'static [(u8, Vec<u8>)] {
        static KNOWN: OnceLock<Vec<(u8, Vec<u8>)>> = OnceLock::new();
        KNOWN.get_or_init(|| {
            let file = include_bytes!("../../../tests/fixtures/small.moeplan");
            let mut reader = Reader::new(Cursor::new(&file[..]), "small".into());
            let blocks = reader.blocks().unwrap();
            blocks.iter().map(|block| encode(block).unwrap()).collect()
        })
    }

    #[test]
    fn payloads_come_back() {
        for (kind, bytes) in payloads() {
            let block = decode(*kind, bytes).unwrap().unwrap();
            assert_eq!(encode(&block).unwrap(), (*kind, bytes.clone()));
        }
        assert_eq!(decode(99, b"from the future"), Ok(None));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Payloads with wrong bytes under a right checksum: an error, or figures that views survive.
        #[test]
        fn hostile_payloads_do_no_harm(
            changes in proptest::collection::vec((0usize..100, any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut payloads = payloads().to_vec();
            let count = payloads.len();
            for (block, at, byte) in changes {
                let (_, bytes) = &mut payloads[block % count];
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let mut run = Recording::default();
            let mut blocks = Vec::new();
            for (kind, bytes) in &payloads {
                if let Ok(Some(block)) = decode(*kind, bytes) && run.push(block.clone()).is_ok() {
                    blocks.push(block);
                }
            }
            let theme = Theme { depth: Depth::True, ground: Ground::Dark };
            let mut state = State::new("hostile".into(), theme, (100, 30));
            update::update(&mut state, Msg::Blocks(blocks));
            for view in View::ALL {
                state.view = view;
                screen(&state);
            }
        }
    }
}
