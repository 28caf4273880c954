//! Columns of Parquet and Arrow files, named as those of the CSV layouts: choices of every token
//! (lists of ids, or one column a choice), rows of counts (a list, or one column an expert), or
//! counts listed by layer and expert.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;

use super::assemble::{Rows, assemble};
use super::counts::{Columns, Listing};
use super::grouped::{CountRow, CountRows, group};
use super::nested::{Nested, Record, RowMaker};
use super::table::Row;
use super::text::numbered;
use super::{ImportOptions, ImportReport, Imported, arrow, names, tokens};
use crate::error::{Place, TraceError, quote};
use crate::format::parquet::{Batches, open_batches};
use crate::input::Source;

/// Reads a Parquet file.
pub(super) fn read_parquet(
    source: &Source,
    options: &ImportOptions,
) -> Result<Imported, TraceError> {
    read("Parquet", source, options, || open_batches(source))
}

/// Reads an Arrow file or stream.
pub(super) fn read_arrow(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    read("Arrow", source, options, || arrow::open(source))
}

fn read(
    format: &str,
    source: &Source,
    options: &ImportOptions,
    open: impl Fn() -> Result<Batches, TraceError>,
) -> Result<Imported, TraceError> {
    let open = || Ok::<_, TraceError>(RecordRows::new(open()?, source.place()));
    let mut rows = open()?;
    let header: Vec<&str> = rows.names.iter().map(String::as_str).collect();
    if tokens::is_header(&header) {
        let layout = format!("expert ids of every token, {format}");
        return assemble(&layout, source.place(), options, || {
            Ok(ColumnTokens {
                rows: open()?,
                ready: VecDeque::new(),
                maker: RowMaker::new(options.top_k),
            })
        });
    }
    if let Some(columns) = Columns::find(&header) {
        let mut listing = Listing::default();
        while rows.advance()? {
            listing.add(
                &columns,
                || rows.place(),
                |column, most| rows.number(column, most),
            )?;
        }
        let layout = format!("counts per layer and expert, {format}");
        return listing.build(&layout, &source.place(), options);
    }
    let listed = header
        .iter()
        .position(|name| names::is(name, names::COUNTS));
    let mut experts: Vec<(u32, usize)> = Vec::new();
    for (column, name) in header.iter().enumerate() {
        let number = numbered(name, names::NUMBERED_COUNTS);
        experts.extend(number.map(|number| (number, column)));
    }
    experts.sort_unstable();
    let in_order = (0..)
        .zip(&experts)
        .all(|(index, (number, _))| index == *number);
    let columns: Vec<usize> = match listed {
        Some(column) => vec![column],
        None => experts.into_iter().map(|(_, column)| column).collect(),
    };
    if columns.is_empty() || !in_order {
        return Err(TraceError::invalid(
            source.place().field("schema"),
            "columns of expert ids or counts (docs/formats.md lists them)",
            quote(header.join(", ").as_bytes()),
        ));
    }
    let layout = format!("rows of counts, {format}");
    group(&layout, ColumnCounts { rows, columns }, options)
}

/// Rows of record batches, one by one.
struct RecordRows {
    batches: Batches,
    names: Vec<String>,
    batch: Option<RecordBatch>,
    /// Of the batch.
    row: usize,
    /// Rows of all batches up to the one at hand.
    total: u64,
    file: Place,
}

impl RecordRows {
    fn new(batches: Batches, file: Place) -> Self {
        let fields = batches.schema.fields().iter();
        Self {
            names: fields.map(|field| field.name().clone()).collect(),
            batches,
            batch: None,
            row: 0,
            total: 0,
            file,
        }
    }

    /// Goes to the next row; false at the end.
    fn advance(&mut self) -> Result<bool, TraceError> {
        self.row += 1;
        while self
            .batch
            .as_ref()
            .is_none_or(|batch| self.row >= batch.num_rows())
        {
            self.batch = self.batches.advance()?;
            self.row = 0;
            if self.batch.is_none() {
                return Ok(false);
            }
        }
        self.total += 1;
        Ok(true)
    }

