//! Writing the CSV face.

use std::io::{self, Write};

use super::{Rows, StepCheck, TraceMeta, TraceStep};
use crate::error::{Place, TraceError};
use crate::routing::RoutingStep;
use crate::tokens::TokenStep;

/// Writes a trace step by step; what it writes, [`super::TraceReader`] reads back equal.
///
/// The first step decides whether rows hold counts or the choices of single tokens.
#[derive(Debug)]
pub struct TraceWriter<W: Write> {
    writer: W,
    check: StepCheck,
    /// Text of the step at hand.
    text: Vec<u8>,
}

impl<W: Write> TraceWriter<W> {
    /// Writes metadata. `name` is the file name for messages.
    pub fn new(mut writer: W, name: &str, meta: TraceMeta) -> Result<Self, TraceError> {
        let mut text = String::new();
        for (key, value) in meta.checked_lines(name)? {
            let space = if value.is_empty() { "" } else { " " };
            text.push_str(&format!("# {key}:{space}{value}\n"));
        }
        let wrote = writer.write_all(text.as_bytes());
        wrote.map_err(|source| failed(name, source))?;
        Ok(Self {
            writer,
            check: StepCheck::new(name, meta),
            text: Vec::new(),
        })
    }

    /// Appends counts, which must be of the sizes in the metadata and come after the last step.
    pub fn write(&mut self, step: &RoutingStep) -> Result<(), TraceError> {
        self.begin(Rows::Counts)?;
        self.check.counts(step)?;
        for (rank, row) in step.rows().enumerate() {
            self.key(step.step(), step.layer(), rank);
            for &count in row {
                self.text.push(b',');
                push_number(&mut self.text, count.into());
            }
            self.text.push(b'\n');
        }
        self.flush_text()
    }

    /// Appends the choices of every token, under the same conditions.
    pub fn write_tokens(&mut self, step: &TokenStep) -> Result<(), TraceError> {
        let has_scores = step.all_scores().is_some();
        self.begin(Rows::Tokens { scores: has_scores })?;
        self.check.tokens(step)?;
        let top_k = step.top_k() as usize;
        for rank in 0..step.source_ranks() {
            let scores = step.scores(rank).unwrap_or_default();
            for (token, ids) in step.ids(rank).chunks_exact(top_k).enumerate() {
                self.key(step.step(), step.layer(), rank);
                self.text.push(b',');
                push_number(&mut self.text, token as u64);
                for &id in ids {
                    self.text.push(b',');
                    push_number(&mut self.text, id.into());
                }
                if has_scores {
                    for score in &scores[token * top_k..][..top_k] {
                        // Rust prints the shortest text that reads back as the same number.
                        let wrote = write!(self.text, ",{score}");
                        wrote.map_err(|source| failed(&self.check.name, source))?;
                    }
                }
                self.text.push(b'\n');
            }
        }
        self.flush_text()
    }

    /// Appends a step of either kind.
    pub fn write_step(&mut self, step: &TraceStep) -> Result<(), TraceError> {
        match step {
            TraceStep::Counts(step) => self.write(step),
            TraceStep::Tokens(step) => self.write_tokens(step),
        }
    }

    /// Writes the header above the first step.
    fn begin(&mut self, rows: Rows) -> Result<(), TraceError> {
        if self.check.begin(rows)? {
            let columns: Vec<String> = rows.columns(&self.check.meta).collect();
            self.text.extend_from_slice(columns.join(",").as_bytes());
            self.text.push(b'\n');
        }
        Ok(())
    }

    fn key(&mut self, step: u64, layer: u32, rank: usize) {
        push_number(&mut self.text, step);
        self.text.push(b',');
        push_number(&mut self.text, layer.into());
        self.text.push(b',');
        push_number(&mut self.text, rank as u64);
    }

    fn flush_text(&mut self) -> Result<(), TraceError> {
        let wrote = self.writer.write_all(&self.text);
        self.text.clear();
        wrote.map_err(|source| failed(&self.check.name, source))
    }

    /// Flushes and gives the writer back. A trace without a step is an error, as it could not be
    /// read.
    pub fn finish(mut self) -> Result<W, TraceError> {
        self.check.finish()?;
        let flushed = self.writer.flush();
        flushed.map_err(|source| failed(&self.check.name, source))?;
        Ok(self.writer)
    }
}

/// Appends `number` in digits.
fn push_number(text: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

fn failed(name: &str, source: io::Error) -> TraceError {
    TraceError::Io {
        place: Place::of(name),
        source,
    }
}
