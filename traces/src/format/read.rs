//! Reading the format, one step at a time.

use std::io::BufRead;

use super::TraceMeta;
use super::lines::{Lines, parse_number};
use crate::error::{TraceError, quote};
use crate::routing::{RoutingStep, check_row};

/// Columns before the experts.
pub(super) const KEY_COLUMNS: [&str; 3] = ["step", "layer", "source_rank"];

/// Yields the steps of a trace in file order; holds one step at a time. Ends after the first
/// error.
#[derive(Debug)]
pub struct TraceReader<R> {
    lines: Lines<R>,
    meta: TraceMeta,
    /// Step and layer read last.
    last: Option<(u64, u32)>,
    finished: bool,
}

impl<R: BufRead> TraceReader<R> {
    /// Reads metadata and header. `name` is the file name for messages.
    pub fn new(reader: R, name: &str) -> Result<Self, TraceError> {
        let mut lines = Lines::new(reader, name);
        let meta = TraceMeta::read(&mut lines)?;
        check_header(&lines, meta.experts)?;
        Ok(Self {
            lines,
            meta,
            last: None,
            finished: false,
        })
    }

    /// What the metadata lines say.
    pub fn meta(&self) -> &TraceMeta {
        &self.meta
    }

    fn read_step(&mut self) -> Result<Option<RoutingStep>, TraceError> {
        let mut counts = Vec::new();
        let mut key = (0, 0);
        for rank in 0..self.meta.source_ranks {
            if !self.lines.advance()? {
                if rank == 0 && self.last.is_some() {
                    return Ok(None);
                }
                let expected = match self.last {
                    None if rank == 0 => "at least one step".to_owned(),
                    _ => format!(
                        "source rank {rank} of step {}, layer {} (there are {} ranks)",
                        key.0, key.1, self.meta.source_ranks
                    ),
                };
                let place = self.lines.place();
                return Err(TraceError::invalid(place, expected, "the end of the file"));
            }
            let found = self.read_row(rank, &mut counts)?;
            let place = self.lines.place();
            if rank == 0 {
                if self.last.is_some_and(|last| found <= last) {
                    return Err(TraceError::invalid(
                        place.field("step"),
                        "ascending steps, and layers within a step",
                        format!("step {}, layer {}", found.0, found.1),
                    ));
                }
                key = found;
                self.last = Some(found);
            } else if found != key {
                return Err(TraceError::invalid(
                    place,
                    format!("source rank {rank} of step {}, layer {}", key.0, key.1),
                    format!("step {}, layer {}", found.0, found.1),
                ));
            }
        }
        Ok(Some(RoutingStep::from_checked(
            key.0,
            key.1,
            self.meta.top_k,
            self.meta.experts,
            counts,
        )))
    }

    /// Appends the counts of the current line; returns its step and layer.
    fn read_row(&self, rank: usize, counts: &mut Vec<u32>) -> Result<(u64, u32), TraceError> {
        let place = || self.lines.place();
        let text = self.lines.text();
        let columns = KEY_COLUMNS.len() + self.meta.experts;
        let found = text.split(',').count();
        if found != columns {
            return Err(TraceError::invalid(
                place(),
                format!("{columns} columns"),
                if text.is_empty() {
                    "an empty line".to_owned()
                } else {
                    format!("{found}: {}", quote(text.as_bytes()))
                },
            ));
        }
        let mut fields = text.split(',');
        let mut key = |column: usize, most: u64| {
            let text = fields.next().unwrap_or_default();
            parse_number(text, most, || place().field(KEY_COLUMNS[column]))
        };
        let step = key(0, u64::MAX)?;
        let layer = key(1, u32::MAX.into())? as u32;
        let found_rank = key(2, u64::MAX)?;
        if found_rank != rank as u64 {
            return Err(TraceError::invalid(
                place().field("source_rank"),
                format!("{rank} (every rank of a step and layer once, in order)"),
                found_rank.to_string(),
            ));
        }
        let start = counts.len();
        for (expert, text) in fields.enumerate() {
            let count = parse_number(text, u32::MAX.into(), || {
                place().field(format!("e{expert}"))
            });
            counts.push(count? as u32);
        }
        let tokens = check_row(&counts[start..], self.meta.top_k).map_err(|problem| {
            let place = match problem.expert {
                Some(expert) => place().field(format!("e{expert}")),
                None => place(),
            };
            TraceError::invalid(place, problem.expected, problem.found)
        })?;
        match self.meta.tokens_per_rank {
            Some(expected) if expected != tokens => Err(TraceError::invalid(
                place(),
                format!("{expected} tokens (tokens_per_rank), each top_k copies"),
                format!("{tokens} tokens"),
            )),
            _ => Ok((step, layer)),
        }
    }
}

fn check_header<R: BufRead>(lines: &Lines<R>, experts: usize) -> Result<(), TraceError> {
    let mut found = lines.text().split(',');
    let keys = KEY_COLUMNS.into_iter().map(str::to_owned);
    for name in keys.chain((0..experts).map(|expert| format!("e{expert}"))) {
        let field = found.next();
        if field != Some(name.as_str()) {
            let found = match field {
                Some(field) => quote(field.as_bytes()),
                None => "the end of the line".to_owned(),
            };
            return Err(TraceError::invalid(
                lines.place().field(name),
                "this column of the header",
                found,
            ));
        }
    }
    match found.next() {
        Some(field) => Err(TraceError::invalid(
            lines.place(),
            format!("{experts} expert columns (experts)"),
            format!("another column {}", quote(field.as_bytes())),
        )),
        None => Ok(()),
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<RoutingStep, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let step = self.read_step().transpose();
        self.finished = !matches!(step, Some(Ok(_)));
        step
    }
}