    fn place(&self) -> Place {
        let row = self.total.saturating_sub(1);
        self.file.clone().field(format!("row {row}"))
    }

    fn field(&self, column: usize) -> Place {
        let row = self.total.saturating_sub(1);
        let name = self.names.get(column).map_or("", String::as_str);
        self.file.clone().field(format!("{name}, row {row}"))
    }

    fn find(&self, names: &[&str]) -> Option<usize> {
        self.names.iter().position(|name| names::is(name, names))
    }

    /// The cell of the row at hand.
    fn cell(&self, column: usize) -> Result<Nested, TraceError> {
        let mut nested = Nested::default();
        let array = self.batch.as_ref().map(|batch| batch.column(column));
        let array = array.ok_or_else(|| {
            TraceError::invalid(self.field(column), "a row", "the end of the file")
        })?;
        append(array, self.row, 0, &mut nested).map_err(|found| {
            TraceError::invalid(
                self.field(column),
                "numbers, or lists of equal length",
                found,
            )
        })?;
        Ok(nested)
    }

    /// The whole number in a cell.
    fn number(&self, column: usize, most: u64) -> Result<u64, TraceError> {
        let cell = self.cell(column)?;
        let fits = |value: f64| {
            value.fract() == 0.0 && (0.0..=most as f64).contains(&value) && value < TWO_64
        };
        match cell.values[..] {
            [value] if cell.shape.is_empty() && fits(value) => Ok(value as u64),
            _ => Err(TraceError::invalid(
                self.field(column),
                format!("a whole number from 0 to {most}"),
                format!("{:?}", cell.values.first()),
            )),
        }
    }

    fn optional(&self, names: &[&str], most: u64) -> Result<Option<u64>, TraceError> {
        let column = self.find(names);
        column.map(|column| self.number(column, most)).transpose()
    }
}

const TWO_64: f64 = 18_446_744_073_709_551_616.0;

/// Appends the value of `array` in `row` to `nested`; says what is there instead of numbers.
fn append(
    array: &Arc<dyn Array>,
    row: usize,
    depth: usize,
    nested: &mut Nested,
) -> Result<(), String> {
    if array.is_null(row) {
        return Err("a null".into());
    }
    macro_rules! number {
        ($type:ty) => {
            array
                .as_primitive_opt::<$type>()
                .map(|array| array.value(row) as f64)
        };
    }
    let value = match array.data_type() {
        DataType::Int8 => number!(Int8Type),
        DataType::Int16 => number!(Int16Type),
        DataType::Int32 => number!(Int32Type),
        DataType::Int64 => number!(Int64Type),
        DataType::UInt8 => number!(UInt8Type),
        DataType::UInt16 => number!(UInt16Type),
        DataType::UInt32 => number!(UInt32Type),
        DataType::UInt64 => number!(UInt64Type),
        DataType::Float32 => number!(Float32Type),
        DataType::Float64 => number!(Float64Type),
        _ => None,
    };
    if let Some(value) = value {
        nested.values.push(value);
        return Ok(());
    }
    let items = match array.data_type() {
        DataType::List(_) => array.as_list_opt::<i32>().map(|lists| lists.value(row)),
        DataType::LargeList(_) => array.as_list_opt::<i64>().map(|lists| lists.value(row)),
        DataType::FixedSizeList(..) => array.as_fixed_size_list_opt().map(|lists| lists.value(row)),
        _ => None,
    };
    let items = items.ok_or_else(|| format!("{}", array.data_type()))?;
    match nested.shape.get(depth) {
        None => nested.shape.push(items.len()),
        Some(&length) if length == items.len() => {}
        Some(length) => return Err(format!("lists of {length} and {}", items.len())),
    }
    (0..items.len()).try_for_each(|item| append(&items, item, depth + 1, nested))
}

