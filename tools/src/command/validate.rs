//! `validate`: published and measured figures beside ours.

use crate::error::{Error, Exit};
use crate::output::{self, Answer, validation};
use crate::resolve::{Given, cluster, is_default};
use crate::session::Session;
use crate::settings::ValidateSettings;
use crate::validate::lab::Lab;
use crate::validate::record::{self, Entry, Worse};
use crate::validate::tables::{Accuracy, TableKind, compare, summarise};
use crate::validate::{Outcome, Status, published, report};
use moeplan_sim::hardware::Hardware;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::path::Path;

/// Tables looked for in a data folder's `calibration`: those the built-in models were fitted to.
const KNOWN_TABLES: [(&str, TableKind); 4] = [
    ("a100_nccl_2.27.3_one_node.csv", TableKind::Nccl),
    ("ndm_a100_v4_nccl_multi_node.csv", TableKind::Nccl),
    ("a100_gemm_bf16.csv", TableKind::Gemm),
    ("a100_moe_ffn_vllm_0.14.0.csv", TableKind::MoeFfn),
];

/// Runs `validate`.
///
/// # Errors
/// A table that cannot be read, a report that cannot be written.
pub fn run(given: &Given, session: &mut Session<'_>) -> Result<(Answer, Exit), Error> {
    let settings = given.flags.validate.over(&given.file.validate);
    let cluster = cluster(given)?;
    let half = |field, other: &str| {
        let message = format!("expected it together with {other}, found it alone");
        Error::input(given.place(&["validate"], None, field), message)
    };
    match (&settings.table, settings.kind) {
        (Some(path), Some(kind)) => table(path, kind, &cluster),
        (Some(_), None) => Err(half("table", "--kind")),
        (None, Some(_)) => Err(half("kind", "--table")),
        (None, None) => published_cases(&settings, &cluster, is_default(given), session),
    }
}

fn table(
    path: &Path,
    kind: TableKind,
    cluster: &(String, Hardware),
) -> Result<(Answer, Exit), Error> {
    let rows = compare(open(path)?, &path.display().to_string(), kind, &cluster.1)?;
    let summary = summarise(&rows);
    let answer = Answer {
        command: "validate",
        settings: json!({"cluster": cluster.0, "table": path.display().to_string(), "kind": kind.name()}),
        seed: 0,
        text: validation::table(&rows, &summary),
        body: body([("cases", json!(rows)), ("summary", json!(summary))]),
        rows: "cases",
    };
    Ok((answer, Exit::Done))
}

fn published_cases(
    args: &ValidateSettings,
    cluster: &(String, Hardware),
    is_default: bool,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let lab = Lab::new(cluster.1.clone())?;
    let outcomes = session
        .on_threads(|| published::outcomes(&lab))?
        .map_err(|error| Error::Unexpected(format!("a published case: {error}")))?;
    let tables = match &args.data {
        Some(folder) => known_tables(folder, &cluster.1, session)?,
        None => Vec::new(),
    };
    let now = record::entries(&outcomes, &tables);
    let recorded =
        record::recorded().map_err(|error| Error::Unexpected(format!("the record: {error}")))?;
    // The record is of the default cluster; on another one there is nothing to be worse than.
    let worse = match is_default {
        true => record::worse(&now, &recorded),
        false => Vec::new(),
    };
    if let Some(path) = &args.record {
        let text = record::to_csv(&with_recorded_tables(&now, &recorded))
            .map_err(|error| Error::Unexpected(format!("the record: {error}")))?;
        output::replace(path, text.as_bytes())?;
    }
    if let Some(path) = &args.markdown {
        let entries = with_recorded_tables(&now, &recorded);
        let tables: Vec<Entry> = entries
            .into_iter()
            .filter(|entry| entry.id.starts_with("table/"))
            .collect();
        output::replace(path, report::markdown(&outcomes, &tables).as_bytes())?;
    }
    let exit = if worse.is_empty() || args.record.is_some() {
        Exit::Done
    } else {
        Exit::ValidationWorse
    };
    let answer = Answer {
        command: "validate",
        settings: json!({"cluster": cluster.0, "data": args.data.as_ref().map(|path| path.display().to_string())}),
        seed: 0,
        text: validation::published(&outcomes, &tables, &worse),
        body: body([
            ("cases", json!(outcomes)),
            ("summary", summary(&outcomes, &tables, &worse)),
        ]),
        rows: "cases",
    };
    Ok((answer, exit))
}

/// What was simulated now, to the digits of the record; for tables that were not at hand, what is on record.
fn with_recorded_tables(now: &[Entry], recorded: &[Entry]) -> Vec<Entry> {
    let missing = recorded.iter().filter(|entry| {
        entry.id.starts_with("table/") && !now.iter().any(|other| other.id == entry.id)
    });
    now.iter().chain(missing).map(Entry::rounded).collect()
}

fn known_tables(
    folder: &Path,
    hardware: &Hardware,
    session: &mut Session<'_>,
) -> Result<Vec<(TableKind, Vec<Accuracy>)>, Error> {
    let mut tables = Vec::new();
    for (name, kind) in KNOWN_TABLES {
        let path = folder.join("calibration").join(name);
        if !path.is_file() {
            session.note(&format!("SKIPPED, NOTHING CHECKED: no {}", path.display()));
            continue;
        }
        let rows = compare(open(&path)?, &path.display().to_string(), kind, hardware)?;
        let summary = summarise(&rows).into_iter().map(|class| Accuracy {
            class: format!("{name}, {}", class.class),
            ..class
        });
        tables.push((kind, summary.collect()));
    }
    Ok(tables)
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::Read {
        path: path.display().to_string(),
        source,
    })
}

fn summary(outcomes: &[Outcome], tables: &[(TableKind, Vec<Accuracy>)], worse: &[Worse]) -> Value {
    let count = |status| {
        outcomes
            .iter()
            .filter(|outcome| outcome.status == status)
            .count()
    };
    let predicted = || {
        outcomes
            .iter()
            .filter(|outcome| outcome.status == Status::Predicted)
    };
    let tables: Vec<&Accuracy> = tables.iter().flat_map(|(_, classes)| classes).collect();
    json!({
        "predicted": count(Status::Predicted),
        "fitted": count(Status::Fitted),
        "excluded": count(Status::Excluded),
        "predicted_with_goal": predicted().filter(|outcome| outcome.goal.is_some()).count(),
        "predicted_missing_goal": predicted().filter(|outcome| outcome.misses()).map(|outcome| &outcome.id).collect::<Vec<_>>(),
        "worse_than_recorded": worse,
        "tables": tables,
    })
}

fn body<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}
