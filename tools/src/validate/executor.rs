//! Holds the simulator of this machine against the executor on it: held-out steps of a recorded trace
//! under many strategies, each run and simulated on the same program.

use crate::error::{Error, Place};
use crate::machine;
use crate::play::refused;
use crate::routing::shape_of;
use crate::session::Session;
use crate::settings::BackendKind;
use crate::validate::predict::Constants;
use moeplan_executor::Backend;
use moeplan_executor::assign::tokens_of;
use moeplan_executor::memory::input_bytes;
use moeplan_executor::{Inputs, Routing as Routed, execute};
use moeplan_sim::compile::{Load, Plan, Routing, Source, compile};
use moeplan_sim::ir::{Program, Stage};
use moeplan_sim::spec::{
    AllToAll, DType, Encode, Experts, Gate, LayerSpec, Layout, Padding, Phase, ResolvedLayer,
};
use moeplan_sim::units::Time;
use moeplan_traces::{RoutingStep, shipped};
use serde::Serialize;

/// One step under one strategy.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// The layer.
    pub layer: String,
    /// Number of the step in its recording.
    pub step: u64,
    /// The strategy.
    pub strategy: String,
    /// Median over the repeats.
    pub measured_ns: u64,
    /// (slowest - fastest) / median of the repeats.
    pub spread: f64,
    /// Ours.
    pub simulated_ns: u64,
    /// Ours over theirs, less one.
    pub relative_error: f64,
    /// Core time of each stage over all ranks, measured and simulated.
    pub stages: Vec<StageCase>,
    /// Most bytes of buffers on any rank, measured.
    pub peak_bytes: u64,
    /// As the memory model has them, without the optimizer's state, which no operation touches.
    pub peak_bytes_simulated: u64,
}

/// A stage of a case.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StageCase {
    /// Which.
    pub stage: &'static str,
    /// Core time over all ranks.
    pub measured_ns: u64,
    /// Ours.
    pub simulated_ns: u64,
}

/// How good predictions are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Cases.
    pub cases: usize,
    /// Mean relative error of step times, without sign.
    pub mape: f64,
    /// 95th percentile of it.
    pub p95: f64,
    /// Mean error, with sign.
    pub bias: f64,
    /// Mean over layers and steps of Spearman's rank correlation of strategies.
    pub rank_correlation: f64,
    /// Mean over layers and steps of what the simulator's pick loses against the fastest measured.
    pub mean_regret: f64,
    /// Share of layers and steps whose pick is within 5 % of the fastest.
    pub picks_within_5_percent: f64,
    /// Mean error of core time by stage.
    pub stage_mape: Vec<(String, f64)>,
    /// Largest error of the memory model.
    pub memory_error_max: f64,
    /// Median over the cases of the spread of repeats: what no model can beat.
    pub spread: f64,
}

/// Sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Experts a rank.
    pub experts_per_rank: f64,
    /// T.
    pub tokens_per_step: u64,
    /// D.
    pub model_dim: u64,
    /// H.
    pub hidden_dim: u64,
}

impl Sizes {
    /// Layers that a backend runs in milliseconds: whole experts on every rank, and experts over two ranks each.
    pub fn of(backend: BackendKind) -> [Sizes; 2] {
        let layer = |experts_per_rank, tokens_per_step, model_dim, hidden_dim| Sizes {
            experts_per_rank,
            tokens_per_step,
            model_dim,
            hidden_dim,
        };
        match backend {
            BackendKind::Cpu => [layer(2.0, 256, 448, 640), layer(0.5, 320, 320, 448)],
            BackendKind::Cuda => [layer(2.0, 2048, 1024, 1024), layer(0.5, 2048, 1024, 1024)],
        }
    }
}

/// What is validated.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Sizes of the layers.
    pub sizes: [Sizes; 2],
    /// Their number type.
    pub dtype: DType,
    /// Ranks.
    pub ranks: u64,
    /// Held-out steps of the trace.
    pub steps: usize,
    /// Runs of every case.
    pub repeats: usize,
    /// Seed of inputs and resampling.
    pub seed: u64,
}

