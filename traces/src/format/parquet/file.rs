//! Record batches of any Parquet file.

use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};
use std::io::{BufReader, Read};

use super::BATCH_CELLS;
use crate::error::{Place, TraceError, quote};
use crate::input::{Section, Source};
use crate::routing::MAX_CELLS;

impl Length for Source {
    fn len(&self) -> u64 {
        Source::len(self)
    }
}

impl ChunkReader for Source {
    type T = BufReader<Section>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let rest = Source::len(self).saturating_sub(start);
        Ok(BufReader::new(self.section(start, rest)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let mut bytes = Vec::new();
        // A length that a damaged file makes up must not be reserved.
        self.section(start, length as u64).read_to_end(&mut bytes)?;
        if bytes.len() != length {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} of {}",
                Source::len(self)
            )));
        }
        Ok(bytes.into())
    }
}

/// Runs `work` on contents nobody has checked: whatever goes wrong in it, a panic included, is
/// the file's fault.
pub(crate) fn guarded<T, E: Display>(
    place: &Place,
    what: &str,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, TraceError> {
    let failed = |found: String| {
        let shown: String = found.chars().take(200).collect();
        TraceError::invalid(place.clone(), what, shown)
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed("contents that are damaged".into())),
    }
}

/// What a Parquet file says of itself, and its rows batch by batch.
pub(crate) struct Batches {
    /// Columns.
    pub(crate) schema: SchemaRef,
    /// Value of [`super::METADATA_KEY`].
    pub(crate) metadata: Option<String>,
    batches: Box<dyn Iterator<Item = Result<RecordBatch, String>> + Send>,
    place: Place,
}

/// Length of lists that the schema leaves open.
const LIKELY_LIST: usize = 256;

/// Most rows of a batch.
const MAX_BATCH: usize = 1 << 16;

const READABLE: &str = "a readable Parquet file";

/// Opens `source`.
pub(crate) fn open_batches(source: &Source) -> Result<Batches, TraceError> {
    let place = source.place();
    let file = source.random()?;
    guarded(&place, READABLE, || -> Result<_, ParquetError> {
        let options = ArrowReaderOptions::new();
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?;
        let metadata = builder.metadata().clone();
        check_sizes(&metadata)?;
        let pairs = metadata.file_metadata().key_value_metadata();
        let ours =
            pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == super::METADATA_KEY));
        let ours = ours.map(|pair| pair.value.clone().unwrap_or_default());
        let schema = builder.schema().clone();
        let reader = builder.with_batch_size(rows_of(&schema)).build()?;
        Ok(Batches {
            schema,
            metadata: ours,
            batches: Box::new(reader.map(|batch| batch.map_err(|error| error.to_string()))),
            place: place.clone(),
        })
    })
}

/// Rows of a batch: where lists have a fixed length, as many as keep it small.
fn rows_of(schema: &SchemaRef) -> usize {
    let widths = schema.fields().iter().map(|field| match field.data_type() {
        DataType::FixedSizeList(_, length) => usize::try_from(*length).unwrap_or(1),
        DataType::List(_) | DataType::LargeList(_) => LIKELY_LIST,
        _ => 1,
    });
    (BATCH_CELLS / widths.sum::<usize>().max(1)).clamp(1, MAX_BATCH)
}

/// Refuses row groups that would not fit in memory, whatever they would unpack to.
fn check_sizes(metadata: &ParquetMetaData) -> Result<(), ParquetError> {
    for (index, group) in metadata.row_groups().iter().enumerate() {
        for column in group.columns() {
            let values = u64::try_from(column.num_values()).unwrap_or(u64::MAX);
            let bytes = u64::try_from(column.uncompressed_size()).unwrap_or(u64::MAX);
            if values > MAX_CELLS as u64 || bytes > 4 * MAX_CELLS as u64 {
                return Err(ParquetError::General(format!(
                    "row group {index} with {values} values of {} in {bytes} bytes; at most {MAX_CELLS} in {} are read",
                    quote(column.column_path().string().as_bytes()),
                    4 * MAX_CELLS,
                )));
            }
        }
    }
    Ok(())
}

impl Batches {
    /// Batches of another reader.
    pub(crate) fn new(
        schema: SchemaRef,
        place: Place,
        batches: Box<dyn Iterator<Item = Result<RecordBatch, String>> + Send>,
    ) -> Self {
        Self {
            schema,
            metadata: None,
            batches,
            place,
        }
    }

    /// The next rows; nothing at the end.
    pub(crate) fn advance(&mut self) -> Result<Option<RecordBatch>, TraceError> {
        let batches = &mut self.batches;
        guarded(&self.place, "readable rows", || batches.next().transpose())
    }
}
