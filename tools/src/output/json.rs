//! JSON: `"schema": "moeplan/1"` first, then version, command, seed, settings and results.

use super::Answer;
use crate::error::Error;
use serde_json::{Map, Value, json};

pub(super) fn render(answer: &Answer) -> Result<String, Error> {
    let mut document = Map::new();
    document.insert("schema".into(), json!("moeplan/1"));
    document.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
    document.insert("command".into(), json!(answer.command));
    document.insert("seed".into(), json!(answer.seed));
    document.insert("settings".into(), answer.settings.clone());
    document.extend(answer.body.clone());
    let mut text = serde_json::to_string_pretty(&Value::Object(document))
        .map_err(|error| Error::Unexpected(format!("JSON: {error}")))?;
    text.push('\n');
    Ok(text)
}
