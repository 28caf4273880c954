//! Traces by name: those that ship, and files of any layout.

use crate::error::{Error, Place};
use moeplan_traces::{
    ImportOptions, RoutingStep, SHIPPED, Trace, TraceError, TraceMeta, TraceSource, shipped,
};
use std::fs::File;

/// The steps of a trace, one at a time.
pub enum Stream {
    /// Of a trace that ships.
    Shipped(TraceMeta, std::vec::IntoIter<RoutingStep>),
    /// Of a file.
    File(Box<TraceSource>),
}

impl Stream {
    /// Where the trace comes from: complete after the last step.
    pub fn meta(&self) -> TraceMeta {
        match self {
            Stream::Shipped(meta, _) => meta.clone(),
            Stream::File(source) => source.meta_seen(),
        }
    }

    /// What was left out so far of what is in the file.
    pub(super) fn reduced(&self) -> Vec<String> {
        match self {
            Stream::Shipped(..) => Vec::new(),
            Stream::File(source) => source.report().reduced(),
        }
    }
}

impl Iterator for Stream {
    type Item = Result<RoutingStep, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Stream::Shipped(_, steps) => steps.next().map(Ok),
            Stream::File(source) => source.next(),
        }
    }
}

/// A shipped trace, or the file of this name, step by step; `place` is where it was named.
///
/// # Errors
/// No such trace, or one that is none.
pub fn stream(name: &str, options: &ImportOptions, place: Place) -> Result<Stream, Error> {
    if SHIPPED.contains(&name) {
        let Trace { meta, steps } = shipped(name)?;
        return Ok(Stream::Shipped(meta, steps.into_iter()));
    }
    let source = open_file(name, options, place)?;
    Ok(Stream::File(Box::new(source)))
}

/// The same, all of it in memory.
///
/// # Errors
/// No such trace, or one that cannot be read.
pub fn open(name: &str, options: &ImportOptions, place: Place) -> Result<Trace, Error> {
    if SHIPPED.contains(&name) {
        return Ok(shipped(name)?);
    }
    Ok(open_file(name, options, place)?.read()?)
}

/// The file of this name, of whatever layout, to be read step by step; `place` is where it was
/// named.
///
/// # Errors
/// No such file, or one that is no trace.
pub fn open_file(name: &str, options: &ImportOptions, place: Place) -> Result<TraceSource, Error> {
    Ok(moeplan_traces::open(file(name, place)?, name, options)?)
}

/// The same of what the ranks of one run recorded, a file each.
///
/// # Errors
/// No such file, one that is no trace, or files that differ in experts or top-k.
pub fn open_files(
    names: &[String],
    options: &ImportOptions,
    place: &Place,
) -> Result<TraceSource, Error> {
    if let [name] = names {
        return open_file(name, options, place.clone());
    }
    let files = names
        .iter()
        .map(|name| Ok((file(name, place.clone())?, name.clone())));
    let files = files.collect::<Result<_, Error>>()?;
    Ok(moeplan_traces::open_ranks(files, options)?)
}

fn file(name: &str, place: Place) -> Result<File, Error> {
    File::open(name).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            let message = format!(
                "expected a shipped trace ({}) or a file, found `{name}`",
                SHIPPED.join(", ")
            );
            Error::input(place, message)
        }
        _ => Error::Read {
            path: name.to_owned(),
            source,
        },
    })
}
