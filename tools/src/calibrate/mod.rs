//! Measures this machine and writes it down as hardware that the simulator loads.
//!
//! The machine is measured through the executor itself: steps of made-up, even routing run as any
//! other step does, and the core time of every operation is a sample of what it asked for. What a
//! step takes beyond its operations gives the rest.

mod cases;
mod fit;

use crate::error::{Error, Place};
use crate::machine;
use crate::play::refused;
use crate::session::Session;
use cases::{Case, Purpose, cases};
use moeplan_executor::assign::tokens_of;
use moeplan_executor::cpu::{Cpu, overlap};
use moeplan_executor::{Inputs, Routing as Routed, execute};
use moeplan_sim::cost::cpu::{CpuModel, Demand, Order, demand};
use moeplan_sim::cost::price::price;
use moeplan_sim::engine::run;
use moeplan_sim::hardware::{CpuGemm, CpuParams, Curve};
use moeplan_sim::ir::Program;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// One run of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sample {
    case: String,
    round: usize,
    step_us: f64,
    /// Core time of each operation, mean over ranks.
    ops_us: Vec<f64>,
}

/// How much rounds differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Cases.
    pub cases: usize,
    /// Rounds of each.
    pub rounds: usize,
    /// Median over the cases of (slowest - fastest) / median of their step times.
    pub step_time: f64,
}

/// A measured machine.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// Its constants.
    pub params: CpuParams,
    /// How much to believe them.
    pub spread: Spread,
    /// Whether the user stopped before all rounds were done.
    pub interrupted: bool,
}

/// Measures `rounds` rounds of all cases. Runs are kept in `partial`, and those already there are
/// not repeated.
///
/// # Errors
/// A machine that refuses, or a file that cannot be read or written.
pub fn calibrate(
    rounds: usize,
    partial: Option<&Path>,
    session: &mut Session<'_>,
) -> Result<Calibration, Error> {
    let cores = machine::cores();
    let cases = cases(cores).map_err(|error| refused(&error))?;
    let mut samples = match partial {
        Some(path) => resume(path)?,
        None => Vec::new(),
    };
    let progress = session.progress((cases.len() * rounds) as u64);
    let mut interrupted = false;
    // Rounds outside: what disturbs the machine for a while disturbs all cases alike.
    'rounds: for round in 0..rounds {
        for case in &cases {
            progress.inc(1);
            if samples
                .iter()
                .any(|known| known.case == case.id && known.round == round)
            {
                continue;
            }
            if session.is_interrupted() {
                interrupted = true;
                break 'rounds;
            }
            let sample = measure(case, round)?;
            if let Some(path) = partial {
                keep(path, &sample)?;
            }
            samples.push(sample);
        }
    }
    progress.finish_and_clear();
    let measured: Vec<Measured> = cases
        .iter()
        .filter_map(|case| Measured::new(case, &samples).transpose())
        .collect::<Result<_, Error>>()?;
    let beside = overlap(20)?;
    Ok(Calibration {
        params: params(cores, &measured, beside)?,
        spread: spread(&measured, rounds),
        interrupted,
    })
}

/// Runs a case once to warm up and once in earnest.
fn measure(case: &Case, round: usize) -> Result<Sample, Error> {
    let routing = case.routing()?;
    let tokens = tokens_of(&routing)?;
    let program = case.program(&routing).map_err(|error| refused(&error))?;
    let mut backend = Cpu::new();
    machine::check_memory(&backend, &program, &case.layer)?;
    let inputs = Inputs::random(&case.layer, round as u64, Routed::Forced(tokens.clone()));
    execute(&program, &case.layer, &mut backend, &inputs, &tokens)?;
    let ran = execute(&program, &case.layer, &mut backend, &inputs, &tokens)?;
    let mean = |ranks: &Vec<moeplan_sim::units::Time>| {
        let total: f64 = ranks.iter().map(|time| time.as_secs_f64()).sum();
        total * 1e6 / ranks.len() as f64
    };
    Ok(Sample {
        case: case.id.clone(),
        round,
        step_us: ran.timeline.step_time().as_secs_f64() * 1e6,
        ops_us: ran.busy.iter().map(mean).collect(),
    })
}

/// Runs kept by an earlier, interrupted calibration; a last line cut short is dropped.
fn resume(path: &Path) -> Result<Vec<Sample>, Error> {
    let name = path.display().to_string();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { path: name, source }),
    };
    let mut samples = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|source| Error::Read {
            path: name.clone(),
            source,
        })?;
        if let Ok(sample) = serde_json::from_str(&line) {
            samples.push(sample);
        }
    }
    Ok(samples)
}

