//! The `# key: value` lines above the table.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde::Serialize;

use super::FORMAT;
use super::lines::{Lines, parse_number};
use crate::error::{Place, TraceError, quote};
use crate::routing::{MAX_CELLS, RoutingStep};

/// Most experts of a trace; with more a row would not be a line one can read.
const MAX_EXPERTS: u64 = 1 << 20;

/// Where a trace comes from, and the sizes all its steps share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceMeta {
    /// The model that routed the tokens.
    pub model: String,
    /// Global experts of every layer.
    pub experts: usize,
    /// Experts that every token goes to.
    pub top_k: u32,
    /// GPUs, or whatever stood for them, that route tokens.
    pub source_ranks: usize,
    /// Tokens of every rank in every step; nothing when they vary.
    pub tokens_per_rank: Option<u32>,
    /// Where the tokens come from.
    pub origin: String,
    /// Licence of the data.
    pub licence: String,
    /// The command that recorded or converted the trace.
    pub recorded_by: String,
    /// What was left out, summed up or divided on the way here, a line each; empty if nothing.
    pub reduced: Vec<String>,
    /// Anything else worth knowing, a line each.
    pub notes: Vec<String>,
}

impl TraceMeta {
    /// Sizes of `step`, texts empty.
    pub fn of_step(step: &RoutingStep) -> Self {
        Self {
            model: String::new(),
            experts: step.num_experts(),
            top_k: step.top_k(),
            source_ranks: step.source_ranks(),
            tokens_per_rank: step.shape().map(|shape| shape.tokens_per_rank),
            origin: String::new(),
            licence: String::new(),
            recorded_by: String::new(),
            reduced: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Keys and values as written, in the order of the file.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let tokens = match self.tokens_per_rank {
            Some(tokens) => tokens.to_string(),
            None => "varies".to_owned(),
        };
        let mut lines = vec![
            ("format", FORMAT.to_owned()),
            ("model", self.model.clone()),
            ("experts", self.experts.to_string()),
            ("top_k", self.top_k.to_string()),
            ("source_ranks", self.source_ranks.to_string()),
            ("tokens_per_rank", tokens),
            ("origin", self.origin.clone()),
            ("licence", self.licence.clone()),
            ("recorded_by", self.recorded_by.clone()),
        ];
        let reduced = self.reduced.iter().map(|text| ("reduced", text.clone()));
        lines.extend(reduced);
        lines.extend(self.notes.iter().map(|note| ("note", note.clone())));
        lines
    }

    /// The same, or an error where a text could not be read back.
    pub(super) fn checked_lines(
        &self,
        name: &str,
    ) -> Result<Vec<(&'static str, String)>, TraceError> {
        let lines = self.lines();
        let bad = |value: &str| value.contains(['\n', '\r']) || value.trim() != value;
        match lines.iter().find(|(_, value)| bad(value)) {
            Some((key, value)) => Err(TraceError::invalid(
                Place::of(name).field(*key),
                "one line without spaces around it",
                quote(value.as_bytes()),
            )),
            None => Ok(lines),
        }
    }

    /// Reads metadata lines that stand alone, without a table below them.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self, TraceError> {
        // What ends the metadata of a CSV file is its header.
        let text = format!("{text}step\n");
        Self::read(&mut Lines::new(text.as_bytes(), name))
    }

    /// Reads all metadata lines, and the line after them (the header), which is left in `lines`.
    pub(super) fn read<R: BufRead>(lines: &mut Lines<R>) -> Result<Self, TraceError> {
        let mut values = BTreeMap::new();
        let (mut reduced, mut notes) = (Vec::new(), Vec::new());
        loop {
            if !lines.advance()? {
                let expected = if values.is_empty() {
                    format!("`# format: {FORMAT}`")
                } else {
                    "a header `step,layer,source_rank,e0,...`".to_owned()
                };
                return Err(TraceError::invalid(
                    lines.place(),
                    expected,
                    "the end of the file",
                ));
            }
            let Some(line) = lines.text().strip_prefix('#') else {
                break;
            };
            let Some((key, value)) = line.split_once(':') else {
                return Err(TraceError::invalid(
                    lines.place(),
                    "`# key: value`",
                    quote(lines.text().as_bytes()),
                ));
            };
            let (key, value) = (key.trim(), value.trim().to_owned());
            if values.is_empty() && (key != "format" || value != FORMAT) {
                return Err(TraceError::invalid(
                    lines.place(),
                    format!("`# format: {FORMAT}`"),
                    quote(lines.text().as_bytes()),
                ));
            }
            let texts = match key {
                "reduced" => Some(&mut reduced),
                "note" => Some(&mut notes),
                _ => None,
            };
            if let Some(texts) = texts {
                texts.push(value);
                continue;
            }
            let Some(key) = KEYS.into_iter().find(|&known| known == key) else {
                return Err(TraceError::invalid(
                    lines.place(),
                    format!("one of {}, reduced, note", KEYS.join(", ")),
                    quote(key.as_bytes()),
                ));
            };
            if values.insert(key, (lines.place(), value)).is_some() {
                return Err(TraceError::invalid(
                    lines.place().field(key),
                    "each key once",
                    "it again",
                ));
            }
        }
        let header = lines.place();
        if values.is_empty() {
            return Err(TraceError::invalid(
                header,
                format!("`# format: {FORMAT}`"),
                quote(lines.text().as_bytes()),
            ));
        }
        let mut take = |key: &'static str| {
            values.remove(key).ok_or_else(|| {
                TraceError::invalid(header.clone(), format!("`# {key}: ...`"), "the header")
            })
        };
        let size = |(place, value): (Place, String), key: &str, most: u64| {
            let number = parse_number(&value, most, || place.clone().field(key))?;
            if number == 0 {
                return Err(TraceError::invalid(place.field(key), "at least 1", "0"));
            }
            Ok(number)
        };
        let experts = size(take("experts")?, "experts", MAX_EXPERTS)?;
        let top_k = size(take("top_k")?, "top_k", experts)?;
        let most_ranks = MAX_CELLS as u64 / experts;
        let source_ranks = size(take("source_ranks")?, "source_ranks", most_ranks)?;
        let tokens = take("tokens_per_rank")?;
        let tokens_per_rank = if tokens.1 == "varies" {
            None
        } else {
            Some(size(tokens, "tokens_per_rank", u32::MAX.into())? as u32)
        };
        Ok(Self {
            model: take("model")?.1,
            experts: experts as usize,
            top_k: top_k as u32,
            source_ranks: source_ranks as usize,
            tokens_per_rank,
            origin: take("origin")?.1,
            licence: take("licence")?.1,
            recorded_by: take("recorded_by")?.1,
            reduced,
            notes,
        })
    }
}

const KEYS: [&str; 9] = [
    "format",
    "model",
    "experts",
    "top_k",
    "source_ranks",
    "tokens_per_rank",
    "origin",
    "licence",
    "recorded_by",
];
