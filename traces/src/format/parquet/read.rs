//! Reading the Parquet face, one step at a time.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrowPrimitiveType, RecordBatch};

use super::{Batches, METADATA_KEY};
use crate::error::{Place, TraceError};
use crate::format::{Rows, TraceMeta, TraceStep};
use crate::routing::{MAX_CELLS, RoutingStep};
use crate::tokens::TokenStep;

/// Yields the steps of a trace in file order; holds one batch and one step at a time.
pub(crate) struct ParquetReader {
    batches: Batches,
    meta: TraceMeta,
    rows: Rows,
    name: String,
    batch: Option<Batch>,
    /// Rows of earlier batches, for messages.
    before: u64,
    last: Option<(u64, u32)>,
    finished: bool,
}

/// The columns of the rows at hand, and which of them come next.
struct Batch {
    rows: RecordBatch,
    next: usize,
}

/// Key columns of a batch.
struct Keys<'a> {
    steps: &'a [u64],
    layers: &'a [u32],
    ranks: &'a [u32],
}

/// What was gathered of a step.
#[derive(Default)]
struct Step {
    /// Tokens per source rank seen so far, or rows in the case of counts.
    tokens: Vec<usize>,
    numbers: Vec<u32>,
    scores: Vec<f32>,
}

impl ParquetReader {
    /// Reads what `batches` say of themselves, which must be of this format.
    pub(crate) fn new(batches: Batches, name: &str) -> Result<Self, TraceError> {
        let text = batches.metadata.as_deref().unwrap_or_default();
        let meta = TraceMeta::parse(text, name)
            .map_err(|error| error.at(Place::of(name).field(METADATA_KEY)))?;
        let has = |column: &str| batches.schema.column_with_name(column).is_some();
        let rows = if has("counts") {
            Rows::Counts
        } else {
            Rows::Tokens {
                scores: has("scores"),
            }
        };
        Ok(Self {
            batches,
            meta,
            rows,
            name: name.to_owned(),
            batch: None,
            before: 0,
            last: None,
            finished: false,
        })
    }

    /// What the file says of itself.
    pub(crate) fn meta(&self) -> &TraceMeta {
        &self.meta
    }

