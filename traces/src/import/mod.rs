//! Reading traces of any known layout.
//!
//! | layout | recognised by |
//! |---|---|
//! | moeplan-trace/1 | `#` as first character |
//! | expert ids of every token ([`tokens`]) | a header with columns `L0`, `L1`, ... |
//! | expert counts without header ([`counts`]) | three whole numbers in the first line |

mod counts;
mod tokens;

use std::io::BufRead;

use csv::StringRecord;

use crate::error::{Place, TraceError, quote};
use crate::format::{Trace, TraceReader};
use crate::routing::MAX_CELLS;

/// What the public layouts leave open; moeplan's own format needs none of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportOptions {
    /// Source ranks over which the tokens of a per-token file are spread: each takes its own
    /// contiguous slice of the file. 8 if not said otherwise.
    pub source_ranks: usize,
    /// Tokens of every source rank in one step of a per-token file. 64 if not said otherwise, so
    /// 512 tokens a step.
    pub tokens_per_rank: u32,
    /// Number of experts. If not given, the largest id plus one, rounded up to a power of two.
    pub experts: Option<usize>,
    /// Per-token files: keep only that many choices of every token, best first (if not given, all
    /// of them). Count files: how many copies of a token are counted (if not given, 1; the OLMoE
    /// files need 8, those of Mixtral 2, and those with `top1` in their name 1).
    pub top_k: Option<u32>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            source_ranks: 8,
            tokens_per_rank: 64,
            experts: None,
            top_k: None,
        }
    }
}

/// Reads a whole trace, whatever its layout. `name` is the file name for messages.
pub fn open(
    mut reader: impl BufRead,
    name: &str,
    options: &ImportOptions,
) -> Result<Trace, TraceError> {
    let place = || Place::of(name);
    let first = reader.fill_buf().map_err(|source| TraceError::Io {
        place: place(),
        source,
    })?;
    match first.first() {
        None => Err(TraceError::invalid(place(), "a trace", "an empty file")),
        Some(b'#') => {
            let reader = TraceReader::new(reader, name)?;
            let meta = reader.meta().clone();
            let steps = reader.collect::<Result<_, _>>()?;
            Ok(Trace { meta, steps })
        }
        Some(_) => import(&mut Records::new(reader, name), options),
    }
}

fn import<R: BufRead>(
    records: &mut Records<R>,
    options: &ImportOptions,
) -> Result<Trace, TraceError> {
    if records.advance()? {
        if records.record.iter().any(|name| layer_of(name).is_some()) {
            return tokens::read(records, options);
        }
        if records.record.len() == 3 && records.record.iter().all(is_digits) {
            return counts::read(records, options);
        }
    }
    let line = records.record.iter().collect::<Vec<_>>().join(",");
    Err(TraceError::invalid(
        records.place(),
        "`# format: moeplan-trace/1`, a header with columns L0, L1, ..., or list_index,expert,count",
        quote(line.as_bytes()),
    ))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The layer of a column named `L` and a number.
fn layer_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix('L')?;
    is_digits(digits).then(|| digits.parse().ok()).flatten()
}

/// The number of experts, given the largest id in the file.
fn expert_count(
    largest: usize,
    options: &ImportOptions,
    place: Place,
) -> Result<usize, TraceError> {
    match options.experts {
        None => Ok((largest + 1).next_power_of_two()),
        Some(experts) if experts > largest => Ok(experts),
        Some(experts) => Err(TraceError::invalid(
            place.field("experts"),
            format!(
                "at least {} (the largest expert id is {largest})",
                largest + 1
            ),
            experts.to_string(),
        )),
    }
}

/// Fails when the trace would not fit in memory.
fn check_size(parts: &[usize], place: Place) -> Result<(), TraceError> {
    let cells = parts
        .iter()
        .try_fold(1_usize, |product, &part| product.checked_mul(part));
    if cells.is_some_and(|cells| cells <= MAX_CELLS) {
        return Ok(());
    }
    Err(TraceError::invalid(
        place,
        format!("steps * layers * source ranks * experts of at most {MAX_CELLS}"),
        format!("{parts:?}"),
    ))
}

/// CSV records with the position of the last one.
struct Records<R> {
    reader: csv::Reader<R>,
    name: String,
    record: StringRecord,
}

impl<R: BufRead> Records<R> {
    fn new(reader: R, name: &str) -> Self {
        Self {
            reader: csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .from_reader(reader),
            name: name.to_owned(),
            record: StringRecord::new(),
        }
    }

    /// Reads the next record; false at the end of the file.
    fn advance(&mut self) -> Result<bool, TraceError> {
        let read = self.reader.read_record(&mut self.record);
        read.map_err(|error| self.explain(error))
    }

    /// The record read last.
    fn place(&self) -> Place {
        let place = Place::of(self.name.as_str());
        match self.record.position() {
            Some(position) => place.line(position.line()),
            None => place,
        }
    }

    fn explain(&self, error: csv::Error) -> TraceError {
        let place = match error.position() {
            Some(position) => Place::of(self.name.as_str()).line(position.line()),
            None => Place::of(self.name.as_str()),
        };
        let message = error.to_string();
        match error.into_kind() {
            csv::ErrorKind::Io(source) => TraceError::Io { place, source },
            csv::ErrorKind::Utf8 { .. } => {
                TraceError::invalid(place, "UTF-8 text", "bytes that are not")
            }
            _ => TraceError::invalid(place, "CSV", message),
        }
    }
}
