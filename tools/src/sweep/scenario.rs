//! One scenario, resolved and played exactly as `compare` does.

use super::Sweep;
use super::rows::{Outcome, row};
use crate::economy::Prices;
use crate::error::Error;
use crate::play::play;
use crate::resolve::{Given, Planned, resolve};
use crate::session::{Session, Streams};
use crate::settings::OutputSettings;
use crate::summary::RunSummary;
use moeplan_sim::spec::Strategy;
use serde_json::Value as Json;
use std::io;

/// The rows of scenario `index` in JSON: one a strategy, or one that says why there are none.
///
/// # Errors
/// An interruption, or something that should not happen: what is wrong with the scenario is in its row.
pub fn run(sweep: &Sweep, index: usize) -> Result<String, Error> {
    let outcomes = match simulate(sweep, index) {
        Ok(outcomes) => outcomes,
        Err(error @ (Error::Interrupted | Error::Unexpected(_) | Error::Write { .. })) => {
            return Err(error);
        }
        Err(
            error @ (Error::Input { .. }
            | Error::Trace(_)
            | Error::Nccl(_)
            | Error::Read { .. }
            | Error::Missing(_)),
        ) => vec![Outcome::Refused(error.to_string())],
    };
    let rows: Vec<Json> = outcomes
        .iter()
        .map(|outcome| row(index, sweep.cells(index), outcome))
        .collect();
    serde_json::to_string(&rows).map_err(|error| Error::Unexpected(format!("JSON: {error}")))
}

fn simulate(sweep: &Sweep, index: usize) -> Result<Vec<Outcome>, Error> {
    let given = Given {
        file: sweep.study(index)?,
        document: Some(sweep.document.clone()),
        kept: sweep.kept.clone(),
        ..Given::default()
    };
    let default = Planned {
        strategy: Strategy::tutel(),
        cover_routing: false,
    };
    let resolved = resolve(&given, &[default])?;
    let prices = Prices::read(&resolved.study.economy)?;
    let model = resolved.model()?;
    // A scenario talks to nobody, and runs on the threads of the sweep.
    let (mut stdout, mut stderr) = (io::sink(), io::sink());
    let streams = Streams {
        stdout: &mut stdout,
        stderr: &mut stderr,
        watched: false,
    };
    let mut session = Session::new(streams, OutputSettings::default())?;
    let plays = play(&resolved, &*model, &mut session, &mut ())?;
    if plays.interrupted {
        return Err(Error::Interrupted);
    }
    let memory = resolved.hardware.memory_bytes();
    let layer = resolved.layer(0);
    let mut outcomes = Vec::new();
    for run in &plays.runs {
        let Some(summary) = RunSummary::new(run, layer, memory, &resolved.routing, false) else {
            continue;
        };
        let cost = prices.of_run(&resolved.hardware.name, layer, run)?;
        outcomes.push(Outcome::Done(Box::new(summary), cost));
    }
    Ok(outcomes)
}