/// The layers, by name. Experts are only split where ranks pair up.
fn layers(setting: &Setting) -> Result<Vec<(String, ResolvedLayer)>, Error> {
    let ranks = setting.ranks;
    let layer = |sizes: &Sizes| {
        let Sizes {
            experts_per_rank,
            tokens_per_step,
            model_dim,
            hidden_dim,
        } = *sizes;
        let spec = LayerSpec {
            tokens_per_step,
            model_dim,
            hidden_dim,
            experts: Experts::PerGpu(experts_per_rank),
            top_k: 2,
            capacity_factor: 1.25,
            dtype: setting.dtype,
            gate: Gate::Linear,
        };
        let name =
            format!("E_g={experts_per_rank} T={tokens_per_step} D={model_dim} H={hidden_dim}");
        spec.resolve(ranks)
            .map(|layer| (name, layer))
            .map_err(|error| refused(&error))
    };
    let pairs = ranks >= 4 && ranks.is_multiple_of(2);
    let possible = |sizes: &&Sizes| pairs || sizes.experts_per_rank >= 1.0;
    setting.sizes.iter().filter(possible).map(layer).collect()
}

/// The strategies that are told apart.
fn plans(layer: &ResolvedLayer) -> Vec<(String, Plan)> {
    let base = Plan::PLAIN;
    let mut plans = Vec::new();
    let mut add = |what: &str, plan: Plan| plans.push((format!("{plan}{what}"), plan));
    for adaptive_r in layer.valid_adaptive_r() {
        add("", Plan { adaptive_r, ..base });
        if adaptive_r == 0 {
            continue;
        }
        for degree in [2, 4] {
            let plan = Plan {
                adaptive_r,
                forward_degree: degree,
                backward_degree: degree,
                ..base
            };
            add("", plan);
        }
        let all_to_all = AllToAll::TwoDh;
        add(
            "",
            Plan {
                adaptive_r,
                all_to_all,
                ..base
            },
        );
    }
    add(
        " dense",
        Plan {
            encode: Encode::Dense,
            ..base
        },
    );
    add(
        " conventional",
        Plan {
            layout: Layout::Conventional,
            ..base
        },
    );
    add(
        " dropless",
        Plan {
            padding: Padding::Dropless,
            ..base
        },
    );
    plans
}

/// Everything one case is run and simulated from.
struct Ready {
    name: String,
    program: Program,
    times: Vec<Time>,
    stages: Vec<Vec<f64>>,
    peak_bytes: u64,
    modelled_bytes: u64,
}

/// Runs and simulates all cases.
///
/// # Errors
/// A machine that refuses, or a run that disagrees with its program.
pub fn cases(
    constants: &Constants,
    setting: Setting,
    backend: &mut dyn Backend,
    session: &mut Session<'_>,
) -> Result<Vec<Case>, Error> {
    let trace = shipped("digits")?;
    let recorded: Vec<&RoutingStep> = trace
        .steps
        .iter()
        .filter(|step| step.layer() == 0)
        .collect();
    if setting.steps == 0 || setting.steps > recorded.len() {
        let message = format!("expected 1 to {}, found {}", recorded.len(), setting.steps);
        return Err(Error::input(Place::flag("--steps"), message));
    }
    let layers = layers(&setting)?;
    let progress = session.progress((layers.len() * setting.steps) as u64);
    let mut cases = Vec::new();
    for (name, layer) in &layers {
        for index in 0..setting.steps {
            let recorded = recorded
                [index * (recorded.len() - 1) / setting.steps.max(2).saturating_sub(1).max(1)];
            cases.extend(step(name, layer, recorded, constants, setting, backend)?);
            progress.inc(1);
            if session.is_interrupted() {
                progress.finish_and_clear();
                return Ok(cases);
            }
        }
    }
    progress.finish_and_clear();
    Ok(cases)
}