    /// The next step; nothing at the end of the file, and after an error.
    pub(crate) fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        if self.finished {
            return Ok(None);
        }
        let step = self.read_step();
        self.finished = !matches!(step, Ok(Some(_)));
        step
    }

    fn place(&self, row: usize, field: &str) -> Place {
        let row = self.before + row as u64;
        Place::of(self.name.as_str()).field(format!("{field}, row {row}"))
    }

    fn read_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        let mut step = Step {
            tokens: vec![0; self.meta.source_ranks],
            ..Step::default()
        };
        let mut key = None;
        while self.fill()? {
            let Some(batch) = self.batch.take() else {
                break;
            };
            let next = self.gather(&batch, &mut key, &mut step)?;
            let rows = batch.rows;
            let more = next < rows.num_rows();
            self.batch = Some(Batch { rows, next });
            if more {
                break;
            }
        }
        match key {
            Some(key) => self.finish_step(key, step).map(Some),
            None if self.last.is_some() => Ok(None),
            None => {
                let place = Place::of(self.name.as_str());
                Err(TraceError::invalid(place, "at least one step", "no rows"))
            }
        }
    }

    /// Makes sure that a row is at hand; false at the end of the file.
    fn fill(&mut self) -> Result<bool, TraceError> {
        loop {
            if let Some(batch) = &self.batch {
                if batch.next < batch.rows.num_rows() {
                    return Ok(true);
                }
                self.before += batch.rows.num_rows() as u64;
                self.batch = None;
            }
            match self.batches.advance()? {
                Some(rows) => self.batch = Some(Batch { rows, next: 0 }),
                None => return Ok(false),
            }
        }
    }

    /// Appends the rows of `batch` that belong to the step of the first; returns where others
    /// begin.
    fn gather(
        &self,
        batch: &Batch,
        key: &mut Option<(u64, u32)>,
        step: &mut Step,
    ) -> Result<usize, TraceError> {
        let keys = Keys {
            steps: self.column::<UInt64Type>(&batch.rows, "step")?,
            layers: self.column::<UInt32Type>(&batch.rows, "layer")?,
            ranks: self.column::<UInt32Type>(&batch.rows, "source_rank")?,
        };
        let of = |row: usize| (keys.steps[row], keys.layers[row]);
        let key = *key.get_or_insert(of(batch.next));
        let same = (batch.next..batch.rows.num_rows()).take_while(|&row| of(row) == key);
        let range = batch.next..batch.next + same.count();
        if self.last.is_some_and(|last| key <= last) {
            return Err(TraceError::invalid(
                self.place(range.start, "step"),
                "ascending steps, and layers within a step",
                format!("step {}, layer {}", key.0, key.1),
            ));
        }
        self.count_ranks(&keys, &range, step)?;
        let (column, width) = match self.rows {
            Rows::Counts => ("counts", self.meta.experts),
            Rows::Tokens { .. } => ("experts", self.meta.top_k as usize),
        };
        let cells = step.numbers.len() + range.len().saturating_mul(width);
        if cells > MAX_CELLS {
            let expected = format!("at most {MAX_CELLS} numbers in a step");
            let place = self.place(range.start, column);
            return Err(TraceError::invalid(place, expected, cells.to_string()));
        }
        let numbers = self.list::<UInt32Type>(&batch.rows, column, width, &range)?;
        step.numbers.extend_from_slice(numbers);
        if self.rows == (Rows::Tokens { scores: true }) {
            let scores = self.list::<Float32Type>(&batch.rows, "scores", width, &range)?;
            step.scores.extend_from_slice(scores);
        }
        Ok(range.end)
    }

    /// Notes the source ranks of the rows, which must come in order.
    fn count_ranks(
        &self,
        keys: &Keys<'_>,
        range: &Range<usize>,
        step: &mut Step,
    ) -> Result<(), TraceError> {
        let ranks = self.meta.source_ranks;
        let mut least = step.tokens.iter().rposition(|&rows| rows > 0);
        for row in range.clone() {
            let rank = keys.ranks[row] as usize;
            let (expected, right) = match self.rows {
                Rows::Counts => {
                    let next = least.map_or(0, |last| last + 1);
                    (next.to_string(), rank == next && rank < ranks)
                }
                Rows::Tokens { .. } => {
                    let least = least.unwrap_or(0);
                    let right = (least..ranks).contains(&rank);
                    (format!("{least} to {}, ascending", ranks - 1), right)
                }
            };
            if !right {
                let place = self.place(row, "source_rank");
                return Err(TraceError::invalid(place, expected, rank.to_string()));
            }
            step.tokens[rank] += 1;
            least = Some(rank);
        }
        Ok(())
    }

    fn finish_step(&mut self, key: (u64, u32), step: Step) -> Result<TraceStep, TraceError> {
        self.last = Some(key);
        let (top_k, experts) = (self.meta.top_k, self.meta.experts);
        let file = Place::of(self.name.as_str());
        let at = |error: TraceError| {
            let field = error.place().field.clone().unwrap_or_default();
            let field = format!("step {}, layer {}: {field}", key.0, key.1);
            error.at(file.clone().field(field))
        };
        let (built, tokens) = match self.rows {
            Rows::Counts => {
                let rows = step.numbers.len() / experts;
                if rows != self.meta.source_ranks {
                    return Err(TraceError::invalid(
                        file.field(format!("step {}, layer {}", key.0, key.1)),
                        format!("{} source ranks", self.meta.source_ranks),
                        format!("{rows} rows"),
                    ));
                }
                let built = RoutingStep::new(key.0, key.1, top_k, experts, step.numbers);
                let built = built.map_err(at)?;
                let tokens = (0..rows)
                    .map(|rank| u64::from(built.tokens(rank)))
                    .collect();
                (TraceStep::Counts(built), tokens)
            }
            Rows::Tokens { scores } => {
                let scores = scores.then_some(step.scores);
                let (ranks, ids) = (&step.tokens, step.numbers);
                let built = TokenStep::new(key.0, key.1, top_k, experts, ranks, ids, scores);
                let tokens: Vec<u64> = ranks.iter().map(|&tokens| tokens as u64).collect();
                (TraceStep::Tokens(built.map_err(at)?), tokens)
            }
        };
        if let Some(expected) = self.meta.tokens_per_rank
            && let Some(rank) = tokens
                .iter()
                .position(|&found| found != u64::from(expected))
        {
            return Err(TraceError::invalid(
                file.field(format!("step {}, layer {}, rank {rank}", key.0, key.1)),
                format!("{expected} tokens (tokens_per_rank)"),
                tokens[rank].to_string(),
            ));
        }
        Ok(built)
    }

    /// The values of a column that has one in every row.
    fn column<'a, T: ArrowPrimitiveType>(
        &self,
        rows: &'a RecordBatch,
        name: &str,
    ) -> Result<&'a [T::Native], TraceError> {
        let found = rows.column_by_name(name);
        let typed = found.and_then(|column| column.as_primitive_opt::<T>());
        match typed.filter(|column| column.null_count() == 0) {
            Some(column) => Ok(column.values()),
            None => Err(TraceError::invalid(
                Place::of(self.name.as_str()).field(name),
                format!("a column of {} without nulls", T::DATA_TYPE),
                found.map_or("none".into(), |column| {
                    format!("{} with {} nulls", column.data_type(), column.null_count())
                }),
            )),
        }
    }

    /// The values of a column of lists of `width`.
    fn list<'a, T: ArrowPrimitiveType>(
        &self,
        rows: &'a RecordBatch,
        name: &str,
        width: usize,
        range: &Range<usize>,
    ) -> Result<&'a [T::Native], TraceError> {
        let found = rows.column_by_name(name);
        let lists = found.and_then(|column| column.as_fixed_size_list_opt());
        let values = lists.filter(|lists| {
            lists.null_count() == 0 && usize::try_from(lists.value_length()) == Ok(width)
        });
        let typed = values.and_then(|lists| lists.values().as_primitive_opt::<T>());
        match typed.filter(|values| values.null_count() == 0) {
            Some(values) => Ok(&values.values()[range.start * width..range.end * width]),
            None => Err(TraceError::invalid(
                Place::of(self.name.as_str()).field(name),
                format!("lists of {width} {} without nulls", T::DATA_TYPE),
                found.map_or("no such column".into(), |column| {
                    column.data_type().to_string()
                }),
            )),
        }
    }
}