fn keep(path: &Path, sample: &Sample) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: path.display().to_string(),
        source,
    };
    let line = serde_json::to_string(sample)
        .map_err(|error| Error::Unexpected(format!("a sample: {error}")))?;
    let file = OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.map_err(failed)?;
    // A leading newline ends a line that an interrupted run cut short.
    writeln!(file, "\n{line}").map_err(failed)
}

/// A case with the medians of its runs.
struct Measured {
    purpose: Purpose,
    program: Program,
    step_us: f64,
    ops_us: Vec<f64>,
    relative_spread: f64,
}

impl Measured {
    fn new(case: &Case, samples: &[Sample]) -> Result<Option<Measured>, Error> {
        let routing = case.routing()?;
        let program = case.program(&routing).map_err(|error| refused(&error))?;
        let runs: Vec<&Sample> = samples
            .iter()
            .filter(|sample| sample.case == case.id && sample.ops_us.len() == program.ops.len())
            .collect();
        if runs.is_empty() {
            return Ok(None);
        }
        let mut steps: Vec<f64> = runs.iter().map(|run| run.step_us).collect();
        let step_us = fit::median(&mut steps);
        let ops_us = (0..program.ops.len())
            .map(|op| fit::median(&mut runs.iter().map(|run| run.ops_us[op]).collect::<Vec<_>>()))
            .collect();
        Ok(Some(Measured {
            purpose: case.purpose,
            relative_spread: (steps[steps.len() - 1] - steps[0]) / step_us,
            program,
            step_us,
            ops_us,
        }))
    }

    /// What each operation asked of a core, and the core time it took.
    fn demands(&self) -> impl Iterator<Item = (Demand, f64)> + '_ {
        let ops = self.program.ops.iter().zip(&self.ops_us);
        ops.map(|(op, us)| (demand(&self.program, op, 0), *us))
    }

    /// Operations of the compute stream and meetings: what the time of a tiny step is made of.
    fn overheads(&self) -> [f64; 2] {
        let meetings = self
            .program
            .ops
            .iter()
            .filter(|op| op.kind.scope(&self.program.traffic).is_some())
            .count();
        [self.program.ops.len() as f64, meetings as f64]
    }
}

fn spread(measured: &[Measured], rounds: usize) -> Spread {
    let mut spreads: Vec<f64> = measured.iter().map(|case| case.relative_spread).collect();
    Spread {
        cases: measured.len(),
        rounds,
        step_time: match spreads.is_empty() {
            true => 0.0,
            false => fit::rounded(fit::median(&mut spreads)),
        },
    }
}

fn of(measured: &[Measured], purpose: Purpose) -> impl Iterator<Item = &Measured> {
    measured.iter().filter(move |case| case.purpose == purpose)
}

fn params(cores: u64, measured: &[Measured], beside: (f64, f64)) -> Result<CpuParams, Error> {
    let lacking = |what: &str| {
        let message = format!("expected measurements of {what}, found none: run it again to go on");
        Error::input(Place::default(), message)
    };
    let mut products: BTreeMap<Order, Vec<([f64; 3], f64)>> = BTreeMap::new();
    let mut passes: BTreeMap<&'static str, Vec<(f64, f64)>> = BTreeMap::new();
    let operations = || of(measured, Purpose::Operations).flat_map(Measured::demands);
    for (demand, us) in operations() {
        match (&demand.products[..], demand.pass) {
            ([], Some((name, bytes))) => passes.entry(name).or_default().push((bytes, us)),
            ([only], None) => {
                let of_order = products.entry(only.order).or_default();
                of_order.push((only.shape, us / only.count));
            }
            (_, _) => {}
        }
    }
    let terms = |order| match products.get(&order) {
        Some(samples) => Ok(fit::gemm(samples)),
        None => Err(lacking("matrix products")),
    };
    let mut params = CpuParams {
        cores,
        launch_us: Curve(vec![[1.0, 1.0]]),
        meeting_us: Curve(vec![[1.0, 1.0]]),
        sharing: Curve(Vec::new()),
        gemm: CpuGemm {
            plain: terms(Order::Plain)?,
            right_transposed: terms(Order::RightTransposed)?,
            left_transposed: terms(Order::LeftTransposed)?,
        },
        passes: BTreeMap::new(),
        gemm_beside_copy: fit::rounded(beside.0),
        copy_beside_gemm: fit::rounded(beside.1),
    };
    // Where products and a pass come together, the pass is what the products leave.
    let model = CpuModel::new(&params, 1);
    for (demand, us) in operations().filter(|(demand, _)| !demand.products.is_empty()) {
        if let Some((name, bytes)) = demand.pass {
            let products = Demand {
                pass: None,
                ..demand
            };
            let left = (us - model.core_us(&products)).max(0.02 * us);
            passes.entry(name).or_default().push((bytes, left));
        }
    }
    for (name, samples) in passes {
        params
            .passes
            .extend(fit::curve(&samples).map(|curve| (name.to_owned(), curve)));
    }
    overheads(&mut params, measured);
    sharing(&mut params, measured);
    if params.sharing.0.is_empty() {
        return Err(lacking("ranks that share cores"));
    }
    Ok(params)
}

