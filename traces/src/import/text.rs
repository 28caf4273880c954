//! CSV files of other people: their records, and which layout they are.

use std::io::BufRead;

use csv::StringRecord;

use super::{ImportOptions, Imported, counts, matrix, tokens};
use crate::error::{Place, TraceError, quote};
use crate::format::Lines;
use crate::input::Source;

/// Longest record of several lines. Whatever is longer is no trace, and must not fill the memory.
const MAX_RECORD: usize = 16 << 20;

/// CSV records, one at a time.
///
/// Almost all lines hold numbers only: they are cut at their commas here, several times faster
/// than a parser that looks for quotes at every byte. Records with quotes are left to `csv`.
pub(super) struct Records {
    lines: Lines<Box<dyn BufRead + Send>>,
    /// Where the fields of a line without quotes end.
    ends: Vec<usize>,
    /// The record at hand, if it has quotes.
    quoted: Option<StringRecord>,
    /// Where it begins.
    start: Place,
}

impl Records {
    pub(super) fn open(source: &Source) -> Result<Self, TraceError> {
        Ok(Self {
            lines: Lines::new(source.stream()?, source.name()).with_open_end(),
            ends: Vec::new(),
            quoted: None,
            start: source.place(),
        })
    }

    /// Reads the next record, empty lines aside; false at the end of the file.
    pub(super) fn advance(&mut self) -> Result<bool, TraceError> {
        let more = self.advance_line()?;
        if more {
            self.split()?;
        }
        Ok(more)
    }

    /// Reads the line that the next record begins with. Its fields are known once it is split.
    pub(super) fn advance_line(&mut self) -> Result<bool, TraceError> {
        self.quoted = None;
        self.ends.clear();
        while self.lines.advance()? {
            if !self.lines.bytes().is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The line read last.
    pub(super) fn line(&self) -> &[u8] {
        self.lines.bytes()
    }

    /// Finds the fields of the record that begins with it.
    pub(super) fn split(&mut self) -> Result<(), TraceError> {
        let line = self.lines.bytes();
        if memchr::memchr(b'"', line).is_some() {
            self.start = self.lines.place();
            self.quoted = Some(self.read_quoted()?);
        } else {
            self.ends.extend(memchr::memchr_iter(b',', line));
            self.ends.push(line.len());
        }
        Ok(())
    }

    /// The record that begins with the line at hand; quotes may hold line feeds.
    fn read_quoted(&mut self) -> Result<StringRecord, TraceError> {
        let count = |text: &str| memchr::memchr_iter(b'"', text.as_bytes()).count();
        let mut text = self.lines.text().to_owned();
        let mut quotes = count(&text);
        while quotes % 2 == 1 {
            if text.len() > MAX_RECORD || !self.lines.advance()? {
                return Err(TraceError::invalid(
                    self.start.clone(),
                    format!("a closing quote within {MAX_RECORD} bytes"),
                    quote(text.as_bytes()),
                ));
            }
            text.push('\n');
            text.push_str(self.lines.text());
            quotes += count(self.lines.text());
        }
        let mut record = StringRecord::new();
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .from_reader(text.as_bytes());
        let read = reader.read_record(&mut record);
        read.map_err(|error| TraceError::invalid(self.start.clone(), "CSV", error.to_string()))?;
        Ok(record)
    }

    /// The same, and the record must have `width` fields.
    pub(super) fn advance_by(&mut self, width: usize) -> Result<bool, TraceError> {
        let more = self.advance_line()?;
        if more {
            self.split_by(width)?;
        }
        Ok(more)
    }

    /// Finds the fields of the record, which must be `width`.
    pub(super) fn split_by(&mut self, width: usize) -> Result<(), TraceError> {
        self.split()?;
        if self.len() == width {
            return Ok(());
        }
        Err(TraceError::invalid(
            self.place(),
            format!("{width} columns"),
            format!("{} columns", self.len()),
        ))
    }

    /// Fields of the record read last.
    pub(super) fn len(&self) -> usize {
        match &self.quoted {
            Some(record) => record.len(),
            None => self.ends.len(),
        }
    }

    /// All of them, without spaces around.
    pub(super) fn fields(&self) -> Vec<String> {
        let fields = (0..self.len()).map(|column| self.field(column));
        fields.map(|field| field.trim().to_owned()).collect()
    }

    /// Field `column` of the record read last.
    pub(super) fn field(&self, column: usize) -> &str {
        if let Some(record) = &self.quoted {
            return record.get(column).unwrap_or_default();
        }
        let Some(&end) = self.ends.get(column) else {
            return "";
        };
        let start = column
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] + 1);
        self.lines.text_between(start, end)
    }

    /// The record read last.
    pub(super) fn place(&self) -> Place {
        match &self.quoted {
            Some(_) => self.start.clone(),
            None => self.lines.place(),
        }
    }
}

/// Tells the layout by the first record.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    let mut records = Records::open(source)?;
    if records.advance()? {
        let fields = records.fields();
        let header: Vec<&str> = fields.iter().map(String::as_str).collect();
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
    let line = records.fields().join(",");
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
