//! Reading traces of any known layout, one step at a time.
//!
//! What a file is, is told by its first bytes, never by its name; `docs/formats.md` lists the
//! layouts. One file each:
//!
//! | layout | file |
//! |---|---|
//! | moeplan-trace/1 | `crate::format` |
//! | arrays in `.npy` and `.npz` | [`npy`] |
//! | SGLang's recorder, other `torch.save` files | [`torch`], [`pickle`] |
//! | counts per layer and expert, listed as CSV | [`counts`] |
//! | matrices of counts as CSV | [`matrix`] |
//! | choices of every token as CSV | [`tokens`] |
//! | choices of every token as JSON lines | [`jsonl`] |
//! | columns of Parquet and Arrow files | [`columns`] |

mod arrow;
mod assemble;
mod columns;
mod counts;
mod grouped;
mod joined;
mod jsonl;
mod matrix;
mod names;
mod nested;
mod npy;
mod options;
mod pickle;
mod repeats;
mod report;
mod table;
mod tensor;
mod text;
mod tokens;
mod torch;
mod zipped;

pub use options::{Assign, Axis, ImportOptions};
pub use report::ImportReport;

use crate::error::{Place, TraceError};
use crate::format::parquet::{ParquetReader, open_batches};
use crate::format::{Trace, TraceMeta, TraceReader, TraceStep};
use crate::input::{Input, Source};
use crate::routing::{RoutingStep, Shape};
use repeats::Repeats;

/// Steps in ascending order of (step, layer).
pub(crate) trait Steps: Send {
    /// The next step; nothing at the end, and after an error.
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError>;

    /// Adds what was left out and changed so far.
    fn report(&self, _report: &mut ImportReport) {}
}

/// What an importer returns.
pub(crate) struct Imported {
    /// Sizes; texts empty.
    pub(crate) meta: TraceMeta,
    /// What the file is, and what was taken for granted.
    pub(crate) report: ImportReport,
    pub(crate) steps: Box<dyn Steps>,
}

impl Imported {
    pub(crate) fn new(
        layout: &str,
        sizes: Sizes,
        assumed: Vec<String>,
        steps: impl Steps + 'static,
    ) -> Self {
        Self {
            meta: TraceMeta {
                model: String::new(),
                experts: sizes.experts,
                top_k: sizes.top_k,
                source_ranks: sizes.source_ranks,
                tokens_per_rank: sizes.tokens_per_rank,
                origin: String::new(),
                licence: String::new(),
                recorded_by: String::new(),
                reduced: Vec::new(),
                notes: Vec::new(),
            },
            report: ImportReport {
                layout: layout.to_owned(),
                assumed,
                ..ImportReport::default()
            },
            steps: Box::new(steps),
        }
    }
}

/// What all steps of a trace share.
pub(crate) struct Sizes {
    pub(crate) experts: usize,
    pub(crate) top_k: u32,
    pub(crate) source_ranks: usize,
    pub(crate) tokens_per_rank: Option<u32>,
}

/// A trace that is read step by step, whatever its layout.
///
/// Holds a step at a time, and of the layouts that do not lie in the order of steps (see
/// [`Assign::Slices`]) what is needed to bring them into it.
pub struct TraceSource {
    meta: TraceMeta,
    report: ImportReport,
    canonical: bool,
    steps: Box<dyn Steps>,
    finished: bool,
    /// Shape of the first step, and whether all others have it.
    shape: Option<Shape>,
    even: bool,
}

impl std::fmt::Debug for TraceSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("TraceSource");
        shown.field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl TraceSource {
    fn canonical(layout: &str, meta: &TraceMeta, steps: impl Steps + 'static) -> Self {
        Self {
            meta: meta.clone(),
            report: ImportReport {
                layout: layout.to_owned(),
                ..ImportReport::default()
            },
            canonical: true,
            steps: Box::new(steps),
            finished: false,
            shape: None,
            even: true,
        }
    }

    fn imported(imported: Imported, name: &str, options: &ImportOptions) -> Self {
        let mut meta = imported.meta;
        meta.origin = name.trim().replace(['\n', '\r'], " ");
        let mut report = imported.report;
        report.divided_by = options.dp_size.or(report.divided_by);
        Self {
            meta,
            report,
            canonical: false,
            steps: Box::new(Repeats::new(imported.steps, options, Place::of(name))),
            finished: false,
            shape: None,
            even: true,
        }
    }

    /// Where the trace comes from and what all its steps share. Of imported files the sizes and
    /// what was done to them is known, little else.
    pub fn meta(&self) -> &TraceMeta {
        &self.meta
    }

    /// Whether the file is of moeplan's own format.
    pub fn is_canonical(&self) -> bool {
        self.canonical
    }

    /// What was taken for granted, dropped and changed so far: complete after the last step.
    pub fn report(&self) -> ImportReport {
        let mut report = self.report.clone();
        self.steps.report(&mut report);
        report
    }

    /// The next step in as much detail as the file has; nothing at the end, and after an error.
    pub fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        if self.finished {
            return Ok(None);
        }
        let step = self.steps.next_step();
        self.finished = !matches!(step, Ok(Some(_)));
        step
    }

    /// The metadata with what was seen and done on the way: complete after the last step.
    pub fn meta_seen(&self) -> TraceMeta {
        let report = self.report();
        let mut meta = self.meta.clone();
        meta.reduced.extend(report.reduced());
        meta.notes.extend(report.assumed);
        if !self.canonical {
            let shape = self.shape.filter(|_| self.even);
            meta.tokens_per_rank = shape.map(|shape| shape.tokens_per_rank);
        }
        meta
    }

    /// All steps as counts, in memory.
    pub fn read(mut self) -> Result<Trace, TraceError> {
        let steps = self.by_ref().collect::<Result<Vec<_>, _>>()?;
        let meta = self.meta_seen();
        Ok(Trace { meta, steps })
    }

    /// Notes the shape of a step.
    fn see(&mut self, step: RoutingStep) -> RoutingStep {
        if !self.canonical && self.even {
            let shape = step.shape();
            self.even = shape.is_some() && self.shape.is_none_or(|first| Some(first) == shape);
            self.shape = shape;
        }
        step
    }
}

