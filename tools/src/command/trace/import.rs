//! `trace import`: what servers and routers recorded becomes a trace of moeplan's own.

use super::body;
use crate::command::compare::to_json;
use crate::error::{Error, Place};
use crate::output::numbers::{count, three};
use crate::output::table::paragraph;
use crate::output::{self, Answer};
use crate::resolve::Given;
use crate::routing::open_files;
use crate::session::Session;
use crate::settings::ImportSettings;
use crate::trace_file::TraceFile;
use clap::Args;
use moeplan_traces::{ImportOptions, ImportReport, RoutingStep, TraceMeta, TraceSource, TraceStep};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// `trace import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// What was recorded: SGLang, vLLM, NumPy, PyTorch, CSV, JSON lines, Parquet or Arrow, also
    /// packed by gzip or zstd; told by its contents (docs/formats.md). Several files are what the ranks
    /// of one run recorded, a file a rank, in the order given
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<String>,
    /// What the file leaves open.
    #[command(flatten)]
    pub settings: ImportSettings,
}

/// What was counted on the way.
#[derive(Debug, Default)]
struct Tally {
    steps: u64,
    last_step: Option<u64>,
    layers: BTreeSet<u32>,
    records: u64,
    tokens: u64,
    copies: u64,
    /// Largest load over the mean, of any step and layer.
    max_over_mean: f64,
    /// Tokens of every rank, as long as they are the same.
    even: Option<Option<u32>>,
    /// Whether the choices of single tokens are known.
    per_token: bool,
}

impl Tally {
    fn add(&mut self, step: &RoutingStep) {
        // Only the last one can be the same: steps come in order.
        let last = self.last_step.replace(step.step());
        self.steps += u64::from(last != Some(step.step()));
        self.layers.insert(step.layer());
        self.records += 1;
        self.copies += step.total();
        self.tokens += step.total() / u64::from(step.top_k().max(1));
        self.max_over_mean = self.max_over_mean.max(step.max_over_mean());
        let found = step.shape().map(|shape| shape.tokens_per_rank);
        let even = *self.even.get_or_insert(found);
        self.even = Some(even.filter(|_| even == found));
    }

    fn tokens_per_rank(&self) -> Option<u32> {
        self.even.flatten()
    }
}

/// Imports `files`.
///
/// # Errors
/// A file that is no trace, or an output that cannot be written.
pub fn run(files: &[String], given: &Given, session: &mut Session<'_>) -> Result<Answer, Error> {
    let settings = given.flags.trace_import.over(&given.file.trace_import);
    let options = settings.options().map_err(|(field, message)| {
        Error::input(given.place(&["trace-import"], None, field), message)
    })?;
    // From here on --output is the trace; what is said about it goes to standard output.
    let Some(path) = session.output.file.take() else {
        let message = "expected a file for the trace, found none";
        return Err(Error::input(Place::flag("--output"), message));
    };
    // The metadata stand above the steps and tell what was dropped of them: so the file is read
    // twice, unless it tells them itself.
    let open = |options: &ImportOptions| open_files(files, options, &Place::flag("FILE"));
    let file = &match files {
        [one] => one.clone(),
        _ => format!("{} files", files.len()),
    };
    let mut source = open(&options)?;
    let known = source.is_canonical();
    let mut tally = Tally::default();
    let mut meta = source.meta().clone();
    if !known {
        drain(&mut source, &mut tally, session)?;
    }
    let report = source.report();
    if !known {
        describe(&mut meta, &tally, &report);
    }
    say(&mut meta, &settings, files, known);
    let fixed = ImportOptions {
        experts: Some(meta.experts),
        ..options
    };
    let mut source = open(&fixed)?;
    let mut written = Tally::default();
    let records = tally.records;
    write(&path, &meta, &mut source, &mut written, records, session)?;
    for warning in report.warnings() {
        session.note(&format!("warning: {file}: {warning}"));
    }
    let path = path.display().to_string();
    let text = text(file, &path, &meta, &report, &written);
    let mut row = json!({
        "input": file,
        "output": path,
        "layout": report.layout,
        "rows": if written.per_token { "tokens" } else { "counts" },
        "steps": written.steps,
        "layers": written.layers.len(),
        "records": written.records,
        "tokens": written.tokens,
        "copies": written.copies,
        "largest_max_over_mean": written.max_over_mean,
        "meta": to_json(&meta)?,
    });
    if let (Value::Object(row), Value::Object(report)) = (&mut row, to_json(&report)?) {
        row.extend(report);
    }
    Ok(Answer {
        command: "trace import",
        settings: to_json(&settings)?,
        seed: 0,
        body: body([("trace", row), ("warnings", json!(report.warnings()))]),
        rows: "trace",
        text,
    })
}