/// Two nodes, where there are ranks for them, so that 2DH is another algorithm than linear.
fn gpus_per_node(ranks: u64) -> u64 {
    if ranks >= 4 && ranks.is_multiple_of(2) {
        ranks / 2
    } else {
        ranks
    }
}

fn step(
    name: &str,
    layer: &ResolvedLayer,
    recorded: &RoutingStep,
    constants: &Constants,
    setting: Setting,
    backend: &mut dyn Backend,
) -> Result<Vec<Case>, Error> {
    let counts = recorded.resample(&shape_of(layer)?, setting.seed)?;
    let tokens = tokens_of(&counts)?;
    let inputs = Inputs::random(layer, setting.seed, Routed::Forced(tokens.clone()));
    let gpus_per_node = gpus_per_node(layer.world_size);
    let mut ready = Vec::new();
    for (strategy, plan) in plans(layer) {
        let load = Load::new(
            layer,
            layer.spec.capacity_factor,
            plan.padding,
            &Routing::Step(&counts),
        );
        let source = Source {
            layer,
            gpus_per_node,
            plan,
            load: &load,
            phase: Phase::Training,
        };
        let program = compile(source).map_err(|error| refused(&error))?;
        machine::check_memory(backend, &program, layer)?;
        ready.push(Ready {
            name: strategy,
            program,
            times: Vec::new(),
            stages: Vec::new(),
            peak_bytes: 0,
            modelled_bytes: 0,
        });
    }
    // Repeats outside: what disturbs the machine for a while disturbs all strategies alike. The
    // first run of each is a warm-up.
    for repeat in 0..=setting.repeats {
        for case in &mut ready {
            let ran = execute(&case.program, layer, backend, &inputs, &tokens)?;
            if repeat > 0 {
                case.times.push(constants.measured(&ran));
                case.stages.push(by_stage(&case.program, |op| {
                    ran.busy[op]
                        .iter()
                        .map(|time| time.as_secs_f64() * 1e9)
                        .sum()
                }));
                let most = |bytes: &[u64]| bytes.iter().copied().max().unwrap_or(0);
                case.peak_bytes = most(&ran.peak_bytes);
                case.modelled_bytes = most(&ran.modelled_bytes);
            }
        }
    }
    let finished = ready.into_iter();
    Ok(finished
        .map(|case| finish(name, recorded.step(), case, constants))
        .collect())
}

/// A figure by stage: the sum over its operations.
fn by_stage(program: &Program, of: impl Fn(usize) -> f64) -> Vec<f64> {
    let stage = |stage: Stage| {
        let ops = program.ops.iter().enumerate();
        ops.filter(|(_, op)| op.stage == stage)
            .map(|(index, _)| of(index))
            .sum()
    };
    Stage::ALL.into_iter().map(stage).collect()
}

fn middle<T: Copy>(sorted: &[T]) -> T {
    sorted[sorted.len() / 2]
}

fn finish(name: &str, step: u64, mut case: Ready, constants: &Constants) -> Case {
    let predicted = constants.predict(&case.program);
    case.times.sort_unstable();
    let measured = middle(&case.times);
    let widest = case.times[case.times.len() - 1] - case.times[0];
    let ours = by_stage(&case.program, |op| predicted.ops_ns[op]);
    let stages = Stage::ALL.into_iter().enumerate().map(|(index, stage)| {
        let mut times: Vec<f64> = case.stages.iter().map(|stages| stages[index]).collect();
        times.sort_by(f64::total_cmp);
        StageCase {
            stage: stage.name(),
            measured_ns: middle(&times) as u64,
            simulated_ns: ours[index] as u64,
        }
    });
    // The layer's inputs are its neighbours'; here they are held too.
    let ranks = 0..case.program.world_size;
    let inputs = ranks.map(|rank| input_bytes(&case.program, rank)).max();
    let inputs = inputs.unwrap_or(0);
    let simulated = predicted.step;
    Case {
        layer: name.to_owned(),
        step,
        strategy: case.name,
        measured_ns: measured.as_ns(),
        spread: widest.as_secs_f64() / measured.as_secs_f64(),
        simulated_ns: simulated.as_ns(),
        relative_error: simulated.as_secs_f64() / measured.as_secs_f64() - 1.0,
        stages: stages.filter(|stage| stage.measured_ns > 0).collect(),
        peak_bytes: case.peak_bytes.saturating_sub(inputs),
        peak_bytes_simulated: case.modelled_bytes.saturating_sub(inputs),
    }
}

