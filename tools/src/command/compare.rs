//! `simulate`, `compare` and the main job: strategies over steps of routing.

use crate::economy::Prices;
use crate::error::{Error, Exit};
use crate::output::{Answer, comparison};
use crate::play::{Plays, play};
use crate::resolve::{Planned, Resolved};
use crate::run_file::Writer;
use crate::run_file::recorder::{Recorder, Sink};
use crate::session::Session;
use crate::settings::Study;
use crate::summary::RunSummary;
use moeplan_sim::spec::Strategy;
use serde_json::{Value, json};

/// What is shown, and under which name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// One strategy.
    Simulate,
    /// Several.
    Compare,
    /// The main job.
    Main,
}

impl Job {
    const fn name(self) -> &'static str {
        match self {
            Job::Simulate => "simulate",
            Job::Compare => "compare",
            Job::Main => "main",
        }
    }

    /// Strategies when nothing is said.
    pub fn strategies(self) -> Vec<Planned> {
        let planned = |strategy| Planned {
            strategy,
            cover_routing: false,
        };
        match self {
            Job::Simulate => vec![planned(Strategy::tutel())],
            Job::Compare => vec![planned(Strategy::fairseq()), planned(Strategy::tutel())],
            Job::Main => vec![
                planned(Strategy::fairseq()),
                planned(Strategy::tutel()),
                Planned {
                    strategy: Strategy {
                        name: "fairseq no-drop".into(),
                        ..Strategy::fairseq()
                    },
                    cover_routing: true,
                },
                planned(Strategy {
                    name: "tutel no-drop".into(),
                    capacity_factor: Some(0.0),
                    ..Strategy::tutel()
                }),
            ],
        }
    }

    /// Adds to a study what this job runs when nothing is said.
    pub fn defaults(self, study: &mut Study) {
        if self == Job::Main && study.routing.trace.is_none() && study.routing.routing.is_none() {
            study.routing.trace = Some("digits".into());
        }
    }
}

/// Runs all strategies of `resolved`.
///
/// # Errors
/// Settings that cannot be run.
pub fn run(
    job: Job,
    resolved: &Resolved,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let model = resolved.model()?;
    let mut recorder = Recorder::new(job.name(), resolved, false, sinks(resolved)?);
    let plays = play(resolved, &*model, session, &mut recorder)?;
    if resolved.study.report.timings {
        let timings = plays.timings;
        session.note(&format!(
            "routing of the first step {:.1?}, simulation and search {:.1?} ({} steps)",
            timings.routing,
            timings.search,
            plays.runs.first().map_or(0, |run| run.steps.len()),
        ));
    }
    let per_step = resolved.study.report.per_step;
    let economy = &resolved.study.economy;
    let prices = (!economy.is_empty())
        .then(|| Prices::read(economy))
        .transpose()?;
    let mut runs: Vec<RunSummary> = Vec::new();
    for run in &plays.runs {
        let memory = resolved.hardware.memory_bytes();
        let layer = resolved.layer(0);
        let Some(mut summary) = RunSummary::new(run, layer, memory, &resolved.routing, per_step)
        else {
            continue;
        };
        summary.cost = prices
            .as_ref()
            .map(|prices| prices.of_run(&resolved.hardware.name, layer, run))
            .transpose()?;
        runs.push(summary);
    }
    let first = runs.first().map_or(0, |run| run.step_time_ns);
    let speedup: Vec<f64> = runs
        .iter()
        .map(|run| first as f64 / run.step_time_ns.max(1) as f64)
        .collect();
    let exit = if plays.interrupted {
        Exit::Interrupted
    } else if runs.iter().all(|run| !run.fits) {
        Exit::NoFeasiblePlan
    } else {
        Exit::Done
    };
    let currency = prices.as_ref().map(Prices::currency);
    let text = text(resolved, &runs, &speedup, currency, &plays);
    let answer = Answer {
        command: job.name(),
        settings: settings(resolved)?,
        seed: resolved.seed,
        body: [
            ("routing".to_owned(), json!(resolved.routing.describe())),
            ("interrupted".to_owned(), json!(plays.interrupted)),
            ("runs".to_owned(), to_json(&runs)?),
            ("speedup".to_owned(), json!(speedup)),
        ]
        .into_iter()
        .collect(),
        rows: "runs",
        text,
    };
    Ok((answer, exit))
}

fn text(
    resolved: &Resolved,
    runs: &[RunSummary],
    speedup: &[f64],
    currency: Option<&str>,
    plays: &Plays,
) -> String {
    let mut text = comparison::heading(resolved);
    text.push('\n');
    text += &comparison::table(runs, speedup, currency);
    text += &comparison::per_step(runs);
    let reading = comparison::reading(runs);
    if !reading.is_empty() {
        text.push('\n');
        text += &reading;
    }
    if plays.interrupted {
        let done = plays.runs.first().map_or(0, |run| run.steps.len());
        text += &format!(
            "\ninterrupted after {done} of {} steps\n",
            resolved.routing.len()
        );
    }
    text
}

/// Where the steps of `resolved` are recorded: to the file asked for, if any.
///
/// # Errors
/// A file that cannot be made.
pub fn sinks(resolved: &Resolved) -> Result<Vec<Box<dyn Sink>>, Error> {
    let path = resolved.study.report.record.as_deref();
    path.into_iter()
        .map(|path| Ok(Box::new(Writer::create(path)?) as Box<dyn Sink>))
        .collect()
}

/// The settings in force as JSON: the study file they amount to, and the cluster's constants.
///
/// # Errors
/// None of the user's.
pub fn settings(resolved: &Resolved) -> Result<Value, Error> {
    let mut settings = to_json(&resolved.study)?;
    // Where results go and how many threads made them says nothing about them.
    if let Value::Object(map) = &mut settings {
        map.shift_remove("output");
        if let Some(Value::Object(report)) = map.get_mut("report") {
            report.shift_remove("record");
        }
        map.insert("hardware".into(), to_json(&resolved.hardware)?);
    }
    Ok(settings)
}

/// `value` as JSON.
///
/// # Errors
/// None of the user's.
pub fn to_json(value: &impl serde::Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::Unexpected(format!("JSON: {error}")))
}