impl Iterator for TraceSource {
    type Item = Result<RoutingStep, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.next_step().transpose()?;
        Some(step.map(|step| self.see(step.into_counts())))
    }
}

impl<R: std::io::BufRead + Send> Steps for TraceReader<R> {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        TraceReader::next_step(self)
    }
}

impl Steps for ParquetReader {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        ParquetReader::next_step(self)
    }
}

/// Opens a trace of any layout, compressed by gzip or zstd or not. `name` is the file name for
/// messages.
///
/// [`TraceSource`] then yields its steps one at a time.
pub fn open(
    input: impl Input,
    name: &str,
    options: &ImportOptions,
) -> Result<TraceSource, TraceError> {
    Ok(match open_any(input, name, options)? {
        Opened::Canonical(source) => source,
        Opened::Imported(imported) => TraceSource::imported(imported, name, options),
    })
}

/// Opens the files that the ranks of one run recorded, as one trace: the source ranks of every file
/// follow those of the file before. Steps that not all of them have are left out.
pub fn open_ranks(
    inputs: Vec<(impl Input, String)>,
    options: &ImportOptions,
) -> Result<TraceSource, TraceError> {
    let mut parts = Vec::with_capacity(inputs.len());
    for (input, name) in inputs {
        match open_any(input, &name, options)? {
            Opened::Imported(imported) => parts.push((name, imported)),
            Opened::Canonical(_) => {
                let expected = "what one rank recorded, as several files are joined";
                let place = Place::of(name.as_str());
                return Err(TraceError::invalid(
                    place,
                    expected,
                    "a trace of moeplan's own",
                ));
            }
        }
    }
    let name = match parts.as_slice() {
        [(first, _)] => first.clone(),
        [(first, _), more @ ..] => format!("{first} and {} more", more.len()),
        [] => String::new(),
    };
    let joined = joined::join(parts)?;
    Ok(TraceSource::imported(joined, &name, options))
}

/// A file of either kind.
enum Opened {
    Canonical(TraceSource),
    Imported(Imported),
}

fn open_any(input: impl Input, name: &str, options: &ImportOptions) -> Result<Opened, TraceError> {
    let source = Source::new(input, name)?;
    options.check(source.place())?;
    let head = source.head(HEAD)?;
    let imported = match head.as_slice() {
        [] => {
            return Err(TraceError::invalid(
                source.place(),
                "a trace",
                "an empty file",
            ));
        }
        [b'#', ..] => {
            let reader = TraceReader::new(source.stream()?, name)?;
            let meta = reader.meta().clone();
            return Ok(Opened::Canonical(TraceSource::canonical(
                "moeplan-trace/1, CSV",
                &meta,
                reader,
            )));
        }
        [b'P', b'A', b'R', b'1', ..] => {
            let batches = open_batches(&source)?;
            if batches.metadata.is_some() {
                let reader = ParquetReader::new(batches, name)?;
                let meta = reader.meta().clone();
                return Ok(Opened::Canonical(TraceSource::canonical(
                    "moeplan-trace/1, Parquet",
                    &meta,
                    reader,
                )));
            }
            columns::read_parquet(&source, options)?
        }
        [b'A', b'R', b'R', b'O', b'W', b'1', ..] | [0xff, 0xff, 0xff, 0xff, ..] => {
            columns::read_arrow(&source, options)?
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => npy::read(&source, options)?,
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => zipped::read(&source, options)?,
        [0x80, ..] => return Err(pickle::bare(&source)),
        head => match head.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{') => jsonl::read(&source, options)?,
            _ => text::read(&source, options)?,
        },
    };
    Ok(Opened::Imported(imported))
}

/// Bytes by which a layout is recognised.
const HEAD: usize = 4 << 10;