struct ColumnTokens {
    rows: RecordRows,
    ready: VecDeque<Row>,
    maker: RowMaker,
}

impl ColumnTokens {
    fn record(&self) -> Result<Record, TraceError> {
        let rows = &self.rows;
        let wide = |prefixes: &[&str]| {
            let named = rows.names.iter().enumerate();
            let numbers = named.filter_map(|(column, name)| {
                numbered(name, prefixes).map(|number| (number, column))
            });
            let mut numbers: Vec<(u32, usize)> = numbers.collect();
            numbers.sort_unstable();
            numbers
        };
        // A list in one column, or a number in each of several.
        let choices = |names: &[&str], prefixes: &[&str]| -> Result<_, TraceError> {
            if let Some(column) = rows.find(names) {
                return rows.cell(column).map(Some);
            }
            let mut nested = Nested::default();
            for (_, column) in wide(prefixes) {
                nested.values.extend(rows.cell(column)?.values);
            }
            nested.shape.push(nested.values.len());
            Ok(Some(nested).filter(|nested| !nested.values.is_empty()))
        };
        let layers = |prefixes: &[&str]| {
            let cells = wide(prefixes).into_iter();
            cells
                .map(|(layer, column)| Ok((layer, rows.cell(column)?)))
                .collect::<Result<Vec<_>, TraceError>>()
        };
        Ok(Record {
            step: rows.optional(names::STEP, u64::MAX)?,
            layer: rows.optional(names::LAYER, u32::MAX.into())?,
            rank: rows.optional(names::RANK, u32::MAX.into())?,
            ids: choices(names::IDS, names::NUMBERED_IDS)?,
            scores: choices(names::SCORES, names::NUMBERED_SCORES)?,
            wide_ids: layers(names::LAYER_IDS)?,
            wide_scores: layers(names::LAYER_SCORES)?,
        })
    }
}

impl Rows for ColumnTokens {
    fn next_row(&mut self, row: &mut Row) -> Result<bool, TraceError> {
        while self.ready.is_empty() {
            if !self.rows.advance()? {
                return Ok(false);
            }
            let record = self.record()?;
            let rows = &self.rows;
            let place = |field: &str| {
                let place = rows.place();
                let at = place.field.clone().unwrap_or_default();
                place.field(format!("{field}, {at}"))
            };
            self.maker.append(record, place, &mut self.ready)?;
        }
        if let Some(next) = self.ready.pop_front() {
            *row = next;
        }
        Ok(true)
    }

    fn place(&self) -> Place {
        self.rows.place()
    }

    fn report(&self, report: &mut ImportReport) {
        report.left_out_choices += self.maker.left_out;
    }
}

struct ColumnCounts {
    rows: RecordRows,
    /// Of one list, or of the experts.
    columns: Vec<usize>,
}

impl CountRows for ColumnCounts {
    fn next_row(&mut self, row: &mut CountRow) -> Result<bool, TraceError> {
        if !self.rows.advance()? {
            return Ok(false);
        }
        let most = u64::from(u32::MAX);
        row.step = self.rows.optional(names::STEP, u64::MAX)?;
        row.layer = self
            .rows
            .optional(names::LAYER, most)?
            .map(|layer| layer as u32);
        row.rank = self
            .rows
            .optional(names::RANK, most)?
            .map(|rank| rank as u32);
        row.counts.clear();
        for &column in &self.columns {
            for value in self.rows.cell(column)?.values {
                if value.fract() != 0.0 || !(0.0..=most as f64).contains(&value) {
                    return Err(TraceError::invalid(
                        self.rows.field(column),
                        format!("whole numbers from 0 to {most}"),
                        value.to_string(),
                    ));
                }
                row.counts.push(value as u32);
            }
        }
        Ok(true)
    }

    fn place(&self) -> Place {
        self.rows.place()
    }
}
