//! CSV: one row a run, columns named as in JSON, nested keys joined by a dot.

use super::Answer;
use crate::error::Error;
use serde_json::{Map, Value};

pub(super) fn render(answer: &Answer) -> Result<String, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Unexpected(format!("CSV: {error}"));
    let rows: Vec<Vec<(String, String)>> = match answer.body.get(answer.rows) {
        Some(Value::Array(items)) => items.iter().map(flat).collect(),
        Some(item) => vec![flat(item)],
        None => Vec::new(),
    };
    // A key that some rows lack is an empty cell there.
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer
        .write_record(&columns)
        .map_err(|error| failed(&error))?;
    for row in &rows {
        let cell = |column: &&str| {
            row.iter()
                .find(|(name, _)| name == column)
                .map_or("", |(_, value)| value)
        };
        writer
            .write_record(columns.iter().map(cell))
            .map_err(|error| failed(&error))?;
    }
    let bytes = writer.into_inner().map_err(|error| failed(&error))?;
    String::from_utf8(bytes).map_err(|error| failed(&error))
}

fn flat(row: &Value) -> Vec<(String, String)> {
    let mut cells = Vec::new();
    if let Value::Object(map) = row {
        flatten("", map, &mut cells);
    }
    cells
}

fn flatten(prefix: &str, map: &Map<String, Value>, cells: &mut Vec<(String, String)>) {
    for (key, value) in map {
        let name = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(&format!("{name}."), inner, cells),
            // Lists are for JSON; a row holds what one value says.
            Value::Array(_) => {}
            Value::Null => cells.push((name, String::new())),
            Value::String(text) => cells.push((name, text.clone())),
            Value::Bool(_) | Value::Number(_) => cells.push((name, value.to_string())),
        }
    }
}
