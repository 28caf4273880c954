//! The columns of a sweep's result. All rows have all of them, whatever became of their scenario.

use crate::summary::RunSummary;
use moeplan_sim::economy::Cost;
use serde_json::{Map, Value as Json, json};

/// What became of one strategy of one scenario.
#[derive(Debug)]
pub enum Outcome {
    /// It was simulated.
    Done(Box<RunSummary>, Cost),
    /// It cannot be, and why.
    Refused(String),
}

/// A run and its cost.
type Figures<'a> = (&'a RunSummary, &'a Cost);

/// A column with its value.
type Column = (&'static str, fn(Figures<'_>) -> Json);

/// Columns after the settings that vary; times in nanoseconds, as in `simulate`.
const COLUMNS: &[Column] = &[
    ("strategy", |(run, _)| json!(run.strategy)),
    ("gpus", |(run, _)| json!(run.gpus)),
    ("steps", |(run, _)| json!(run.steps)),
    ("step_time_ns", |(run, _)| json!(run.step_time_ns)),
    ("step_time_p95_ns", |(run, _)| json!(run.step_time_p95_ns)),
    ("stages_ns.gate", |(run, _)| stage(run, "gate")),
    ("stages_ns.encode", |(run, _)| stage(run, "encode")),
    ("stages_ns.dispatch", |(run, _)| stage(run, "dispatch")),
    ("stages_ns.expert", |(run, _)| stage(run, "expert")),
    ("stages_ns.combine", |(run, _)| stage(run, "combine")),
    ("stages_ns.decode", |(run, _)| stage(run, "decode")),
    ("stages_ns.weights", |(run, _)| stage(run, "weights")),
    ("exposed_communication_ns", |(run, _)| {
        json!(run.exposed_communication_ns)
    }),
    ("all_to_all_ns", |(run, _)| json!(run.all_to_all_ns)),
    ("memory_bytes_per_gpu", |(run, _)| {
        json!(run.memory_bytes_per_gpu)
    }),
    ("memory_available_bytes", |(run, _)| {
        json!(run.memory_available_bytes)
    }),
    ("fits", |(run, _)| json!(run.fits)),
    ("dropped_fraction", |(run, _)| json!(run.dropped_fraction)),
    ("capacity_factor", |(run, _)| json!(run.capacity_factor)),
    ("capacity_factor_max", |(run, _)| {
        json!(run.capacity_factor_max)
    }),
    ("chosen.adaptive_r", |(run, _)| json!(run.chosen.adaptive_r)),
    ("chosen.pipeline_degree", |(run, _)| {
        json!(run.chosen.pipeline_degree)
    }),
    ("chosen.backward_degree", |(run, _)| {
        json!(run.chosen.backward_degree)
    }),
    ("chosen.all_to_all", |(run, _)| json!(run.chosen.all_to_all)),
    ("regret_ns", |(run, _)| json!(run.regret_ns)),
    ("provenance.step_time", |(run, _)| {
        let of_step = run.provenance.iter().find(|(name, _)| *name == "step_time");
        json!(of_step.map(|(_, provenance)| provenance))
    }),
    ("tokens_per_second", |(_, cost)| {
        json!(cost.tokens_per_second)
    }),
    ("cost_per_hour", |(_, cost)| json!(cost.cost_per_hour)),
    ("cost_per_billion_tokens", |(_, cost)| {
        json!(cost.cost_per_billion_tokens)
    }),
    ("joules_per_token", |(_, cost)| json!(cost.joules_per_token)),
];

fn stage(run: &RunSummary, name: &str) -> Json {
    let found = run.stages_ns.iter().find(|(stage, _)| *stage == name);
    json!(found.map(|(_, time)| time))
}

/// One row: the scenario's number, what varies, what became of it, and the figures.
pub fn row(scenario: usize, cells: Map<String, Json>, outcome: &Outcome) -> Json {
    let (status, reason, figures) = match outcome {
        Outcome::Done(run, cost) if run.fits => ("done", Json::Null, Some((&**run, cost))),
        Outcome::Done(run, cost) => {
            let over = run.memory_bytes_per_gpu - run.memory_available_bytes;
            let reason = format!(
                "memory: {} a GPU more than it has",
                crate::output::numbers::bytes(over)
            );
            ("does-not-fit", json!(reason), Some((&**run, cost)))
        }
        Outcome::Refused(reason) => ("refused", json!(reason), None),
    };
    let mut row = Map::new();
    row.insert("scenario".into(), json!(scenario));
    row.extend(cells);
    row.insert("status".into(), json!(status));
    row.insert("reason".into(), reason);
    for (name, value) in COLUMNS {
        // A column that varies is not there twice.
        if !row.contains_key(*name) {
            row.insert((*name).into(), figures.map_or(Json::Null, value));
        }
    }
    Json::Object(row)
}