/// Time around operations and of meetings, from steps that hold nothing else.
fn overheads(params: &mut CpuParams, measured: &[Measured]) {
    let mut by_ranks: BTreeMap<usize, Vec<([f64; 2], f64)>> = BTreeMap::new();
    for case in of(measured, Purpose::Overheads) {
        let row = (case.overheads(), case.step_us);
        by_ranks
            .entry(case.program.world_size)
            .or_default()
            .push(row);
    }
    let (mut launch, mut meeting) = (Vec::new(), Vec::new());
    for (ranks, rows) in by_ranks {
        let [around, meet] = fit::non_negative(&rows);
        let positive = |us: f64| fit::rounded(us.max(0.01));
        launch.push([ranks as f64, positive(around)]);
        meeting.push([ranks as f64, positive(meet)]);
    }
    if !launch.is_empty() {
        (params.launch_us, params.meeting_us) = (Curve(launch), Curve(meeting));
    }
}

/// Measured steps over what the other constants make of them, by number of ranks.
fn sharing(params: &mut CpuParams, measured: &[Measured]) {
    params.sharing = Curve((0..=10).map(|power| [f64::from(1 << power), 1.0]).collect());
    let mut by_ranks: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for case in of(measured, Purpose::Sharing) {
        let ranks = case.program.world_size;
        let model = CpuModel::new(params, ranks as u64);
        let priced = price(&case.program, &model);
        let concurrency = moeplan_sim::cost::CostModel::concurrency(&model);
        let (timeline, _) = run(&case.program, &priced, concurrency);
        let ours = timeline.step_time().as_secs_f64() * 1e6;
        by_ranks
            .entry(ranks)
            .or_default()
            .push((case.step_us / ours).ln());
    }
    let mut points: Vec<[f64; 2]> = by_ranks
        .into_iter()
        .map(|(ranks, logs)| {
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            [ranks as f64, fit::rounded(mean.exp())]
        })
        .collect();
    // Beyond the ranks that were measured nothing is known: the last factor stays.
    if let Some(&[ranks, factor]) = points.last() {
        points.extend((1..=10).map(|power| [ranks * f64::from(1 << power), factor]));
    }
    params.sharing = Curve(points);
}

/// The hardware file.
///
/// # Errors
/// None of the user's.
pub fn to_toml(calibration: &Calibration) -> Result<String, Error> {
    let failed = |error: toml::ser::Error| Error::Unexpected(format!("TOML: {error}"));
    #[derive(Serialize)]
    struct Document<'a> {
        cpu: &'a CpuParams,
    }
    let params = toml::to_string(&Document {
        cpu: &calibration.params,
    })
    .map_err(failed)?;
    let Spread {
        cases,
        rounds,
        step_time,
    } = calibration.spread;
    let (processor, cores) = (machine::processor(), calibration.params.cores);
    let memory = machine::memory_bytes(&Cpu::new()) as f64 / (1u64 << 30) as f64;
    Ok(format!(
        "# Measured by `moeplan calibrate` through the CPU executor: {cases} steps, medians of {rounds} rounds, \
         which differ by {:.0} % of the step time (median over the steps).\n\
         extends = \"cpu-base\"\nname = \"this-machine\"\n\
         description = \"{processor}, {cores} cores: ranks as threads\"\n\n\
         [gpu]\nname = \"core of {processor}\"\nmemory-gib = {memory:.1}\n\n\
         [node]\ngpus = 1024\n\n[software]\nname = \"moeplan executor, CPU backend, FP32\"\nreserved-gib = 0.0\n\n\
         {params}\n[sources]\n\"cpu\" = \"measured on this machine by moeplan {} calibrate\"\n\
         \"gpu.memory-gib\" = \"this machine, shared by all ranks\"\n\
         \"node.gpus\" = \"all ranks share one memory; nodes are simulated\"\n",
        step_time * 100.0,
        env!("CARGO_PKG_VERSION"),
    ))
}
