//! Reading the CSV face, one step at a time.

use std::io::BufRead;

use super::lines::{Lines, append_numbers, parse_number, parse_score};
use super::{Rows, TraceMeta, TraceStep};
use crate::error::{TraceError, quote};
use crate::routing::{MAX_CELLS, RoutingStep, check_row};
use crate::tokens::{Seen, TokenStep};

/// Columns before the experts.
pub(super) const KEY_COLUMNS: [&str; 3] = ["step", "layer", "source_rank"];

/// Yields the steps of a trace in file order; holds one step at a time. Ends after the first
/// error.
///
/// As an iterator it yields counts, whatever the rows are; [`TraceReader::next_step`] keeps the
/// choices of single tokens.
#[derive(Debug)]
pub struct TraceReader<R> {
    lines: Lines<R>,
    meta: TraceMeta,
    rows: Rows,
    /// Whether the line at hand is yet to be used.
    held: bool,
    /// Step and layer read last.
    last: Option<(u64, u32)>,
    finished: bool,
}

/// Keys of a row of one token.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    step: u64,
    layer: u32,
    rank: usize,
}

impl<R: BufRead> TraceReader<R> {
    /// Reads metadata and header. `name` is the file name for messages.
    pub fn new(reader: R, name: &str) -> Result<Self, TraceError> {
        let mut lines = Lines::new(reader, name);
        let meta = TraceMeta::read(&mut lines)?;
        let rows = read_header(&lines, &meta)?;
        Ok(Self {
            lines,
            meta,
            rows,
            held: false,
            last: None,
            finished: false,
        })
    }

    /// What the metadata lines say.
    pub fn meta(&self) -> &TraceMeta {
        &self.meta
    }

