//! Choices of every token as JSON lines: an object a line, with the expert ids under `topk_ids`,
//! `expert_ids`, `routed_experts`, ... (or `L0`, `L1`, ... as in the CSV), scores under
//! `topk_weights`, ... if there are any, and the layer, step and rank where they are known.
//!
//! Objects without ids, such as a first line that describes the recording, are skipped.

use std::collections::VecDeque;
use std::fmt;
use std::io::BufRead;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::assemble::{Rows, assemble};
use super::nested::{Nested, Record, RowMaker};
use super::table::Row;
use super::text::numbered;
use super::{ImportOptions, ImportReport, Imported, names};
use crate::error::{Place, TraceError};
use crate::format::Lines;
use crate::input::Source;

/// Deepest nesting of ids: tokens, layers, choices.
const MAX_DEPTH: usize = 3;

/// Reads all lines.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    let layout = "expert ids of every token, JSON lines";
    assemble(layout, source.place(), options, || {
        Ok(JsonLines {
            lines: Lines::new(source.stream()?, source.name()).with_open_end(),
            rows: VecDeque::new(),
            maker: RowMaker::new(options.top_k),
            skipped: 0,
        })
    })
}

struct JsonLines {
    lines: Lines<Box<dyn BufRead + Send>>,
    rows: VecDeque<Row>,
    maker: RowMaker,
    skipped: u64,
}

impl Rows for JsonLines {
    fn next_row(&mut self, row: &mut Row) -> Result<bool, TraceError> {
        while self.rows.is_empty() {
            if !self.lines.advance()? {
                return Ok(false);
            }
            let text = self.lines.text();
            if text.trim().is_empty() {
                continue;
            }
            let mut reader = serde_json::Deserializer::from_str(text);
            let parsed = reader.deserialize_any(RecordVisitor);
            let parsed = parsed.and_then(|record| reader.end().map(|()| record));
            let record = parsed.map_err(|error| {
                TraceError::invalid(
                    self.lines.place(),
                    "a JSON object of a token's choices",
                    // serde_json counts lines from the start of this one.
                    error.to_string().replace(" at line 1 column ", ", column "),
                )
            })?;
            if record.ids.is_none() && record.wide_ids.is_empty() {
                self.skipped += 1;
                continue;
            }
            let lines = &self.lines;
            let place = |field: &str| lines.place().field(field);
            self.maker.append(record, place, &mut self.rows)?;
        }
        if let Some(next) = self.rows.pop_front() {
            *row = next;
        }
        Ok(true)
    }

    fn place(&self) -> Place {
        self.lines.place()
    }

    fn report(&self, report: &mut ImportReport) {
        report.skipped_lines += self.skipped;
        report.left_out_choices += self.maker.left_out;
    }
}

struct RecordVisitor;

impl<'de> Visitor<'de> for RecordVisitor {
    type Value = Record;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Record, A::Error> {
        let mut record = Record::default();
        while let Some(key) = map.next_key::<String>()? {
            let named = |error: A::Error| A::Error::custom(format!("`{key}`: {error}"));
            let is = |known: &[&str]| names::is(&key, known);
            if is(names::STEP) {
                record.step = map.next_value().map_err(named)?;
            } else if is(names::LAYER) {
                record.layer = map.next_value().map_err(named)?;
            } else if is(names::RANK) {
                record.rank = map.next_value().map_err(named)?;
            } else if is(names::IDS) || is(names::SCORES) {
                let found = map.next_value_seed(NestedSeed).map_err(named)?;
                let into = if is(names::IDS) {
                    &mut record.ids
                } else {
                    &mut record.scores
                };
                if into.replace(found).is_some() {
                    return Err(A::Error::custom(format!("`{key}`: the same again")));
                }
            } else if let Some(layer) = numbered(&key, names::LAYER_IDS) {
                let found = map.next_value_seed(NestedSeed).map_err(named)?;
                if record.wide_ids.iter().any(|(other, _)| *other == layer) {
                    return Err(A::Error::custom(format!("`{key}`: the same again")));
                }
                record.wide_ids.push((layer, found));
            } else if let Some(layer) = numbered(&key, names::LAYER_SCORES) {
                let found = map.next_value_seed(NestedSeed).map_err(named)?;
                record.wide_scores.push((layer, found));
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(record)
    }
}

struct NestedSeed;

impl<'de> DeserializeSeed<'de> for NestedSeed {
    type Value = Nested;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Nested, D::Error> {
        let mut nested = Nested::default();
        deserializer.deserialize_any(Level {
            nested: &mut nested,
            depth: 0,
        })?;
        Ok(nested)
    }
}

/// One level of lists: what is below it goes into `nested`.
struct Level<'a> {
    nested: &'a mut Nested,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Level<'_> {
    fn number<E: Error>(self, value: f64) -> Result<(), E> {
        // Lists that were seen before were deeper.
        if self.nested.shape.len() > self.depth {
            return Err(E::custom("lists of equal depth expected"));
        }
        self.nested.values.push(value);
        Ok(())
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a list of them")
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let depth = self.depth;
        if depth == MAX_DEPTH {
            return Err(A::Error::custom("at most three levels of lists expected"));
        }
        let known = self.nested.shape.get(depth).copied();
        if known.is_none() {
            if !self.nested.values.is_empty() {
                return Err(A::Error::custom("lists of equal depth expected"));
            }
            self.nested.shape.push(0);
        }
        let mut length = 0;
        loop {
            let level = Level {
                nested: &mut *self.nested,
                depth: depth + 1,
            };
            if items.next_element_seed(level)?.is_none() {
                break;
            }
            length += 1;
        }
        match known {
            Some(known) if known != length => {
                let message = format!("lists of {known} expected, one of {length} found");
                Err(A::Error::custom(message))
            }
            _ => {
                self.nested.shape[depth] = length;
                Ok(())
            }
        }
    }
}
