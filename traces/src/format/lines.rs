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
    /// The line that is being read.
    buffer: Vec<u8>,
    /// The line read last.
    text: String,
    /// Whether the last line may lack its line feed.
    open_end: bool,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R, name: &str) -> Self {
        Self {
            reader,
            name: name.to_owned(),
            number: 0,
            buffer: Vec::new(),
            text: String::new(),
            open_end: false,
        }
    }

    /// The same, for formats in which a cut line is noticed by itself.
    pub(crate) fn with_open_end(mut self) -> Self {
        self.open_end = true;
        self
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
        self.buffer = std::mem::take(&mut self.text).into_bytes();
        self.buffer.clear();
        let mut complete = false;
        while !complete {
            let chunk = match self.reader.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(source) => {
                    let place = Place::of(self.name.as_str()).line(self.number + 1);
                    return Err(TraceError::reading(place, source));
                }
            };
            if chunk.is_empty() {
                break;
            }
            let used = match memchr::memchr(b'\n', chunk) {
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
        if !complete && !self.open_end {
            return Err(TraceError::invalid(
                self.place(),
                "a line feed at the end of the line (is the file cut off?)",
                quote(&self.buffer),
            ));
        }
        if complete {
            self.buffer.pop();
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        match String::from_utf8(std::mem::take(&mut self.buffer)) {
            Ok(text) => {
                self.text = text;
                Ok(true)
            }
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                let byte = error.as_bytes().get(at).copied().unwrap_or_default();
                Err(TraceError::invalid(
                    self.place(),
                    "UTF-8 text",
                    format!("byte 0x{byte:02x}"),
                ))
            }
        }
    }

    /// The line read last, without its line feed.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// A part of it; nothing where that would cut a letter.
    pub(crate) fn text_between(&self, start: usize, end: usize) -> &str {
        self.text.get(start..end).unwrap_or_default()
    }

    /// The same as bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

/// Appends the numbers of `row`, which are separated by commas.
///
/// Gives up at whatever is not digits and commas, or too large for 32 bits: then the caller has
/// to look closely, by [`parse_number`].
pub(crate) fn append_numbers(row: &[u8], numbers: &mut Vec<u32>) -> bool {
    // 10 digits are the most of a u32, and do not overflow a u64.
    const MOST_DIGITS: u32 = 10;
    let (mut value, mut digits) = (0_u64, 0_u32);
    for &byte in row {
        let digit = byte.wrapping_sub(b'0');
        if digit < 10 {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
            digits += 1;
        } else if byte == b',' && digits.wrapping_sub(1) < MOST_DIGITS {
            let Ok(number) = u32::try_from(value) else {
                return false;
            };
            numbers.push(number);
            (value, digits) = (0, 0);
        } else {
            return false;
        }
    }
    match u32::try_from(value) {
        Ok(number) if digits.wrapping_sub(1) < MOST_DIGITS => {
            numbers.push(number);
            true
        }
        _ => false,
    }
}

/// The number of one to three digits that `bytes` begin with, and how many digits it has: 0 where
/// there is none, 4 where there are more than three.
///
/// Four bytes at once: lengths in no order are what a branch a digit guesses worst.
pub(crate) fn leading_number(bytes: &[u8]) -> (u32, usize) {
    const EACH: u32 = 0x0101_0101;
    let word = match bytes.first_chunk() {
        Some(word) => u32::from_le_bytes(*word),
        None => {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(word)
        }
    };
    let values = word ^ (EACH * u32::from(b'0'));
    // The highest bit of every byte that is above 9.
    let others = (((values & (EACH * 0x7f)) + EACH * 0x76) | values) & (EACH * 0x80);
    let digits = others.trailing_zeros() / 8;
    // The first digit is in the lowest byte: shifting puts zeros before it.
    let [_, hundreds, tens, ones] = values
        .checked_shl(32 - 8 * digits)
        .unwrap_or(0)
        .to_le_bytes();
    let number = u32::from(hundreds) * 100 + u32::from(tens) * 10 + u32::from(ones);
    (number, digits as usize)
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

/// A finite score.
pub(crate) fn parse_score(text: &str, place: impl FnOnce() -> Place) -> Result<f32, TraceError> {
    match text.parse::<f32>() {
        Ok(score) if score.is_finite() => Ok(score),
        _ => Err(TraceError::invalid(
            place(),
            "a finite number",
            quote(text.as_bytes()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::leading_number;
    use proptest::prelude::*;

    #[test]
    fn leading_numbers_end_at_anything_else() {
        for (text, expected) in [
            ("", (0, 0)),
            (",1", (0, 0)),
            ("7", (7, 1)),
            ("0 1", (0, 1)),
            ("31,", (31, 2)),
            ("127/", (127, 3)),
            ("1:", (1, 1)),
            ("12\u{b9}", (12, 2)),
        ] {
            assert_eq!(leading_number(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(leading_number(b"1234").1, 4);
    }

    proptest! {
        #[test]
        fn leading_numbers_are_those_of_the_standard_library(
            number in 0_u32..1000, rest in "([^0-9].{0,9})?",
        ) {
            let digits = number.to_string();
            let read = leading_number(format!("{digits}{rest}").as_bytes());
            prop_assert_eq!(read, (number, digits.len()));
        }
    }
}
