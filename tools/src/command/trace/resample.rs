//! `trace resample`: a recorded trace for another cluster.

use super::{Measures, Written, body, write};
use crate::command::compare::to_json;
use crate::error::{Error, Place};
use crate::output::table::paragraph;
use crate::output::{Answer, trace};
use crate::resolve::Given;
use crate::session::Session;
use crate::settings::{ShapeSettings, TraceSettings};
use clap::Args;
use moeplan_traces::{RoutingStep, Shape, TraceError, TraceMeta};
use serde_json::{Value, json};
use std::iter::Peekable;

/// What a resampled trace keeps of the recorded one.
const KEPT: &str = "kept: which experts are popular and by how much, how ranks differ (rank s replays recorded \
                    rank s mod the recorded ranks), and all movement over steps and layers";

/// What it takes for granted.
const ASSUMED: &str = "assumed: recorded shares are the true ones, although they hold the noise of the recording; \
                       tokens choose independently given the shares; an expert that is split shares its load evenly \
                       among its parts, merged ones add up; another top-k keeps the shares";

/// `trace resample`.
#[derive(Debug, Clone, Args)]
pub struct ResampleArgs {
    /// A shipped trace (see `moeplan trace list`) or a file
    #[arg(value_name = "NAME|FILE")]
    pub trace: String,
    /// The new shape; what is not said stays as recorded.
    #[command(flatten, next_help_heading = "Shape")]
    pub shape: ShapeSettings,
    /// What is measured.
    #[command(flatten)]
    pub settings: TraceSettings,
}

/// Draws the trace `name` anew.
///
/// # Errors
/// A trace that cannot be read, a shape that cannot be drawn.
pub fn run(name: &str, given: &Given, session: &mut Session<'_>) -> Result<Answer, Error> {
    let measures = Measures::new(given)?;
    let recorded = measures.survey(name, "trace", given)?;
    let asked = given.flags.trace_shape.over(&given.file.trace_shape);
    let place = |field: &str| given.place(&["trace-shape"], None, field);
    let shape = shape(&recorded.meta, &asked, &place)?;
    let steps = count(recorded.steps, &asked, &place)?;
    let seed = given.seed();
    let command = format!(
        "moeplan trace resample {name} --gpus {} --num-experts {} --tokens-per-step {} --top-k {} \
         --steps {} --seed {seed}",
        shape.ranks, shape.experts, shape.tokens_per_rank, shape.top_k, steps
    );
    let mut meta = TraceMeta {
        experts: shape.experts,
        top_k: shape.top_k,
        source_ranks: shape.ranks,
        tokens_per_rank: Some(shape.tokens_per_rank),
        ..recorded.meta.clone()
    };
    meta.notes.push(format!("resampled: {command}"));
    meta.notes.push(KEPT.to_owned());
    meta.notes.push(ASSUMED.to_owned());
    // Read again for the steps that are kept: spread from the first to the last.
    let mut stream = measures.stream(name, "trace")?.peekable();
    let mut passed = 0;
    let Written { path, stats } = write(&meta, steps, &measures, session, |index| {
        let kept = index * (recorded.steps - 1) / (steps - 1).max(1);
        while passed < kept {
            next_step(&mut stream, |_| Ok(()))?;
            passed += 1;
        }
        let mut drawn = Vec::new();
        next_step(&mut stream, |step| {
            drawn.push(step.resample(&shape, seed)?);
            Ok(())
        })?;
        passed += 1;
        Ok(drawn)
    })?;
    let before = recorded.stats;
    let mut text = trace::heading(&path, &meta, &stats);
    text += "\n";
    text += &trace::side_by_side(["before", "after"], [&before, &stats]);
    if shape.experts != recorded.meta.experts {
        text += "\n";
        text += &paragraph(
            "Loads of single experts cannot be compared: the traces differ in experts.",
            0,
        );
    } else {
        text += "\n";
        text += &trace::distances(&before.distance(&stats)?);
    }
    Ok(Answer {
        command: "trace resample",
        settings: json!({
            "trace": name, "gpus": shape.ranks, "num-experts": shape.experts,
            "tokens-per-step": shape.tokens_per_rank, "top-k": shape.top_k, "steps": steps,
        }),
        seed,
        body: body([
            ("file", json!(path)),
            ("kept", json!(KEPT)),
            ("assumed", json!(ASSUMED)),
            ("trace", to_json(&meta)?),
            ("before", Value::Array(measures.layers(&before, true)?)),
            ("layers", Value::Array(measures.layers(&stats, true)?)),
        ]),
        rows: "layers",
        text,
    })
}

fn shape(
    meta: &TraceMeta,
    asked: &ShapeSettings,
    place: &dyn Fn(&str) -> Place,
) -> Result<Shape, Error> {
    if asked.layers.is_some() {
        let message = "expected a setting of `trace generate`; choose a layer with --layer";
        return Err(Error::input(place("layers"), message));
    }
    let Some(tokens_per_rank) = asked.tokens_per_step.or(meta.tokens_per_rank) else {
        let message = "expected tokens of every rank: they vary in this trace, found none";
        return Err(Error::input(place("tokens-per-step"), message));
    };
    let shape = Shape {
        ranks: asked.gpus.unwrap_or(meta.source_ranks),
        experts: asked.num_experts.unwrap_or(meta.experts),
        tokens_per_rank,
        top_k: asked.top_k.unwrap_or(meta.top_k),
    };
    super::generate::checked(shape, place)
}

/// How many of the `recorded` steps are kept.
fn count(
    recorded: u64,
    asked: &ShapeSettings,
    place: &dyn Fn(&str) -> Place,
) -> Result<u64, Error> {
    let wanted = asked.steps.unwrap_or(recorded);
    if (1..=recorded).contains(&wanted) {
        return Ok(wanted);
    }
    let message = format!("expected 1 to the {recorded} recorded steps, found {wanted}");
    Err(Error::input(place("steps"), message))
}

/// Takes all layers of the next step.
fn next_step(
    stream: &mut Peekable<impl Iterator<Item = Result<RoutingStep, TraceError>>>,
    mut take: impl FnMut(RoutingStep) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(first) = stream.next().transpose()? else {
        return Ok(());
    };
    let number = first.step();
    take(first)?;
    let same = |step: &Result<RoutingStep, TraceError>| {
        step.as_ref().map_or(true, |step| step.step() == number)
    };
    while let Some(step) = stream.next_if(same) {
        take(step?)?;
    }
    Ok(())
}
