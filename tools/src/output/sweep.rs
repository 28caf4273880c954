//! The result of a sweep: every row in files, the first of them for people.

use super::numbers::{bytes, count, percent, three, time};
use super::table::{Grid, paragraph};
use super::{Answer, parquet};
use crate::error::Error;
use crate::session::Session;
use crate::settings::Format;
use crate::sweep::Header;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Rows of the table for people; files hold all.
const SHOWN: usize = 40;

/// Writes the rows of a whole sweep. Without a format the file's name decides: `.parquet`, `.json`, or CSV.
///
/// # Errors
/// A file that cannot be written.
pub fn write(header: &Header, rows: Vec<Value>, session: &mut Session<'_>) -> Result<(), Error> {
    let file = session.output.file.clone();
    let named = |path: &Path, ending| path.extension().is_some_and(|found| found == ending);
    if let Some(path) = file.as_deref()
        && session.output.format.is_none()
    {
        if named(path, "parquet") {
            return parquet::write(path, &rows);
        }
        let json = named(path, "json");
        session.output.format = Some(if json { Format::Json } else { Format::Csv });
    }
    let text = text(header, &rows);
    let answer = Answer {
        command: "sweep",
        settings: header.settings.clone(),
        seed: header.seed,
        body: Map::from_iter([("rows".to_owned(), json!(rows))]),
        rows: "rows",
        text,
    };
    super::write(&answer, session)
}

fn text(header: &Header, rows: &[Value]) -> String {
    let mut titles: Vec<String> = vec!["scenario".into()];
    titles.extend(header.columns.iter().map(|column| short(column)));
    titles.extend(FIGURES.map(String::from));
    let mut grid = Grid::new(titles);
    let mut notes = String::new();
    for row in rows.iter().take(SHOWN) {
        let mut cells = vec![plain(&row["scenario"])];
        cells.extend(header.columns.iter().map(|column| plain(&row[column])));
        cells.extend(figures(row));
        grid.row(cells);
        if !row["reason"].is_null() {
            let note = format!("{}: {}", plain(&row["scenario"]), plain(&row["reason"]));
            notes += &paragraph(&note, 2);
        }
    }
    let with = |status: &str| rows.iter().filter(|row| row["status"] == status).count() as u64;
    let mut end = format!(
        "{} scenarios, {} rows: {} done, {} do not fit in memory, {} refused",
        count(header.scenarios as u64),
        count(rows.len() as u64),
        count(with("done")),
        count(with("does-not-fit")),
        count(with("refused")),
    );
    if rows.len() > SHOWN {
        end += &format!("; the first {SHOWN} are shown, --output FILE has all");
    }
    format!("{}{notes}{end}\n", grid.render(11))
}

/// The last part of a setting's name, with room for its words to break.
fn short(column: &str) -> String {
    let last = column.rsplit('.').next().unwrap_or(column);
    last.replace('-', " ")
}

/// Titles of [`figures`].
const FIGURES: [&str; 8] = [
    "strategy",
    "step time",
    "exposed",
    "memory",
    "dropped",
    "plan",
    "tokens a second",
    "cost of 10^9 tokens",
];

fn figures(row: &Value) -> Vec<String> {
    let whole = |name: &str| row[name].as_u64().unwrap_or_default();
    let number = |name: &str| row[name].as_f64().unwrap_or_default();
    if row["status"] == "refused" {
        return vec!["refused".into()];
    }
    let plan = format!(
        "r={} d={} {}",
        plain(&row["chosen.adaptive_r"]),
        plain(&row["chosen.pipeline_degree"]),
        plain(&row["chosen.all_to_all"]),
    );
    let memory = bytes(whole("memory_bytes_per_gpu"));
    vec![
        plain(&row["strategy"]),
        time(whole("step_time_ns")),
        time(whole("exposed_communication_ns")),
        match row["status"] == "done" {
            true => memory,
            false => format!("{memory} (!)"),
        },
        percent(number("dropped_fraction")),
        plan,
        count(number("tokens_per_second") as u64),
        three(number("cost_per_billion_tokens")),
    ]
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
