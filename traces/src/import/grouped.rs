//! Steps out of rows of counts, one row a source rank.

use super::tensor::divide;
use super::{ImportOptions, ImportReport, Imported, Sizes, Steps, names};
use crate::error::{Place, TraceError};
use crate::format::TraceStep;
use crate::routing::{MAX_CELLS, RoutingStep};

/// Counts of one source rank, and what the file says of them.
#[derive(Debug, Clone, Default)]
pub(super) struct CountRow {
    pub(super) step: Option<u64>,
    pub(super) layer: Option<u32>,
    pub(super) rank: Option<u32>,
    pub(super) counts: Vec<u32>,
}

/// A file of rows of counts.
pub(super) trait CountRows: Send {
    /// Reads the next row; false at the end of the file.
    fn next_row(&mut self, row: &mut CountRow) -> Result<bool, TraceError>;

    /// Where the row read last is.
    fn place(&self) -> Place;
}

/// Builds the importer. Rows of one step and layer follow each other, in order of source ranks.
/// Without a column of steps a new one begins where layer and rank do not ascend.
pub(super) fn group(
    layout: &str,
    rows: impl CountRows + 'static,
    options: &ImportOptions,
) -> Result<Imported, TraceError> {
    let file = Place::of(rows.place().name);
    let mut grouped = Grouped {
        rows: Box::new(rows),
        ahead: None,
        step: 0,
        last: None,
        ranks: None,
        top_k: options.top_k.unwrap_or(1),
        divisor: options.dp_size.unwrap_or(1),
        rounded: 0,
        first: None,
    };
    let Some(first) = grouped.read_group()? else {
        let expected = "at least one row of counts";
        return Err(TraceError::invalid(file, expected, "the end of the file"));
    };
    let sizes = Sizes {
        experts: first.num_experts(),
        top_k: first.top_k(),
        source_ranks: first.source_ranks(),
        tokens_per_rank: None,
    };
    let mut assumed = Vec::new();
    if options.top_k.is_none() {
        assumed.push(names::TOP_K_ASSUMED.into());
    }
    grouped.first = Some(first);
    Ok(Imported::new(layout, sizes, assumed, grouped))
}

struct Grouped {
    rows: Box<dyn CountRows>,
    ahead: Option<CountRow>,
    /// Number of the step at hand, where the file does not say it.
    step: u64,
    last: Option<(u64, u32)>,
    ranks: Option<usize>,
    top_k: u32,
    divisor: u32,
    rounded: u64,
    /// The step that was read to learn the sizes.
    first: Option<RoutingStep>,
}

impl Grouped {
    fn next_row(&mut self) -> Result<Option<CountRow>, TraceError> {
        if let Some(row) = self.ahead.take() {
            return Ok(Some(row));
        }
        let mut row = CountRow::default();
        Ok(self.rows.next_row(&mut row)?.then_some(row))
    }

    fn read_group(&mut self) -> Result<Option<RoutingStep>, TraceError> {
        let Some(first) = self.next_row()? else {
            return Ok(None);
        };
        let layer = first.layer.unwrap_or(0);
        if let (Some((_, last)), None) = (self.last, first.step)
            && (first.layer.is_none() || layer <= last)
        {
            self.step += 1;
        }
        let key = (first.step.unwrap_or(self.step), layer);
        let place = self.rows.place();
        if self.last.is_some_and(|last| key <= last) {
            return Err(TraceError::invalid(
                place.field("step"),
                "ascending steps, and layers within a step",
                format!("step {}, layer {}", key.0, key.1),
            ));
        }
        self.last = Some(key);
        let (step, layer_named, mut last_rank) = (first.step, first.layer, first.rank);
        let experts = first.counts.len();
        let mut counts = first.counts;
        let mut ranks = 1;
        while let Some(row) = self.next_row()? {
            let same = (row.step, row.layer) == (step, layer_named)
                && (row.rank.is_none() || row.rank > last_rank);
            if !same {
                self.ahead = Some(row);
                break;
            }
            if row.counts.len() != experts || counts.len() + experts > MAX_CELLS {
                return Err(TraceError::invalid(
                    self.rows.place(),
                    format!("{experts} counts, as in the row before, {MAX_CELLS} in a step"),
                    format!("{} counts", row.counts.len()),
                ));
            }
            counts.extend_from_slice(&row.counts);
            last_rank = row.rank;
            ranks += 1;
        }
        if *self.ranks.get_or_insert(ranks) != ranks {
            return Err(TraceError::invalid(
                self.rows.place(),
                format!("{} source ranks in every step", self.ranks.unwrap_or(ranks)),
                format!("{ranks} in step {}, layer {}", key.0, key.1),
            ));
        }
        if self.divisor > 1 {
            self.rounded += divide(&mut counts, self.divisor);
        }
        let built = RoutingStep::new(key.0, key.1, self.top_k, experts, counts);
        built.map(Some).map_err(|error| {
            let field = error.place().field.clone().unwrap_or_default();
            let field = format!("step {}, layer {}: {field}", key.0, key.1);
            error.at(self.rows.place().field(field))
        })
    }
}

impl Steps for Grouped {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        let step = match self.first.take() {
            Some(first) => Some(first),
            None => self.read_group()?,
        };
        Ok(step.map(TraceStep::Counts))
    }

    fn report(&self, report: &mut ImportReport) {
        report.rounded_counts += self.rounded;
    }
}
