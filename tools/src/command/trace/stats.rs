//! `trace stats`: one trace described.

use super::{Measures, Survey, body};
use crate::command::compare::to_json;
use crate::error::Error;
use crate::output::{Answer, trace};
use crate::resolve::Given;
use crate::settings::TraceSettings;
use clap::Args;
use serde_json::{Value, json};

/// `trace stats`.
#[derive(Debug, Clone, Args)]
pub struct StatsArgs {
    /// A shipped trace (see `moeplan trace list`) or a file
    #[arg(value_name = "NAME|FILE")]
    pub trace: String,
    /// Also show every step; rows of CSV are then steps
    #[arg(long)]
    pub per_step: bool,
    /// What is measured.
    #[command(flatten)]
    pub settings: TraceSettings,
}

/// Describes the trace `name`.
///
/// # Errors
/// A trace that cannot be read.
pub fn run(name: &str, given: &Given) -> Result<Answer, Error> {
    let measures = Measures::new(given)?;
    let Survey { meta, stats, .. } = measures.survey(name, "trace", given)?;
    let per_step = given.flags.report.per_step || given.file.report.per_step;
    let factors = &measures.capacity_factors;
    let mut text = trace::heading(name, &meta, &stats);
    text += "\n";
    text += &trace::summary(&stats, factors);
    text += "\n";
    text += &trace::plots(&stats);
    let mut body = body([
        ("trace", to_json(&meta)?),
        ("layers", Value::Array(measures.layers(&stats, false)?)),
    ]);
    if per_step {
        text += "\n";
        text += &trace::per_step(&stats, factors);
        let steps = stats.layers.iter().flat_map(|layer| &layer.per_step);
        let steps: Vec<Value> = steps
            .map(|step| measures.step(step))
            .collect::<Result<_, _>>()?;
        body.insert("per_step".into(), Value::Array(steps));
    }
    let mut settings = measures.to_json();
    settings["trace"] = json!(name);
    Ok(Answer {
        command: "trace stats",
        settings,
        seed: given.seed(),
        body,
        rows: if per_step { "per_step" } else { "layers" },
        text,
    })
}
