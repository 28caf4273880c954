//! The lines that a sweep writes as its scenarios finish, and reads again to go on.
//!
//! The first line says which sweep and which shard of it; every other is the number of a scenario, a
//! checksum, and its rows in JSON. Whatever a kill leaves behind is a whole number of lines and perhaps
//! a torn last one, which is cut off.

use super::Shard;
use crate::error::{Error, Place};
use crate::output;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Which sweep, and which part of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Header {
    /// Version of the program.
    pub moeplan: String,
    /// The sweep, by what it expands to.
    pub sweep: String,
    /// Scenarios of the whole sweep.
    pub scenarios: usize,
    /// The part in this file.
    pub shard: Shard,
    /// Settings that vary.
    pub columns: Vec<String>,
    /// Seed of scenarios that set none.
    pub seed: u64,
    /// The sweep file.
    pub settings: Json,
}

/// What is done so far.
#[derive(Debug)]
pub struct Journal {
    /// Which sweep.
    pub header: Header,
    /// Rows in JSON by scenario, as text: what is read back is what was written.
    done: BTreeMap<usize, String>,
    /// Where it is kept, if anywhere.
    kept: Option<(PathBuf, File)>,
    /// Lines not yet forced to disk.
    pending: usize,
}

/// Lines forced to disk at once: what a power cut may cost.
const BATCH: usize = 32;

impl Journal {
    /// One that nothing is kept of.
    pub fn in_memory(header: Header) -> Journal {
        Journal {
            header,
            done: BTreeMap::new(),
            kept: None,
            pending: 0,
        }
    }

    /// A new one at `path`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn create(path: &Path, header: Header) -> Result<Journal, Error> {
        let failed = |source| write_error(path, source);
        let mut line = serde_json::to_string(&header)
            .map_err(|error| Error::Unexpected(format!("journal: {error}")))?;
        line.push('\n');
        // A kill must not leave half a header.
        output::replace(path, line.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        Ok(Journal {
            kept: Some((path.to_owned(), file)),
            ..Journal::in_memory(header)
        })
    }

    /// The one at `path`, to go on with `header`'s sweep; what a kill tore off is dropped.
    ///
    /// # Errors
    /// A journal of another sweep, or one that is damaged.
    pub fn resume(path: &Path, header: Header) -> Result<Journal, Error> {
        let (found, good) = Journal::load(path)?;
        let same = Header {
            settings: Json::Null,
            ..found.header.clone()
        };
        let wanted = Header {
            settings: Json::Null,
            ..header.clone()
        };
        if same != wanted {
            return Err(Error::input(
                Place::file(path.display().to_string()),
                other_sweep(&wanted, &same),
            ));
        }
        let failed = |source| write_error(path, source);
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        file.set_len(good).map_err(failed)?;
        Ok(Journal {
            header,
            kept: Some((path.to_owned(), file)),
            ..found
        })
    }

