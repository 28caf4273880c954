//! Lines of a text file, read one at a time into one buffer.

use std::io::{BufRead, ErrorKind};

use crate::error::{Place, TraceError, quote};

/// Longest line: a row of a million experts. Whatever is longer is no trace, and must not fill
/// the memory.
const MAX_LINE: usize = 16 << 20;

/// Reads lines that must be UTF-8 and end in a line feed.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    name: String,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R, name: &str) -> Self {
        Self {
            reader,
            name: name.to_owned(),
            number: 0,
            buffer: Vec::new(),
        }
    }

    /// The line read last, or the file if none was.
    pub(crate) fn place(&self) -> Place {
        let place = Place::of(self.name.as_str());
        if self.number == 0 {
            place
        } else {
            place.line(self.number)
        }
    }

    /// Reads the next line; false at the end of the file.
    pub(crate) fn advance(&mut self) -> Result<bool, TraceError> {
        self.buffer.clear();
        let mut complete = false;
        while !complete {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(source) => {
                    let place = Place::of(self.name.as_str()).line(self.number + 1);
                    return Err(TraceError::Io { place, source });
                }
            };
            if chunk.is_empty() {
                break;
            }
            let used = match chunk.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    complete = true;
                    end + 1
                }
                None => chunk.len(),
            };
            self.buffer.extend_from_slice(&chunk[..used]);
            self.reader.consume(used);
            if self.buffer.len() > MAX_LINE {
                self.number += 1;
                return Err(TraceError::invalid(
                    self.place(),
                    format!("a line of at most {MAX_LINE} bytes"),
                    quote(&self.buffer),
                ));
            }
        }
        if self.buffer.is_empty() {
            return Ok(false);
        }
        self.number += 1;
        if !complete {
            return Err(TraceError::invalid(
                self.place(),
                "a line feed at the end of the line (is the file cut off?)",
                quote(&self.buffer),
            ));
        }
        self.buffer.pop();
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        if let Err(error) = std::str::from_utf8(&self.buffer) {
            let bad = &self.buffer[error.valid_up_to()..];
            let byte = bad.first().copied().unwrap_or_default();
            return Err(TraceError::invalid(
                self.place(),
                "UTF-8 text",
                format!("byte 0x{byte:02x}"),
            ));
        }
        Ok(true)
    }

    /// The line read last, without its line feed.
    pub(crate) fn text(&self) -> &str {
        // Checked when it was read.
        std::str::from_utf8(&self.buffer).unwrap_or_default()
    }
}

/// A whole number of at most `most`, written in digits only.
pub(crate) fn parse_number(
    text: &str,
    most: u64,
    place: impl FnOnce() -> Place,
) -> Result<u64, TraceError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(number) if digits && number <= most => Ok(number),
        _ => Err(TraceError::invalid(
            place(),
            format!("a whole number from 0 to {most}"),
            quote(text.as_bytes()),
        )),
    }
}
