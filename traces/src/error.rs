//! The one error of this crate.

use std::fmt;
use std::io;

/// Where in a file (or in which argument) something is wrong.
///
/// Prints as ``trace.csv:12: `e3` ``; the parts that are not known are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File name as the caller gave it, or the name of the argument.
    pub name: String,
    /// Line number, counted from 1.
    pub line: Option<u64>,
    /// Column, metadata key or part of an argument.
    pub field: Option<String>,
}

impl Place {
    /// A whole file or argument.
    pub fn of(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            line: None,
            field: None,
        }
    }

    /// The same place, narrowed to a line.
    #[must_use]
    pub fn line(mut self, line: u64) -> Self {
        self.line = Some(line);
        self
    }

    /// The same place, narrowed to a field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": `{field}`")?;
        }
        Ok(())
    }
}

/// What is wrong with a trace, a routing specification or a target shape.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Something other than what the format asks for.
    #[error("{place}: expected {expected}, found {found}")]
    Invalid {
        /// File, line and field.
        place: Place,
        /// What would have been right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file could not be read or written.
    #[error("{place}: {source}")]
    Io {
        /// File and, when reading, the line reached.
        place: Place,
        /// The system's own words.
        #[source]
        source: io::Error,
    },
}

impl TraceError {
    /// File, line and field of the problem.
    pub fn place(&self) -> &Place {
        match self {
            Self::Invalid { place, .. } | Self::Io { place, .. } => place,
        }
    }

    /// A failed read. What [`too_much`] says of the contents is told as such.
    pub(crate) fn reading(place: Place, source: io::Error) -> Self {
        let said = source.get_ref().and_then(|inner| inner.downcast_ref());
        match said {
            Some(TooMuch { expected, found }) => Self::invalid(place, expected, found),
            None => Self::Io { place, source },
        }
    }

    /// The same problem at another place; what `place` leaves open is kept.
    pub(crate) fn at(self, place: Place) -> Self {
        let merge = |old: Place| Place {
            line: place.line.or(old.line),
            field: place.field.clone().or(old.field),
            name: place.name.clone(),
        };
        match self {
            Self::Invalid {
                place: old,
                expected,
                found,
            } => Self::Invalid {
                place: merge(old),
                expected,
                found,
            },
            Self::Io { place: old, source } => Self::Io {
                place: merge(old),
                source,
            },
        }
    }

    pub(crate) fn invalid(
        place: Place,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            place,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// Contents that a reader refuses, on their way through [`io::Read`].
#[derive(Debug, thiserror::Error)]
#[error("expected {expected}, found {found}")]
struct TooMuch {
    expected: String,
    found: String,
}

/// An error of reading that is told as invalid contents.
pub(crate) fn too_much(expected: impl Into<String>, found: impl Into<String>) -> io::Error {
    let (expected, found) = (expected.into(), found.into());
    io::Error::new(io::ErrorKind::InvalidData, TooMuch { expected, found })
}

/// `bytes` in quotes, escaped and cut short: it may be a gigabyte of anything.
pub(crate) fn quote(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    let cut = bytes.len() > SHOWN;
    let shown = if cut { &bytes[..SHOWN] } else { bytes };
    let text = String::from_utf8_lossy(shown).escape_debug().to_string();
    if cut {
        format!("\"{text}...\" ({} bytes)", bytes.len())
    } else {
        format!("\"{text}\"")
    }
}
