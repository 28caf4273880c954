//! `trace diff`: two traces side by side.

use super::{Measures, body};
use crate::command::compare::to_json;
use crate::error::Error;
use crate::output::{Answer, trace};
use crate::resolve::Given;
use crate::settings::TraceSettings;
use clap::Args;
use serde_json::{Value, json};

/// `trace diff`.
#[derive(Debug, Clone, Args)]
pub struct DiffArgs {
    /// A shipped trace or a file
    #[arg(value_name = "A")]
    pub first: String,
    /// Another one
    #[arg(value_name = "B")]
    pub second: String,
    /// What is measured.
    #[command(flatten)]
    pub settings: TraceSettings,
}

/// Holds `first` against `second`.
///
/// # Errors
/// Traces that cannot be read, or have no layer in common.
pub fn run(first: &str, second: &str, given: &Given) -> Result<Answer, Error> {
    let measures = Measures::new(given)?;
    let a = measures.survey(first, "a", given)?;
    let b = measures.survey(second, "b", given)?;
    let distance = a.stats.distance(&b.stats)?;
    let mut text = String::new();
    for (label, name, survey) in [("A", first, &a), ("B", second, &b)] {
        let first_line = trace::heading(name, &survey.meta, &survey.stats);
        let first_line = first_line.lines().next().unwrap_or_default();
        text += &format!("{label} = {first_line}\n");
    }
    text += "\n";
    text += &trace::side_by_side(["A", "B"], [&a.stats, &b.stats]);
    text += "\n";
    text += &trace::distances(&distance);
    let mut settings = measures.to_json();
    settings["a"] = json!(first);
    settings["b"] = json!(second);
    Ok(Answer {
        command: "trace diff",
        settings,
        seed: given.seed(),
        body: body([
            ("a", Value::Array(measures.layers(&a.stats, true)?)),
            ("b", Value::Array(measures.layers(&b.stats, true)?)),
            ("distance", to_json(&distance.layers)?),
            ("only_in_a", json!(distance.only_in_first)),
            ("only_in_b", json!(distance.only_in_second)),
        ]),
        rows: "distance",
        text,
    })
}
