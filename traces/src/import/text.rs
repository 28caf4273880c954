//! CSV files of other people: their records, and which layout they are.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use csv::StringRecord;

use super::{ImportOptions, Imported, counts, matrix, tokens};
use crate::error::{Place, TraceError, quote, too_much};
use crate::input::Source;

/// Longest record. Whatever is longer is no trace, and must not fill the memory.
const MAX_RECORD: u64 = 16 << 20;

/// Bytes the CSV reader takes at once.
const CHUNK: usize = 256 << 10;

/// CSV records with the position of the last one.
pub(super) struct Records {
    reader: csv::Reader<Limited>,
    since: Arc<AtomicU64>,
    name: String,
    /// The record read last.
    pub(super) record: StringRecord,
}

impl Records {
    pub(super) fn open(source: &Source) -> Result<Self, TraceError> {
        let since = Arc::new(AtomicU64::new(0));
        let limited = Limited {
            inner: source.stream()?,
            since: Arc::clone(&since),
        };
        Ok(Self {
            reader: csv::ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .buffer_capacity(CHUNK)
                .from_reader(limited),
            since,
            name: source.name().to_owned(),
            record: StringRecord::new(),
        })
    }

    /// Reads the next record; false at the end of the file.
    pub(super) fn advance(&mut self) -> Result<bool, TraceError> {
        self.since.store(0, Ordering::Relaxed);
        let read = self.reader.read_record(&mut self.record);
        read.map_err(|error| self.explain(error))
    }

    /// The same, and the record must have `width` fields.
    pub(super) fn advance_by(&mut self, width: usize) -> Result<bool, TraceError> {
        if !self.advance()? {
            return Ok(false);
        }
        if self.record.len() == width {
            return Ok(true);
        }
        Err(TraceError::invalid(
            self.place(),
            format!("{width} columns"),
            format!("{} columns", self.record.len()),
        ))
    }

    /// Field `column` of the record read last.
    pub(super) fn field(&self, column: usize) -> &str {
        self.record.get(column).unwrap_or_default()
    }

    /// The record read last.
    pub(super) fn place(&self) -> Place {
        let place = Place::of(self.name.as_str());
        match self.record.position() {
            Some(position) => place.line(position.line()),
            None => place,
        }
    }

    fn explain(&self, error: csv::Error) -> TraceError {
        let place = match error.position() {
            Some(position) => Place::of(self.name.as_str()).line(position.line()),
            None => Place::of(self.name.as_str()).line(self.reader.position().line()),
        };
        let message = error.to_string();
        match error.into_kind() {
            csv::ErrorKind::Io(source) => TraceError::reading(place, source),
            csv::ErrorKind::Utf8 { .. } => {
                TraceError::invalid(place, "UTF-8 text", "bytes that are not")
            }
            _ => TraceError::invalid(place, "CSV", message),
        }
    }
}

/// Fails where a record takes too many bytes.
struct Limited {
    inner: Box<dyn BufRead + Send>,
    /// Bytes since the last record ended.
    since: Arc<AtomicU64>,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let since = self.since.fetch_add(read as u64, Ordering::Relaxed);
        if since > MAX_RECORD {
            return Err(too_much(
                format!("a record of at most {MAX_RECORD} bytes"),
                "a longer one",
            ));
        }
        Ok(read)
    }
}

/// Tells the layout by the first record.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    let mut records = Records::open(source)?;
    if records.advance()? {
        let header: Vec<&str> = records.record.iter().map(str::trim).collect();
        let numbers = header.iter().all(|field| is_digits(field));
        if tokens::is_header(&header) {
            return tokens::read(source, options);
        }
        let listed = counts::Columns::find(&header).is_some();
        if listed || (numbers && header.len() == 3 && options.axes.is_none()) {
            return counts::read(source, options);
        }
        if matrix::is_header(&header) || (numbers && header.len() > 1) {
            return matrix::read(source, options);
        }
    }
    let line = records.record.iter().collect::<Vec<_>>().join(",");
    Err(TraceError::invalid(
        records.place(),
        "`# format: moeplan-trace/1`, a header with columns L0, L1, ..., or of expert ids or \
         counts, or list_index,expert,count (docs/formats.md lists all layouts)",
        quote(line.as_bytes()),
    ))
}

pub(super) fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The number behind one of `prefixes`.
pub(super) fn numbered(name: &str, prefixes: &[&str]) -> Option<u32> {
    let digits = prefixes.iter().find_map(|prefix| {
        let rest = name.strip_prefix(prefix)?;
        is_digits(rest).then_some(rest)
    });
    digits.and_then(|digits| digits.parse().ok())
}