/// Reads all of `source`.
fn drain(source: &mut TraceSource, tally: &mut Tally, session: &Session<'_>) -> Result<(), Error> {
    while let Some(step) = source.next_step()? {
        if session.is_interrupted() {
            return Err(Error::Interrupted);
        }
        tally.add(&step.into_counts());
    }
    Ok(())
}

fn write(
    path: &Path,
    meta: &TraceMeta,
    source: &mut TraceSource,
    tally: &mut Tally,
    records: u64,
    session: &Session<'_>,
) -> Result<(), Error> {
    let progress = session.progress(records);
    output::replace_with(path, |out| {
        let mut file = TraceFile::new(out, path, meta.clone())?;
        while let Some(step) = source.next_step()? {
            if session.is_interrupted() {
                return Err(Error::Interrupted);
            }
            file.write(&step)?;
            tally.per_token |= matches!(step, TraceStep::Tokens(_));
            tally.add(&step.into_counts());
            progress.inc(1);
        }
        file.finish()
    })?;
    progress.finish_and_clear();
    Ok(())
}

/// Puts into `meta` what is known once all steps were seen.
fn describe(meta: &mut TraceMeta, tally: &Tally, report: &ImportReport) {
    meta.tokens_per_rank = tally.tokens_per_rank();
    meta.reduced = report.reduced();
    meta.notes = std::iter::once(format!("imported from: {}", report.layout))
        .chain(report.assumed.iter().map(|what| format!("assumed: {what}")))
        .collect();
}

/// Puts into `meta` what the user says.
fn say(meta: &mut TraceMeta, settings: &ImportSettings, files: &[String], known: bool) {
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for (into, said) in [
        (&mut meta.model, &settings.model),
        (&mut meta.origin, &settings.origin),
        (&mut meta.licence, &settings.licence),
    ] {
        if let Some(said) = said {
            *into = line(said);
        }
    }
    if !known {
        let unknown = "not said (trace import --licence)";
        if meta.licence.is_empty() {
            meta.licence = unknown.into();
        }
        meta.recorded_by = line(&command(files, settings));
    }
}

/// The command line, without where the result goes.
fn command(files: &[String], settings: &ImportSettings) -> String {
    let mut command = format!("moeplan trace import {}", files.join(" "));
    let said = to_json(settings).unwrap_or_default();
    for (key, value) in said.as_object().into_iter().flatten() {
        match value {
            Value::Bool(true) => command += &format!(" --{key}"),
            Value::String(text) => command += &format!(" --{key} '{text}'"),
            other => command += &format!(" --{key} {other}"),
        }
    }
    command
}

fn text(file: &str, path: &str, meta: &TraceMeta, report: &ImportReport, tally: &Tally) -> String {
    let tokens = match meta.tokens_per_rank {
        Some(tokens) => format!("{tokens} tokens a rank"),
        None => "varying numbers of tokens".to_owned(),
    };
    let rows = if tally.per_token {
        "choices of every token"
    } else {
        "counts"
    };
    let mut text = format!("{file}: {}\n", report.layout);
    text += &paragraph(
        &format!(
            "{path}: {rows}, {} layers x {} steps, {} source ranks, {} experts, top-{}, {tokens}; {} tokens, \
             {} copies; busiest expert at most {} times the mean",
            tally.layers.len(),
            tally.steps,
            meta.source_ranks,
            meta.experts,
            meta.top_k,
            count(tally.tokens),
            count(tally.copies),
            three(tally.max_over_mean),
        ),
        2,
    );
    for what in report.reduced() {
        text += &paragraph(&format!("- changed: {what}"), 2);
    }
    for what in &report.assumed {
        text += &paragraph(&format!("- assumed: {what}"), 2);
    }
    text
}
