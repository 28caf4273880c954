//! Settings files: reading them with the line of every mistake, and finding fields in them again.

use crate::error::{Error, Place};
use moeplan_sim::hardware::{Hardware, HardwareError};
use serde::de::DeserializeOwned;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Largest settings file read; a mistaken path must not fill memory.
const MAX_BYTES: u64 = 16 << 20;

/// A TOML file as read, for messages about it.
#[derive(Debug, Clone)]
pub struct Document {
    /// As the user named it.
    pub name: String,
    text: String,
}

impl Document {
    /// Reads `path`.
    ///
    /// # Errors
    /// A file that is not there, too large, or not text.
    pub fn read(path: &Path) -> Result<Document, Error> {
        let name = path.display().to_string();
        let failed = |source| Error::Read {
            path: name.clone(),
            source,
        };
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_BYTES {
            let message = format!("expected at most {MAX_BYTES} bytes of TOML, found {size}");
            return Err(Error::input(Place::file(name), message));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Ok(Document { name, text })
    }

    /// The file as a `T`.
    ///
    /// # Errors
    /// The first mistake, with its line and field.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let syntax = |error: toml::de::Error| self.mistake("", error.span(), error.message());
        let deserializer = toml::Deserializer::parse(&self.text).map_err(syntax)?;
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            self.mistake(&path, error.inner().span(), error.inner().message())
        })
    }

    /// The file as a description of hardware.
    ///
    /// # Errors
    /// The first mistake, with its line where the field is in this file and not in what it extends.
    pub fn hardware(&self) -> Result<Hardware, Error> {
        Hardware::from_toml(&self.text).map_err(|error: HardwareError| {
            self.mistake(&error.path, error.span.clone(), &error.message)
        })
    }

    /// Where `path` (`layer.top-k`, `strategy[1].policy`) is set, if it is.
    pub fn find(&self, path: &str) -> Option<Place> {
        let table = DeTable::parse(&self.text).ok()?;
        match locate(table.get_ref(), path, None) {
            (Some(span), true) => Some(self.place(path, Some(span))),
            (Some(_) | None, _) => None,
        }
    }

    /// Where in the text `path` is set, to put settings in the order of the file.
    pub fn position(&self, path: &str) -> Option<usize> {
        let table = DeTable::parse(&self.text).ok()?;
        locate(table.get_ref(), path, None).0.map(|span| span.start)
    }

    /// The error `message` on `path`.
    pub fn mistake(&self, path: &str, span: Option<Range<usize>>, message: &str) -> Error {
        // What serde_path_to_error calls the whole document.
        let path = if path == "." { "" } else { path };
        let found = DeTable::parse(&self.text)
            .ok()
            .filter(|_| !path.is_empty())
            .and_then(|table| locate(table.get_ref(), path, None).0);
        Error::input(self.place(path, span.or(found)), message)
    }

    fn place(&self, path: &str, span: Option<Range<usize>>) -> Place {
        let line = span.map(|span| {
            let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
            1 + before.iter().filter(|&&byte| byte == b'\n').count()
        });
        Place {
            file: Some(self.name.clone()),
            line,
            field: (!path.is_empty()).then(|| path.to_owned()),
        }
    }
}

/// Where something was found.
type Found = Option<Range<usize>>;

/// The span of `path` below `table`, or of the longest part of it that is there, if any, and whether
/// all of it is. Keys may hold dots (`library."nccl-2.10.3"`), so keys are tried, not split.
fn locate(table: &DeTable<'_>, path: &str, above: Found) -> (Found, bool) {
    for (key, value) in table {
        let Some(rest) = path.strip_prefix(key.get_ref().as_ref()) else {
            continue;
        };
        if rest.is_empty() {
            return (Some(key.span()), true);
        }
        if rest.starts_with(['.', '[']) {
            return locate_in(value, rest, Some(key.span()));
        }
    }
    (above, false)
}

fn locate_in(value: &Spanned<DeValue<'_>>, rest: &str, above: Found) -> (Found, bool) {
    if rest.is_empty() {
        return (above, true);
    }
    match value.get_ref() {
        DeValue::Table(table) => match rest.strip_prefix('.') {
            Some(path) => locate(table, path, above),
            None => (above, false),
        },
        DeValue::Array(items) => {
            let index = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let item = index
                .and_then(|(index, rest)| Some((items.get(index.parse::<usize>().ok()?)?, rest)));
            match item {
                Some((item, rest)) => locate_in(item, rest, Some(item.span())),
                None => (above, false),
            }
        }
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => (above, false),
    }
}
