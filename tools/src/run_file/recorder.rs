//! A run as it is played, as blocks: to a file, to the dashboard, or both.

use super::detail::{Source, detail, stage_index};
use super::frame::Writer;
use super::model::{
    Block, End, HOTTEST, Header, LayerStep, Layers, MOST_BINS, RoutingRecord, RunRecord, STAGES,
    StepRecord, binned,
};
use crate::error::Error;
use crate::output::comparison;
use crate::play::{Seen, Watch};
use crate::resolve::{Planned, Resolved};
use crate::settings::StrategySettings;
use moeplan_sim::compile::{Capacity, Routing};
use moeplan_sim::policy::Decided;
use moeplan_sim::simulate::Step;
use moeplan_sim::spec::ResolvedLayer;
use moeplan_sim::units::Time;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps that are kept in full.
const DETAILS: usize = 24;
/// Steps of the trace whose layers are all kept.
const MOST_LAYER_STEPS: usize = 512;
/// Layers that are kept.
const MOST_LAYERS: usize = 128;
/// Steps of a block, at most; fewer where steps are slow, so that followers see them.
const STEPS_PER_BLOCK: usize = 512;
/// Longest time a step waits to be written.
const PATIENCE: Duration = Duration::from_millis(250);

/// Where blocks go.
pub trait Sink: Send {
    /// Takes a block.
    ///
    /// # Errors
    /// A disk that is full; nobody who listens.
    fn take(&mut self, block: Block) -> Result<(), Error>;
}

impl Sink for Writer {
    fn take(&mut self, block: Block) -> Result<(), Error> {
        self.append(&block)
    }
}

/// Watches a run and hands on blocks.
pub struct Recorder<'a> {
    command: &'static str,
    resolved: &'a Resolved,
    measured: bool,
    sinks: Vec<Box<dyn Sink + 'a>>,
    waiting: Vec<StepRecord>,
    flushed: Instant,
}

impl<'a> Recorder<'a> {
    /// A recorder of the run of `resolved` by `command`.
    pub fn new(
        command: &'static str,
        resolved: &'a Resolved,
        measured: bool,
        sinks: Vec<Box<dyn Sink + 'a>>,
    ) -> Recorder<'a> {
        Recorder {
            command,
            resolved,
            measured,
            sinks,
            waiting: Vec::new(),
            flushed: Instant::now(),
        }
    }

    fn hand_on(&mut self, block: Block) -> Result<(), Error> {
        for sink in &mut self.sinks {
            sink.take(block.clone())?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.flushed = Instant::now();
        match self.waiting.is_empty() {
            true => Ok(()),
            false => {
                let steps = std::mem::take(&mut self.waiting);
                self.hand_on(Block::Steps(steps))
            }
        }
    }
}

impl Watch for Recorder<'_> {
    fn start(&mut self, planned: &[Planned]) -> Result<(), Error> {
        if self.sinks.is_empty() {
            return Ok(());
        }
        let header = header(self.command, self.resolved, planned, self.measured)?;
        self.hand_on(Block::Header(Box::new(header)))?;
        match layers(self.resolved)? {
            Some(layers) => self.hand_on(Block::Layers(Arc::new(layers))),
            None => Ok(()),
        }
    }

    fn wants_traces(&self, index: usize) -> bool {
        let steps = self.resolved.routing.len();
        // Spread from the first to the last.
        let kept = DETAILS.min(steps);
        let is_kept = |nth: usize| nth * (steps - 1) / (kept - 1).max(1) == index;
        !self.sinks.is_empty() && (0..kept).any(is_kept)
    }

    fn step(&mut self, seen: Seen<'_>) -> Result<(), Error> {
        if self.sinks.is_empty() {
            return Ok(());
        }
        let loads = loads(&seen);
        self.waiting.push(record(&seen, &loads));
        let last = seen.index + 1 == self.resolved.routing.len();
        if !seen.traces.is_empty()
            || last
            || self.waiting.len() >= STEPS_PER_BLOCK
            || self.flushed.elapsed() >= PATIENCE
        {
            self.flush()?;
        }
        for (strategy, trace) in seen.traces.iter().enumerate() {
            let detail = detail(Source {
                step: seen.index,
                strategy,
                trace,
                hardware: &self.resolved.hardware,
                loads: &loads,
                also: &(0..0),
            });
            self.hand_on(Block::Detail(Arc::new(detail)))?;
        }
        Ok(())
    }

    fn end(&mut self, interrupted: bool) -> Result<(), Error> {
        self.flush()?;
        self.hand_on(Block::End(End { interrupted }))
    }
}

/// Token copies by expert.
fn loads(seen: &Seen<'_>) -> Vec<u64> {
    match seen.routing {
        Some(step) => step.expert_loads(),
        None => balanced(seen.layer),
    }
}

/// Token copies by expert where routing is balanced.
pub fn balanced(layer: &ResolvedLayer) -> Vec<u64> {
    let copies = layer.routed_copies() * layer.world_size;
    vec![copies / layer.num_experts; layer.num_experts as usize]
}

fn record(seen: &Seen<'_>, loads: &[u64]) -> StepRecord {
    StepRecord {
        index: seen.index as u32,
        label: seen.label,
        routing: routing_record(seen, loads),
        runs: seen
            .decided
            .iter()
            .map(|decided| run_record(decided, seen.predicted))
            .collect(),
    }
}