    /// Reads the journal at `path`; returns it with the bytes of it that are whole.
    ///
    /// # Errors
    /// A file that is not there, no journal, or damaged before its end.
    pub fn load(path: &Path) -> Result<(Journal, u64), Error> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| Error::Read {
            path: name.clone(),
            source,
        })?;
        let at = |line: usize, message: &str| {
            let place = Place {
                file: Some(name.clone()),
                line: Some(line),
                field: None,
            };
            Error::input(place, message)
        };
        let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
        let first = lines.next().unwrap_or_default();
        let header: Header = serde_json::from_slice(first)
            .map_err(|error| at(1, &format!("expected the journal of a sweep: {error}")))?;
        let mut journal = Journal::in_memory(header);
        let mut good = first.len() as u64;
        let mut lines = lines.enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            let Some((scenario, rows)) = parse(line) else {
                // Only the end can be torn.
                if lines.peek().is_some() {
                    return Err(at(index + 2, "expected a whole line, found a damaged one"));
                }
                break;
            };
            if scenario >= journal.header.scenarios {
                let message = format!(
                    "expected a scenario below {}, found {scenario}",
                    journal.header.scenarios
                );
                return Err(at(index + 2, &message));
            }
            if journal.done.insert(scenario, rows).is_some() {
                let message = format!("expected every scenario once, found {scenario} twice");
                return Err(at(index + 2, &message));
            }
            good += line.len() as u64;
        }
        Ok((journal, good))
    }

    /// Adds the rows of a scenario.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn add(&mut self, scenario: usize, rows: String) -> Result<(), Error> {
        if let Some((path, file)) = &mut self.kept {
            let body = format!("{scenario}\t{rows}");
            let line = format!("{:08x}\t{body}\n", crc32fast::hash(body.as_bytes()));
            file.write_all(line.as_bytes())
                .map_err(|source| write_error(path, source))?;
            self.pending += 1;
            if self.pending >= BATCH {
                self.flush()?;
            }
        }
        self.done.insert(scenario, rows);
        Ok(())
    }

    /// Forces what was added to disk.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn flush(&mut self) -> Result<(), Error> {
        if let Some((path, file)) = &mut self.kept
            && self.pending > 0
        {
            file.sync_data()
                .map_err(|source| write_error(path, source))?;
            self.pending = 0;
        }
        Ok(())
    }

    /// Whether `scenario` is done.
    pub fn has(&self, scenario: usize) -> bool {
        self.done.contains_key(&scenario)
    }

    /// Scenarios done.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// The scenarios done with their rows, in order.
    pub fn into_done(self) -> BTreeMap<usize, String> {
        self.done
    }

    /// All rows, in the order of scenarios.
    ///
    /// # Errors
    /// None of the user's.
    pub fn rows(&self) -> Result<Vec<Json>, Error> {
        let mut all = Vec::new();
        for rows in self.done.values() {
            let rows: Vec<Json> = serde_json::from_str(rows)
                .map_err(|error| Error::Unexpected(format!("journal: {error}")))?;
            all.extend(rows);
        }
        Ok(all)
    }

    /// Puts the journal at `path`, complete, its lines in the order of scenarios.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let failed = |source| write_error(path, source);
        let header = serde_json::to_string(&self.header)
            .map_err(|error| Error::Unexpected(format!("journal: {error}")))?;
        output::replace_with(path, |file| {
            writeln!(file, "{header}").map_err(failed)?;
            for (scenario, rows) in &self.done {
                let body = format!("{scenario}\t{rows}");
                writeln!(file, "{:08x}\t{body}", crc32fast::hash(body.as_bytes()))
                    .map_err(failed)?;
            }
            Ok(())
        })
    }
}

/// The scenario and rows of a line that is whole.
fn parse(line: &[u8]) -> Option<(usize, String)> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (sum, body) = line.split_once('\t')?;
    if u32::from_str_radix(sum, 16).ok()? != crc32fast::hash(body.as_bytes()) {
        return None;
    }
    let (scenario, rows) = body.split_once('\t')?;
    Some((scenario.parse().ok()?, rows.to_owned()))
}

fn other_sweep(wanted: &Header, found: &Header) -> String {
    if wanted.moeplan != found.moeplan {
        return format!(
            "expected a journal of moeplan {}, found one of {}: remove it to start over",
            wanted.moeplan, found.moeplan
        );
    }
    if wanted.sweep == found.sweep {
        return format!(
            "expected a journal of shard {}, found one of {}",
            wanted.shard, found.shard
        );
    }
    "expected the journal of this sweep, found one of another: its scenarios or a file that they \
     name have changed; remove it to start over"
        .to_owned()
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Write {
        path: path.display().to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn header() -> Header {
        Header {
            moeplan: "1".into(),
            sweep: "abc".into(),
            scenarios: 4,
            shard: Shard::WHOLE,
            columns: vec!["seed".into()],
            seed: 0,
            settings: json!({}),
        }
    }

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("out.partial");
        let mut journal = Journal::create(&path, header()).unwrap();
        for scenario in [2, 0, 3] {
            journal.add(scenario, format!("[{scenario}]")).unwrap();
        }
        path
    }

    #[test]
    fn a_torn_end_costs_one_line_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = std::fs::read(&path).unwrap();
        let header_ends = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for length in header_ends..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let mut journal = Journal::resume(&path, header()).unwrap();
            let lost = whole[length..]
                .iter()
                .filter(|&&byte| byte == b'\n')
                .count();
            assert_eq!(journal.len(), 3 - lost);
            journal.add(1, "[1]".into()).unwrap();
            assert_eq!(Journal::load(&path).unwrap().0.len(), 4 - lost);
        }
    }

    #[test]
    fn damage_before_the_end_is_told_with_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\t[0]", "\t[9]")).unwrap();
        let error = Journal::resume(&path, header()).unwrap_err().to_string();
        assert!(error.contains("out.partial:3:"), "{error}");
    }

    #[test]
    fn another_sweep_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let other = Header {
            sweep: "abd".into(),
            ..header()
        };
        assert!(Journal::resume(&path, other).is_err());
        let newer = Header {
            moeplan: "2".into(),
            ..header()
        };
        let error = Journal::resume(&path, newer).unwrap_err().to_string();
        assert!(error.contains("moeplan 2"), "{error}");
    }
}