/// Ranks of `values`, ties sharing their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |value: &f64| values.iter().filter(|other| *other < value).count() as f64;
    let equal = |value: &f64| values.iter().filter(|other| *other == value).count() as f64;
    values
        .iter()
        .map(|value| below(value) + (equal(value) - 1.0) / 2.0)
        .collect()
}

/// Spearman's rank correlation.
fn rank_correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum()
    };
    let size = (product(&a, &a) * product(&b, &b)).sqrt();
    if size > 0.0 {
        product(&a, &b) / size
    } else {
        1.0
    }
}

/// Sums `cases` up, which are not empty.
pub fn summarise(cases: &[Case]) -> Summary {
    let n = cases.len() as f64;
    let mut errors: Vec<f64> = cases.iter().map(|case| case.relative_error.abs()).collect();
    errors.sort_by(f64::total_cmp);
    let mut spreads: Vec<f64> = cases.iter().map(|case| case.spread).collect();
    spreads.sort_by(f64::total_cmp);
    let groups: Vec<&[Case]> = cases
        .chunk_by(|a, b| (&a.layer, a.step) == (&b.layer, b.step))
        .collect();
    let regret = |group: &&[Case]| {
        let picked = group.iter().min_by_key(|case| case.simulated_ns);
        let best = group.iter().map(|case| case.measured_ns).min();
        match (picked, best) {
            (Some(picked), Some(best)) => picked.measured_ns as f64 / best.max(1) as f64 - 1.0,
            _ => 0.0,
        }
    };
    let correlation = |group: &&[Case]| {
        let measured: Vec<f64> = group.iter().map(|case| case.measured_ns as f64).collect();
        let ours: Vec<f64> = group.iter().map(|case| case.simulated_ns as f64).collect();
        rank_correlation(&measured, &ours)
    };
    let regrets: Vec<f64> = groups.iter().map(regret).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let stage_mape = Stage::ALL.into_iter().filter_map(|stage| {
        let errors: Vec<f64> = cases
            .iter()
            .flat_map(|case| &case.stages)
            .filter(|found| found.stage == stage.name())
            .map(|found| (found.simulated_ns as f64 / found.measured_ns as f64 - 1.0).abs())
            .collect();
        (!errors.is_empty()).then(|| (stage.name().to_owned(), mean(&errors)))
    });
    let memory = cases
        .iter()
        .map(|case| (case.peak_bytes as f64 / case.peak_bytes_simulated.max(1) as f64 - 1.0).abs());
    Summary {
        cases: cases.len(),
        mape: mean(&errors),
        p95: errors[(errors.len() * 95).div_ceil(100).max(1) - 1],
        bias: cases.iter().map(|case| case.relative_error).sum::<f64>() / n,
        rank_correlation: mean(&groups.iter().map(correlation).collect::<Vec<_>>()),
        mean_regret: mean(&regrets),
        picks_within_5_percent: regrets.iter().filter(|regret| **regret <= 0.05).count() as f64
            / regrets.len().max(1) as f64,
        stage_mape: stage_mape.collect(),
        memory_error_max: memory.fold(0.0, f64::max),
        spread: middle(&spreads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation_knows_order_and_ties() {
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]), 1.0);
        assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        assert_eq!(ranks(&[5.0, 5.0, 9.0]), [0.5, 0.5, 2.0]);
    }
}