fn routing_record(seen: &Seen<'_>, loads: &[u64]) -> RoutingRecord {
    let routing = Routing::of(seen.routing);
    let count = loads.len().max(1) as f64;
    let mean = loads.iter().sum::<u64>() as f64 / count;
    let squares: f64 = loads.iter().map(|load| (*load as f64 - mean).powi(2)).sum();
    let mut hottest: Vec<(u32, u64)> = (0u32..).zip(loads.iter().copied()).collect();
    let kept = HOTTEST.min(hottest.len());
    if kept > 0 {
        let most = |expert: &(u32, u64)| (std::cmp::Reverse(expert.1), expert.0);
        hottest.select_nth_unstable_by_key(kept - 1, most);
        hottest.truncate(kept);
        hottest.sort_by_key(most);
    }
    let positive = mean.max(f64::MIN_POSITIVE);
    RoutingRecord {
        needed_factor: Capacity::of(seen.layer, 0.0, &routing).factor,
        max_over_mean: hottest
            .first()
            .map_or(0.0, |(_, load)| *load as f64 / positive),
        variation: (squares / count).sqrt() / positive,
        hottest,
        bins: binned(loads, MOST_BINS),
    }
}

fn run_record(decided: &Decided, predicted: Option<Time>) -> RunRecord {
    let step: &Step = &decided.step;
    let mut stages = [0; STAGES];
    for stage in &step.stages {
        stages[usize::from(stage_index(stage.stage))] = stage.busy.as_ns();
    }
    RunRecord {
        time: step.time.as_ns(),
        stages,
        exposed: step.exposed_communication.as_ns(),
        all_to_all: step.all_to_all.as_ns(),
        compute: step.compute.as_ns(),
        memory_bytes: step.memory_bytes,
        fits: step.fits,
        capacity_factor: step.capacity_factor,
        dropped: step.dropped_fraction,
        plan: step.plan.to_string().into(),
        trial: decided.trial,
        oracle: decided.oracle.map(Time::as_ns),
        predicted: predicted.map(Time::as_ns),
    }
}

/// The header of the run of `resolved`, with `planned` as the strategies in force.
fn header(
    command: &str,
    resolved: &Resolved,
    planned: &[Planned],
    measured: bool,
) -> Result<Header, Error> {
    let mut shown = resolved.clone();
    // A capacity that covers the routing has been worked out by now.
    shown.study.strategy = planned
        .iter()
        .map(|planned| StrategySettings::of(&planned.strategy))
        .collect();
    let layer = resolved.layer(0);
    Ok(Header {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        command: command.to_owned(),
        seed: resolved.seed,
        measured,
        strategies: planned
            .iter()
            .map(|planned| planned.strategy.name.clone())
            .collect(),
        steps: resolved.routing.len() as u64,
        gpus: layer.world_size,
        gpus_per_node: resolved.gpus_per_node,
        experts: layer.num_experts,
        copies_per_gpu: layer.routed_copies(),
        tokens_per_gpu: layer.tokens(),
        memory_bytes: resolved.hardware.memory_bytes(),
        cluster: resolved.hardware.description.clone(),
        layer: comparison::layer_line(resolved),
        routing: resolved.routing.describe(),
        settings: crate::command::compare::settings(&shown)?,
    })
}

/// All MoE layers of the trace, where there is one.
fn layers(resolved: &Resolved) -> Result<Option<Layers>, Error> {
    let mut layers = Layers::default();
    let played: Vec<u64> = (0..resolved.routing.len())
        .map(|index| resolved.routing.label(index))
        .collect();
    let stride = played.len().div_ceil(MOST_LAYER_STEPS).max(1);
    let kept: std::collections::BTreeSet<u64> = played.into_iter().step_by(stride).collect();
    resolved.routing.all_layers(&mut |step| {
        let experts = step.num_experts() as u32;
        if layers.experts == 0 {
            layers.experts = experts;
            layers.bins = experts.min(MOST_BINS as u32);
        }
        if experts != layers.experts || !kept.contains(&step.step()) {
            return;
        }
        let place = match layers
            .layers
            .iter()
            .position(|layer| *layer == step.layer())
        {
            Some(place) => place,
            None if layers.layers.len() < MOST_LAYERS => {
                layers.layers.push(step.layer());
                layers.layers.len() - 1
            }
            None => return,
        };
        let bins = layers.bins as usize;
        let at = match layers
            .steps
            .iter()
            .rposition(|known| known.label == step.step())
        {
            Some(at) => at,
            None => {
                layers.steps.push(LayerStep {
                    label: step.step(),
                    ..LayerStep::default()
                });
                layers.steps.len() - 1
            }
        };
        let known = &mut layers.steps[at];
        known
            .needed_factor
            .resize(known.needed_factor.len().max(place + 1), f64::NAN);
        known
            .loads
            .resize(known.loads.len().max((place + 1) * bins), 0);
        known.needed_factor[place] = step.needed_capacity_factor();
        known.loads[place * bins..][..bins].copy_from_slice(&binned(&step.expert_loads(), bins));
    })?;
    if layers.layers.is_empty() {
        return Ok(None);
    }
    let (count, bins) = (layers.layers.len(), layers.bins as usize);
    for step in &mut layers.steps {
        step.needed_factor.resize(count, f64::NAN);
        step.loads.resize(count * bins, 0);
    }
    layers.steps.sort_by_key(|step| step.label);
    Ok(Some(layers))
}
