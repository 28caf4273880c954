//! Matrices of counts as CSV: a row a source rank, a column an expert. A header may name columns
//! of the step, the layer and the rank before those of the experts (`e0`, `expert_0` or `0`).
//! Without a header, or without such columns, all rows are ranks of one step.

use super::grouped::{CountRow, CountRows, group};
use super::text::{Records, is_digits, numbered};
use super::{ImportOptions, Imported, names};
use crate::error::{Place, TraceError};
use crate::format::{append_numbers, parse_number};
use crate::input::Source;

/// Whether this is the header of such a file.
pub(super) fn is_header(header: &[&str]) -> bool {
    let counts = header
        .iter()
        .filter(|name| expert_of(name).is_some())
        .count();
    counts > 0
        && header
            .iter()
            .all(|name| expert_of(name).is_some() || is_key(name))
}

fn expert_of(name: &str) -> Option<u32> {
    numbered(name, names::NUMBERED_COUNTS).or_else(|| is_digits(name).then(|| name.parse().ok())?)
}

fn is_key(name: &str) -> bool {
    [names::STEP, names::LAYER, names::RANK]
        .iter()
        .any(|known| names::is(name, known))
}

/// Reads all rows.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    let mut records = Records::open(source)?;
    records.advance()?;
    let header: Vec<String> = records.fields();
    let plain = header.iter().all(|name| is_digits(name));
    let find = |names: &[&str]| header.iter().position(|name| names::is(name, names));
    let mut experts: Vec<(u32, usize)> = Vec::new();
    for (column, name) in header.iter().enumerate() {
        let number = if plain {
            Some(column as u32)
        } else {
            expert_of(name)
        };
        experts.extend(number.map(|number| (number, column)));
    }
    experts.sort_unstable();
    let out_of_order = experts
        .iter()
        .enumerate()
        .find(|(index, (number, _))| *index as u64 != u64::from(*number));
    if let Some((index, &(_, column))) = out_of_order {
        return Err(TraceError::invalid(
            records.place().field(header[column].as_str()),
            format!("a column of expert {index}"),
            "another one",
        ));
    }
    let rows = MatrixRows {
        step: find(names::STEP),
        layer: find(names::LAYER),
        rank: find(names::RANK),
        columns: experts.into_iter().map(|(_, column)| column).collect(),
        width: header.len(),
        // The first record holds counts already.
        held: plain,
        header,
        records,
    };
    group("matrices of counts, CSV", rows, options)
}

struct MatrixRows {
    records: Records,
    header: Vec<String>,
    step: Option<usize>,
    layer: Option<usize>,
    rank: Option<usize>,
    /// Of the experts.
    columns: Vec<usize>,
    width: usize,
    held: bool,
}

impl MatrixRows {
    fn number(&self, column: usize, most: u64) -> Result<u64, TraceError> {
        let place = || self.place().field(self.header[column].as_str());
        parse_number(self.records.field(column).trim(), most, place)
    }
}

impl CountRows for MatrixRows {
    fn next_row(&mut self, row: &mut CountRow) -> Result<bool, TraceError> {
        if !std::mem::take(&mut self.held) && !self.records.advance_by(self.width)? {
            return Ok(false);
        }
        let key = |column: Option<usize>, most: u64| {
            column.map(|column| self.number(column, most)).transpose()
        };
        row.step = key(self.step, u64::MAX)?;
        row.layer = key(self.layer, u32::MAX.into())?.map(|layer| layer as u32);
        row.rank = key(self.rank, u32::MAX.into())?.map(|rank| rank as u32);
        row.counts.clear();
        for &column in &self.columns {
            let text = self.records.field(column);
            let before = row.counts.len();
            if !append_numbers(text.as_bytes(), &mut row.counts) || row.counts.len() > before + 1 {
                row.counts.truncate(before);
                row.counts
                    .push(self.number(column, u32::MAX.into())? as u32);
            }
        }
        Ok(true)
    }

    fn place(&self) -> Place {
        self.records.place()
    }
}
