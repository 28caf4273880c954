//! Measures this machine and writes it down as hardware that the simulator loads.
//!
//! The machine is measured through the executor itself: steps of made-up, even routing run as any
//! other step does, and the time of every operation, of cores or of the GPU, is a sample of what it asked for. On a
//! CPU, what a step takes beyond its operations gives the rest.

mod cases;
pub mod cpu;
mod fit;
pub mod gpu;

use crate::error::Error;
use crate::machine;
use crate::play::refused;
use crate::session::Session;
use cases::{Case, Purpose};
use moeplan_executor::assign::tokens_of;
use moeplan_executor::{Backend, Inputs, Routing as Routed, execute};
use moeplan_sim::cost::cpu::{Demand, demand};
use moeplan_sim::ir::Program;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// One run of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sample {
    case: String,
    round: usize,
    step_us: f64,
    /// Time of each operation, mean over ranks: of cores, or of the GPU.
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
pub struct Calibration<P> {
    /// Its constants.
    pub params: P,
    /// How much to believe them.
    pub spread: Spread,
    /// Whether the user stopped before all rounds were done.
    pub interrupted: bool,
}

/// All cases, as far as they were run.
struct AllMeasured {
    cases: Vec<Measured>,
    rounds: usize,
    interrupted: bool,
}

impl AllMeasured {
    fn calibration<P>(&self, params: P) -> Calibration<P> {
        Calibration {
            params,
            spread: spread(&self.cases, self.rounds),
            interrupted: self.interrupted,
        }
    }
}

/// Runs `rounds` rounds of `cases` on `backend`. Runs are kept in `partial`, and those already there are not repeated.
fn measured(
    cases: &[Case],
    rounds: usize,
    partial: Option<&Path>,
    backend: &mut dyn Backend,
    session: &mut Session<'_>,
) -> Result<AllMeasured, Error> {
    let mut samples = match partial {
        Some(path) => resume(path)?,
        None => Vec::new(),
    };
    let progress = session.progress((cases.len() * rounds) as u64);
    let mut interrupted = false;
    // Rounds outside: what disturbs the machine for a while disturbs all cases alike.
    'rounds: for round in 0..rounds {
        for case in cases {
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
            let sample = measure(case, round, backend)?;
            if let Some(path) = partial {
                keep(path, &sample)?;
            }
            samples.push(sample);
        }
    }
    progress.finish_and_clear();
    let cases = cases
        .iter()
        .filter_map(|case| Measured::new(case, &samples).transpose())
        .collect::<Result<_, Error>>()?;
    Ok(AllMeasured {
        cases,
        rounds,
        interrupted,
    })
}

/// Runs a case once to warm up and once in earnest.
fn measure(case: &Case, round: usize, backend: &mut dyn Backend) -> Result<Sample, Error> {
    let routing = case.routing()?;
    let tokens = tokens_of(&routing)?;
    let program = case.program(&routing).map_err(|error| refused(&error))?;
    machine::check_memory(backend, &program, &case.layer)?;
    let inputs = Inputs::random(&case.layer, round as u64, Routed::Forced(tokens.clone()));
    execute(&program, &case.layer, backend, &inputs, &tokens)?;
    let ran = execute(&program, &case.layer, backend, &inputs, &tokens)?;
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