    /// The next step as it was written; nothing at the end of the file, and after an error.
    pub fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        if self.finished {
            return Ok(None);
        }
        let step = match self.rows {
            Rows::Counts => self.read_counts().map(|step| step.map(TraceStep::Counts)),
            Rows::Tokens { scores } => self
                .read_tokens(scores)
                .map(|step| step.map(TraceStep::Tokens)),
        };
        self.finished = !matches!(step, Ok(Some(_)));
        step
    }

    /// Notes that a step begins; fails where it does not come after the last one.
    fn begin(&mut self, key: (u64, u32)) -> Result<(), TraceError> {
        if self.last.is_some_and(|last| key <= last) {
            return Err(TraceError::invalid(
                self.lines.place().field("step"),
                "ascending steps, and layers within a step",
                format!("step {}, layer {}", key.0, key.1),
            ));
        }
        self.last = Some(key);
        Ok(())
    }

    fn read_counts(&mut self) -> Result<Option<RoutingStep>, TraceError> {
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
            if rank == 0 {
                self.begin(found)?;
                key = found;
            } else if found != key {
                return Err(TraceError::invalid(
                    self.lines.place(),
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
        let start = counts.len();
        let (key, row) = self.read_key(KEY_COLUMNS.len() + self.meta.experts)?;
        if key.rank != rank {
            return Err(TraceError::invalid(
                self.lines.place().field("source_rank"),
                format!("{rank} (every rank of a step and layer once, in order)"),
                key.rank.to_string(),
            ));
        }
        if !append_numbers(row, counts) || counts.len() - start != self.meta.experts {
            counts.truncate(start);
            self.look_closely(KEY_COLUMNS.len() + self.meta.experts)?;
            let text = std::str::from_utf8(row).unwrap_or_default();
            for (expert, text) in text.split(',').enumerate() {
                let place = || self.lines.place().field(format!("e{expert}"));
                counts.push(parse_number(text, u32::MAX.into(), place)? as u32);
            }
        }
        let tokens = check_row(&counts[start..], self.meta.top_k).map_err(|problem| {
            let place = match problem.expert {
                Some(expert) => self.lines.place().field(format!("e{expert}")),
                None => self.lines.place(),
            };
            TraceError::invalid(place, problem.expected, problem.found)
        })?;
        self.check_tokens(u64::from(tokens))?;
        Ok((key.step, key.layer))
    }

    fn check_tokens(&self, tokens: u64) -> Result<(), TraceError> {
        match self.meta.tokens_per_rank {
            Some(expected) if u64::from(expected) != tokens => Err(TraceError::invalid(
                self.lines.place(),
                format!("{expected} tokens (tokens_per_rank), each top_k copies"),
                format!("{tokens} tokens"),
            )),
            _ => Ok(()),
        }
    }

    /// Step, layer and rank of the current line, and what follows them. `columns` is what the
    /// line should have, for messages.
    fn read_key(&self, columns: usize) -> Result<(Key, &[u8]), TraceError> {
        let mut rest = self.lines.bytes();
        let mut key = |column: usize, most: u64| {
            let end = memchr::memchr(b',', rest).unwrap_or(rest.len());
            let (field, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            let place = || self.lines.place().field(KEY_COLUMNS[column]);
            let text = std::str::from_utf8(field).unwrap_or_default();
            parse_number(text, most, place)
        };
        let read = (|| {
            Ok(Key {
                step: key(0, u64::MAX)?,
                layer: key(1, u32::MAX.into())? as u32,
                rank: key(2, u64::MAX)? as usize,
            })
        })();
        match read {
            Ok(key) => Ok((key, rest)),
            Err(error) => {
                self.look_closely(columns)?;
                Err(error)
            }
        }
    }

    /// Fails where the line has another number of columns: that explains any other mistake.
    fn look_closely(&self, columns: usize) -> Result<(), TraceError> {
        let text = self.lines.text();
        let found = text.split(',').count();
        if found == columns {
            return Ok(());
        }
        let found = match text {
            "" => "an empty line".to_owned(),
            _ => format!("{found}: {}", quote(text.as_bytes())),
        };
        let place = self.lines.place();
        Err(TraceError::invalid(
            place,
            format!("{columns} columns"),
            found,
        ))
    }

    fn read_tokens(&mut self, has_scores: bool) -> Result<Option<TokenStep>, TraceError> {
        if !std::mem::take(&mut self.held) && !self.lines.advance()? {
            return match self.last {
                Some(_) => Ok(None),
                None => Err(TraceError::invalid(
                    self.lines.place(),
                    "at least one step",
                    "the end of the file",
                )),
            };
        }
        let mut seen = Seen::new(self.meta.experts);
        let (mut ids, mut scores) = (Vec::new(), Vec::new());
        let mut tokens = vec![0_usize; self.meta.source_ranks];
        let mut last: Option<Key> = None;
        loop {
            let (key, row) = self.read_key(self.token_columns(has_scores))?;
            let of = |key: Key| (key.step, key.layer);
            if last.is_some_and(|last| of(last) != of(key)) {
                self.held = true;
                break;
            }
            let least = last.map_or(0, |last| last.rank);
            if !(least..self.meta.source_ranks).contains(&key.rank) {
                return Err(TraceError::invalid(
                    self.lines.place().field("source_rank"),
                    format!("{least} to {}, ascending", self.meta.source_ranks - 1),
                    key.rank.to_string(),
                ));
            }
            let room = ids.len() < MAX_CELLS;
            self.read_token(row, tokens[key.rank], has_scores, &mut ids, &mut scores)?;
            let new = &ids[ids.len() - self.meta.top_k as usize..];
            if !room || !seen.distinct(new) {
                return Err(TraceError::invalid(
                    self.lines.place(),
                    format!(
                        "different experts from 0 to {}, at most {MAX_CELLS} in a step",
                        self.meta.experts - 1
                    ),
                    format!("{new:?}"),
                ));
            }
            tokens[key.rank] += 1;
            if last.is_none() {
                self.begin(of(key))?;
            }
            last = Some(key);
            if !self.lines.advance()? {
                break;
            }
        }
        for &tokens in &tokens {
            self.check_tokens(tokens as u64)?;
        }
        let (step, layer) = self.last.unwrap_or_default();
        let scores = has_scores.then_some(scores);
        let (top_k, experts) = (self.meta.top_k, self.meta.experts);
        TokenStep::new(step, layer, top_k, experts, &tokens, ids, scores).map(Some)
    }

    const fn token_columns(&self, has_scores: bool) -> usize {
        let choices = self.meta.top_k as usize;
        KEY_COLUMNS.len() + 1 + if has_scores { 2 * choices } else { choices }
    }

    /// Appends the choices in `row`, which should be those of the `token`th of its rank.
    fn read_token(
        &self,
        row: &[u8],
        token: usize,
        has_scores: bool,
        ids: &mut Vec<u32>,
        scores: &mut Vec<f32>,
    ) -> Result<(), TraceError> {
        let columns = self.token_columns(has_scores);
        let text = std::str::from_utf8(row).unwrap_or_default();
        if memchr::memchr_iter(b',', row).count() != columns - KEY_COLUMNS.len() - 1 {
            self.look_closely(columns)?;
        }
        let mut fields = text.split(',');
        let mut next = || fields.next().unwrap_or_default();
        let place = |field: String| self.lines.place().field(field);
        let found = parse_number(next(), u64::MAX, || place("token".into()))?;
        if found != token as u64 {
            return Err(TraceError::invalid(
                place("token".into()),
                format!("{token} (every token of a rank once, in order)"),
                found.to_string(),
            ));
        }
        for choice in 0..self.meta.top_k {
            let most = self.meta.experts as u64 - 1;
            let id = parse_number(next(), most, || place(format!("expert{choice}")))?;
            ids.push(id as u32);
        }
        if has_scores {
            for choice in 0..self.meta.top_k {
                scores.push(parse_score(next(), || place(format!("score{choice}")))?);
            }
        }
        Ok(())
    }
}

/// What the rows hold, by the header in `lines`.
fn read_header<R: BufRead>(lines: &Lines<R>, meta: &TraceMeta) -> Result<Rows, TraceError> {
    let found: Vec<&str> = lines.text().split(',').collect();
    let token = found.get(KEY_COLUMNS.len()) == Some(&"token");
    let scores = token && found.len() > KEY_COLUMNS.len() + 1 + meta.top_k as usize;
    let rows = if token {
        Rows::Tokens { scores }
    } else {
        Rows::Counts
    };
    let mut found = found.into_iter();
    for name in rows.columns(meta) {
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
            match rows {
                Rows::Counts => format!("{} expert columns (experts)", meta.experts),
                Rows::Tokens { .. } => format!("{} columns of choices (top_k)", meta.top_k),
            },
            format!("another column {}", quote(field.as_bytes())),
        )),
        None => Ok(rows),
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<RoutingStep, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.next_step().transpose()?;
        Some(step.map(TraceStep::into_counts))
    }
}
