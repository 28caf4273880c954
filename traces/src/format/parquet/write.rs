//! Writing the Parquet face.

use std::io::Write;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float32Array, PrimitiveArray, RecordBatch, UInt32Array,
    UInt64Array,
};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::{BATCH_CELLS, METADATA_KEY};
use crate::error::TraceError;
use crate::format::{Rows, StepCheck, TraceMeta, TraceStep};

/// Numbers of one row group: what a reader unpacks at once.
const GROUP_CELLS: usize = 16 << 20;

/// Writes a trace step by step as zstd-compressed Parquet; `moeplan_traces::open` reads back the
/// same steps and metadata.
///
/// The first step decides whether rows hold counts or the choices of single tokens.
pub struct ParquetWriter<W: Write + Send> {
    check: StepCheck,
    /// Until the first step has told the columns.
    pending: Option<W>,
    writer: Option<ArrowWriter<W>>,
    schema: SchemaRef,
    rows: Columns,
}

/// Rows that are not written yet.
#[derive(Default)]
struct Columns {
    steps: Vec<u64>,
    layers: Vec<u32>,
    ranks: Vec<u32>,
    numbers: Vec<u32>,
    scores: Vec<f32>,
}

impl<W: Write + Send> ParquetWriter<W> {
    /// A writer of a trace of these sizes. `name` is the file name for messages.
    pub fn new(writer: W, name: &str, meta: TraceMeta) -> Result<Self, TraceError> {
        meta.checked_lines(name)?;
        Ok(Self {
            check: StepCheck::new(name, meta),
            pending: Some(writer),
            writer: None,
            schema: Arc::new(Schema::empty()),
            rows: Columns::default(),
        })
    }

    /// Appends a step, which must be of the sizes in the metadata and come after the last one.
    pub fn write_step(&mut self, step: &TraceStep) -> Result<(), TraceError> {
        let rows = match step {
            TraceStep::Counts(_) => Rows::Counts,
            TraceStep::Tokens(step) => Rows::Tokens {
                scores: step.all_scores().is_some(),
            },
        };
        if self.check.begin(rows)? {
            self.start(rows)?;
        }
        let columns = &mut self.rows;
        let mut key = |rank: usize, times: usize| {
            columns
                .steps
                .extend(std::iter::repeat_n(step.step(), times));
            columns
                .layers
                .extend(std::iter::repeat_n(step.layer(), times));
            columns
                .ranks
                .extend(std::iter::repeat_n(rank as u32, times));
        };
        match step {
            TraceStep::Counts(step) => {
                self.check.counts(step)?;
                (0..step.source_ranks()).for_each(|rank| key(rank, 1));
                columns.numbers.extend_from_slice(step.all_counts());
            }
            TraceStep::Tokens(step) => {
                self.check.tokens(step)?;
                (0..step.source_ranks()).for_each(|rank| key(rank, step.tokens(rank)));
                columns.numbers.extend_from_slice(step.all_ids());
                columns
                    .scores
                    .extend_from_slice(step.all_scores().unwrap_or_default());
            }
        }
        if self.rows.numbers.len() >= BATCH_CELLS {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what is left and the metadata, and gives the writer back. A trace without a step is
    /// an error, as it could not be read.
    pub fn finish(mut self) -> Result<W, TraceError> {
        self.check.finish()?;
        self.flush()?;
        match self.writer.take() {
            Some(writer) => writer.into_inner().map_err(|error| self.failed(&error)),
            None => Err(TraceError::invalid(
                self.check.place(),
                "at least one step",
                "none",
            )),
        }
    }

    fn failed(&self, error: &ParquetError) -> TraceError {
        TraceError::Io {
            place: self.check.place(),
            source: std::io::Error::other(error.to_string()),
        }
    }

    fn start(&mut self, rows: Rows) -> Result<(), TraceError> {
        let meta = &self.check.meta;
        let lists = match rows {
            Rows::Counts => vec![list("counts", DataType::UInt32, meta.experts)],
            Rows::Tokens { scores } => {
                let width = meta.top_k as usize;
                let ids = list("experts", DataType::UInt32, width);
                let scores = scores.then(|| list("scores", DataType::Float32, width));
                std::iter::once(ids).chain(scores).collect()
            }
        };
        let mut fields = vec![
            Field::new("step", DataType::UInt64, false),
            Field::new("layer", DataType::UInt32, false),
            Field::new("source_rank", DataType::UInt32, false),
        ];
        fields.extend(lists);
        self.schema = Arc::new(Schema::new(fields));
        let lines = meta.checked_lines(&self.check.name)?;
        let text: String = lines
            .iter()
            .map(|(key, value)| format!("# {key}: {value}\n"))
            .collect();
        let cells = match rows {
            Rows::Counts => meta.experts,
            Rows::Tokens { .. } => meta.top_k as usize,
        };
        let properties = WriterProperties::builder()
            .set_created_by("moeplan".into())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(Some((GROUP_CELLS / cells).max(1)))
            .set_key_value_metadata(Some(vec![KeyValue::new(METADATA_KEY.into(), text)]))
            .build();
        let Some(writer) = self.pending.take() else {
            return Ok(());
        };
        let writer = ArrowWriter::try_new(writer, Arc::clone(&self.schema), Some(properties));
        self.writer = Some(writer.map_err(|error| self.failed(&error))?);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TraceError> {
        let rows = std::mem::take(&mut self.rows);
        let written = match &mut self.writer {
            Some(writer) if !rows.steps.is_empty() => rows
                .into_batch(&self.schema)
                .map_err(ParquetError::from)
                .and_then(|batch| writer.write(&batch)),
            _ => Ok(()),
        };
        written.map_err(|error| self.failed(&error))
    }
}

/// A column of lists of `width` numbers.
fn list(name: &str, of: DataType, width: usize) -> Field {
    let item = Field::new("item", of, false);
    // At most 2^20 experts.
    let width = i32::try_from(width).unwrap_or(i32::MAX);
    Field::new(name, DataType::FixedSizeList(Arc::new(item), width), false)
}

impl Columns {
    fn into_batch(self, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(self.steps)),
            Arc::new(UInt32Array::from(self.layers)),
            Arc::new(UInt32Array::from(self.ranks)),
            lists(schema, 3, UInt32Array::from(self.numbers))?,
        ];
        if schema.fields().len() > columns.len() {
            columns.push(lists(schema, 4, Float32Array::from(self.scores))?);
        }
        RecordBatch::try_new(Arc::clone(schema), columns)
    }
}

fn lists<T: arrow_array::ArrowPrimitiveType>(
    schema: &SchemaRef,
    column: usize,
    values: PrimitiveArray<T>,
) -> Result<ArrayRef, ArrowError> {
    let DataType::FixedSizeList(item, width) = schema.field(column).data_type() else {
        return Err(ArrowError::SchemaError("a column of lists".into()));
    };
    let values = Arc::new(values);
    FixedSizeListArray::try_new(Arc::clone(item), *width, values, None)
        .map(|lists| Arc::new(lists) as ArrayRef)
}
