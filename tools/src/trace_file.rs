//! Trace files that are written: which face and which compression a name asks for.

use crate::error::{Error, Place};
use flate2::write::GzEncoder;
use moeplan_traces::{ParquetWriter, TraceMeta, TraceStep, TraceWriter};
use std::io::{self, Write};
use std::path::Path;

type Out<'a> = &'a mut (dyn Write + Send);

/// A trace that is being written.
pub struct TraceFile<'a> {
    name: String,
    face: Face<'a>,
}

enum Face<'a> {
    Csv(Box<TraceWriter<Packed<'a>>>),
    Parquet(Box<ParquetWriter<Out<'a>>>),
}

/// A file, packed or not.
enum Packed<'a> {
    Plain(Out<'a>),
    Gzip(Box<GzEncoder<Out<'a>>>),
    Zstd(zstd::Encoder<'static, Out<'a>>),
}

impl Packed<'_> {
    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Packed::Plain(out) => out,
            Packed::Gzip(out) => out,
            Packed::Zstd(out) => out,
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Packed::Plain(out) => out.flush(),
            Packed::Gzip(out) => out.finish()?.flush(),
            Packed::Zstd(out) => out.finish()?.flush(),
        }
    }
}

impl Write for Packed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }
}

impl<'a> TraceFile<'a> {
    /// Begins the trace that is to be at `path`, written through `out`: `.parquet`, or `.csv`
    /// with `.gz` or `.zst` behind it or not.
    ///
    /// # Errors
    /// Another name, or metadata that cannot be written.
    pub fn new(out: Out<'a>, path: &Path, meta: TraceMeta) -> Result<TraceFile<'a>, Error> {
        let name = path.display().to_string();
        let ends = |end: &str| name.to_ascii_lowercase().ends_with(end);
        let failed = |source| Error::Write {
            path: name.clone(),
            source,
        };
        if ends(".parquet") {
            let writer = ParquetWriter::new(out, &name, meta)?;
            let face = Face::Parquet(Box::new(writer));
            return Ok(TraceFile { name, face });
        }
        let packed = if ends(".csv.gz") {
            Packed::Gzip(Box::new(GzEncoder::new(
                out,
                flate2::Compression::default(),
            )))
        } else if ends(".csv.zst") {
            Packed::Zstd(zstd::Encoder::new(out, 0).map_err(failed)?)
        } else if ends(".csv") {
            Packed::Plain(out)
        } else {
            let message = format!(
                "expected a name that ends in .csv, .csv.gz, .csv.zst or .parquet, found `{name}`"
            );
            return Err(Error::input(Place::flag("--output"), message));
        };
        let writer = TraceWriter::new(packed, &name, meta)?;
        let face = Face::Csv(Box::new(writer));
        Ok(TraceFile { name, face })
    }

    /// Appends a step.
    ///
    /// # Errors
    /// A step that does not go with the metadata, or a file that cannot be written.
    pub fn write(&mut self, step: &TraceStep) -> Result<(), Error> {
        match &mut self.face {
            Face::Csv(writer) => writer.write_step(step)?,
            Face::Parquet(writer) => writer.write_step(step)?,
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// A trace without steps, or a file that cannot be written.
    pub fn finish(self) -> Result<(), Error> {
        let finished = match self.face {
            Face::Csv(writer) => writer.finish()?.finish(),
            Face::Parquet(writer) => writer.finish()?.flush(),
        };
        finished.map_err(|source| Error::Write {
            path: self.name,
            source,
        })
    }
}
