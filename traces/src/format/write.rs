//! Writing the format.

use std::io::{self, Write};

use super::TraceMeta;
use super::read::KEY_COLUMNS;
use crate::error::{Place, TraceError, quote};
use crate::routing::RoutingStep;

/// Writes a trace step by step; what it writes, [`super::TraceReader`] reads back equal.
#[derive(Debug)]
pub struct TraceWriter<W: Write> {
    writer: W,
    name: String,
    meta: TraceMeta,
    last: Option<(u64, u32)>,
}

impl<W: Write> TraceWriter<W> {
    /// Writes metadata and header. `name` is the file name for messages.
    pub fn new(mut writer: W, name: &str, meta: TraceMeta) -> Result<Self, TraceError> {
        let mut text = String::new();
        for (key, value) in meta.lines() {
            if value.contains(['\n', '\r']) || value.trim() != value {
                return Err(TraceError::invalid(
                    Place::of(name).field(key),
                    "one line without spaces around it",
                    quote(value.as_bytes()),
                ));
            }
            let space = if value.is_empty() { "" } else { " " };
            text.push_str(&format!("# {key}:{space}{value}\n"));
        }
        text.push_str(&KEY_COLUMNS.join(","));
        for expert in 0..meta.experts {
            text.push_str(&format!(",e{expert}"));
        }
        text.push('\n');
        let wrote = writer.write_all(text.as_bytes());
        wrote.map_err(|source| failed(name, source))?;
        Ok(Self {
            writer,
            name: name.to_owned(),
            meta,
            last: None,
        })
    }

    /// Appends a step, which must be of the sizes in the metadata and come after the last one.
    pub fn write(&mut self, step: &RoutingStep) -> Result<(), TraceError> {
        let place = || Place::of(self.name.as_str());
        let meta = &self.meta;
        let sizes = (meta.experts, u64::from(meta.top_k), meta.source_ranks);
        let found = (
            step.num_experts(),
            u64::from(step.top_k()),
            step.source_ranks(),
        );
        if sizes != found {
            return Err(TraceError::invalid(
                place(),
                format!("(experts, top_k, source ranks) of {sizes:?}"),
                format!("{found:?}"),
            ));
        }
        let key = (step.step(), step.layer());
        if self.last.is_some_and(|last| key <= last) {
            return Err(TraceError::invalid(
                place().field("step"),
                "ascending steps, and layers within a step",
                format!("step {}, layer {}", key.0, key.1),
            ));
        }
        if let Some(expected) = meta.tokens_per_rank {
            for rank in 0..step.source_ranks() {
                if step.tokens(rank) != expected {
                    return Err(TraceError::invalid(
                        place().field(format!("rank {rank}")),
                        format!("{expected} tokens (tokens_per_rank)"),
                        step.tokens(rank).to_string(),
                    ));
                }
            }
        }
        self.last = Some(key);
        for (rank, row) in step.rows().enumerate() {
            let mut line = format!("{},{},{rank}", key.0, key.1);
            for count in row {
                line.push(',');
                line.push_str(&count.to_string());
            }
            line.push('\n');
            let wrote = self.writer.write_all(line.as_bytes());
            wrote.map_err(|source| failed(&self.name, source))?;
        }
        Ok(())
    }

    /// Flushes and gives the writer back. A trace without a step is an error, as it could not be
    /// read.
    pub fn finish(mut self) -> Result<W, TraceError> {
        if self.last.is_none() {
            let place = Place::of(self.name);
            return Err(TraceError::invalid(place, "at least one step", "none"));
        }
        let flushed = self.writer.flush();
        flushed.map_err(|source| failed(&self.name, source))?;
        Ok(self.writer)
    }
}

fn failed(name: &str, source: io::Error) -> TraceError {
    let place = Place::of(name);
    TraceError::Io { place, source }
}
