//! The only code that formats results: a table for people, JSON and CSV for programs.

pub mod breakdown;
pub mod chart;
pub mod comparison;
mod csv;
mod json;
pub mod numbers;
pub mod parquet;
pub mod perfetto;
pub mod plan;
pub mod plot;
pub mod raster;
pub mod sweep;
pub mod table;
pub mod trace;
pub mod validation;

use crate::error::Error;
use crate::session::Session;
use crate::settings::Format;
use moeplan_sim::model::MemorySaving;
use serde_json::{Map, Value};
use std::io::{self, Write};
use std::path::Path;

/// Marks of the ways a figure was obtained, with what they mean.
pub const MARKS: [(&str, &str, &str); 6] = [
    ("measured", "m", "measured at this very point"),
    ("interpolated", "i", "between measured points"),
    (
        "fitted",
        "f",
        "a model fitted to measurements, inside their range",
    ),
    ("roofline", "r", "first principles over peak rates"),
    (
        "extrapolated",
        "x",
        "a model beyond the range it was measured on: trust ratios more than the time itself",
    ),
    ("counted", "c", "counted on the operations, not timed"),
];

/// What a model's step does to need less memory, in words, each behind a comma.
pub fn saving(saving: &MemorySaving, tensor_parallel: u64) -> String {
    let parts = [
        (saving.shard_states, ", states sharded".to_owned()),
        (saving.shard_gradients, ", gradients sharded".to_owned()),
        (saving.recompute, ", blocks recomputed".to_owned()),
        (
            saving.micro_batches > 1,
            format!(", in {} micro-batches", saving.micro_batches),
        ),
        (
            tensor_parallel > 1,
            format!(", weights shared by {tensor_parallel}"),
        ),
    ];
    let parts = parts.into_iter().filter(|(is, _)| *is);
    parts.map(|(_, what)| what).collect()
}

/// What a command found, before it is formatted.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The command.
    pub command: &'static str,
    /// Settings in force.
    pub settings: Value,
    /// Seed in force.
    pub seed: u64,
    /// Keys of the JSON document after the settings.
    pub body: Map<String, Value>,
    /// Key in `body` whose items are the rows of the CSV.
    pub rows: &'static str,
    /// For people.
    pub text: String,
}

impl Answer {
    /// A document in a format of others, which is written as it is.
    pub fn document(text: String) -> Answer {
        Answer {
            text,
            ..Answer::default()
        }
    }

    fn is_document(&self) -> bool {
        self.command.is_empty()
    }
}

/// Writes `answer` in the format and to the place asked for.
///
/// # Errors
/// A file that cannot be written. A reader that has gone away is no error.
pub fn write(answer: &Answer, session: &mut Session<'_>) -> Result<(), Error> {
    let text = match session.output.format.unwrap_or_default() {
        _ if answer.is_document() => answer.text.clone(),
        Format::Table => answer.text.clone(),
        Format::Json => json::render(answer)?,
        Format::Csv => csv::render(answer)?,
    };
    write_text(&text, session)
}

/// Writes `text` to the place asked for.
///
/// # Errors
/// A file that cannot be written. A reader that has gone away is no error.
pub fn write_text(text: &str, session: &mut Session<'_>) -> Result<(), Error> {
    match session.output.file.clone() {
        Some(path) => replace(&path, text.as_bytes()),
        None => {
            let written = session.streams.stdout.write_all(text.as_bytes());
            match written.and_then(|()| session.streams.stdout.flush()) {
                Err(source) if source.kind() != io::ErrorKind::BrokenPipe => Err(Error::Write {
                    path: "standard output".into(),
                    source,
                }),
                Ok(()) | Err(_) => Ok(()),
            }
        }
    }
}

/// The folder a file is written to.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

/// Fails early where `path` can never be written, before anything long is computed.
///
/// # Errors
/// No such folder, or a folder in the file's place.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write {
        path: path.display().to_string(),
        source,
    };
    if path.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let folder = folder_of(path);
    if !folder.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::NotFound)));
    }
    Ok(())
}

/// Puts `bytes` at `path` at once: readers see the old file or the new one, whole.
///
/// # Errors
/// A file that cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_with(path, |file| {
        file.write_all(bytes).map_err(|source| Error::Write {
            path: path.display().to_string(),
            source,
        })
    })
}

/// As [`replace`], for what is written bit by bit: where `write` fails nothing is left behind.
///
/// # Errors
/// A file that cannot be written, and what `write` fails with.
pub fn replace_with<T>(
    path: &Path,
    write: impl FnOnce(&mut (dyn Write + Send)) -> Result<T, Error>,
) -> Result<T, Error> {
    let failed = |source| Error::Write {
        path: path.display().to_string(),
        source,
    };
    let mut file = tempfile::NamedTempFile::new_in(folder_of(path)).map_err(failed)?;
    let mut buffered = io::BufWriter::with_capacity(1 << 16, &mut file);
    let written = write(&mut buffered)?;
    buffered.flush().map_err(failed)?;
    drop(buffered);
    share(&file).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(written)
}

/// Gives the file the rights that a file made plainly would have; temporary ones are private.
#[cfg(unix)]
fn share(file: &tempfile::NamedTempFile) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let rights = std::fs::Permissions::from_mode(0o644);
    file.as_file().set_permissions(rights)
}

#[cfg(not(unix))]
fn share(_: &tempfile::NamedTempFile) -> io::Result<()> {
    Ok(())
}
