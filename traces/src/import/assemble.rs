//! Steps out of a stream of tokens.
//!
//! Where the file numbers its steps, tokens are in the steps it says; they must come in ascending
//! order. Otherwise the stream is cut into steps of equal size, see [`Assign`]. Where it names
//! source ranks, tokens are on the ranks it says.

use std::collections::VecDeque;

use super::report::ImportReport;
use super::table::{MIN_TOKENS, Row, Table};
use super::{Assign, ImportOptions, Imported, Sizes, Steps};
use crate::error::{Place, TraceError};
use crate::format::TraceStep;

/// A file of tokens, row by row.
pub(super) trait Rows: Send {
    /// Reads the next row; false at the end of the file. All rows have `top_k` choices in every
    /// layer, all or none of them scores, and all or none a step and a rank.
    fn next_row(&mut self, row: &mut Row) -> Result<bool, TraceError>;

    /// Where the row read last is.
    fn place(&self) -> Place;

    /// Adds what was left out so far.
    fn report(&self, _report: &mut ImportReport) {}
}

/// What a file is found to hold.
#[derive(Debug, Clone, Copy, Default)]
struct Survey {
    rows: u64,
    largest_id: u32,
    largest_rank: Option<u32>,
}

impl Survey {
    fn note(&mut self, row: &Row) {
        self.rows += 1;
        let largest = row.ids.iter().copied().max().unwrap_or(0);
        self.largest_id = self.largest_id.max(largest);
        self.largest_rank = self.largest_rank.max(row.rank);
    }
}

/// What every row of a file has, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    stepped: bool,
    ranked: bool,
    scored: bool,
}

impl Kind {
    fn of(row: &Row) -> Self {
        Self {
            stepped: row.step.is_some(),
            ranked: row.rank.is_some(),
            scored: !row.scores.is_empty(),
        }
    }

    /// Reads the next row, which must be of this kind.
    fn read(self, rows: &mut dyn Rows, row: &mut Row) -> Result<bool, TraceError> {
        if !next_whole(rows, row)? {
            return Ok(false);
        }
        let found = Self::of(row);
        if found == self {
            return Ok(true);
        }
        let field = if found.stepped != self.stepped {
            "step"
        } else if found.ranked != self.ranked {
            "rank"
        } else {
            "scores"
        };
        Err(TraceError::invalid(
            rows.place().field(field),
            "in all rows what the first has",
            "another kind of row",
        ))
    }
}

/// Reads the next row, which must have scores in all layers or in none; false at the end of the file.
fn next_whole(rows: &mut dyn Rows, row: &mut Row) -> Result<bool, TraceError> {
    let more = rows.next_row(row)?;
    if more && !row.scores.is_empty() && row.scores.len() != row.ids.len() {
        return Err(TraceError::invalid(
            rows.place().field("scores"),
            "scores of every layer, or of none",
            format!("{} scores of {} choices", row.scores.len(), row.ids.len()),
        ));
    }
    Ok(more)
}

/// How the rows become steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The file numbers its steps.
    Stepped,
    /// Steps of equal size, taken from the stream as it comes.
    Blocks,
    /// Steps of equal size, every rank from its own part.
    Parts,
}

/// Builds the importer of a file of tokens. `open` starts over at its first row.
pub(super) fn assemble<R: Rows + 'static>(
    layout: &str,
    file: Place,
    options: &ImportOptions,
    open: impl Fn() -> Result<R, TraceError>,
) -> Result<Imported, TraceError> {
    let mut rows = open()?;
    let mut row = Row::default();
    if !next_whole(&mut rows, &mut row)? {
        let expected = "at least one token";
        return Err(TraceError::invalid(file, expected, "the end of the file"));
    }
    let top_k = row.ids.len() / row.layers.len().max(1);
    let kind = Kind::of(&row);
    let Kind {
        stepped, ranked, ..
    } = kind;
    // A row of one layer may be followed by the same token's row of the next.
    let order = match options.assign {
        _ if stepped => Order::Stepped,
        Assign::Blocks if !ranked && row.layers.len() > 1 => Order::Blocks,
        Assign::Blocks | Assign::Slices => Order::Parts,
    };
    let mut table = Table::new(top_k);
    let mut survey = Survey::default();
    let streamed = order != Order::Parts;
    if !streamed || options.experts.is_none() || ranked {
        loop {
            survey.note(&row);
            if !streamed {
                table.push(&row, || rows.place())?;
            }
            if !kind.read(&mut rows, &mut row)? {
                break;
            }
        }
    }
    let experts = expert_count(survey.largest_id, options, &file)?;
    let ranks = match survey.largest_rank {
        Some(rank) => rank as usize + 1,
        None => options.source_ranks,
    };
    check_cells(ranks, experts, &file)?;
    let mut assembler = Assembler {
        rows: Box::new(rows) as Box<dyn Rows>,
        row,
        held: false,
        ended: !streamed,
        file: file.clone(),
        order,
        keep_repeats: options.keep_repeats,
        kind,
        ranked,
        ranks,
        per_rank: options.tokens_per_rank as usize,
        experts,
        table,
        top_k,
        ready: VecDeque::new(),
        run: Row::default(),
        run_length: 0,
        kept: Row::default(),
        owed: 0,
        next: 0,
        parts: 0,
        slice: 0,
        report: ImportReport::default(),
    };
    if streamed {
        assembler.rows = Box::new(open()?);
    } else {
        assembler.prepare_parts()?;
    }
    let sizes = Sizes {
        experts,
        top_k: top_k as u32,
        source_ranks: ranks,
        tokens_per_rank: (order != Order::Stepped).then_some(options.tokens_per_rank),
    };
    let assumed = assembler.assumed(options, stepped);
    Ok(Imported::new(layout, sizes, assumed, assembler))
}

/// The number of experts, given the largest id in the file.
fn expert_count(largest: u32, options: &ImportOptions, file: &Place) -> Result<usize, TraceError> {
    let largest = largest as usize;
    match options.experts {
        None => Ok((largest + 1).next_power_of_two()),
        Some(experts) if experts > largest => Ok(experts),
        Some(experts) => Err(TraceError::invalid(
            file.clone().field("experts"),
            format!(
                "at least {} (the largest expert id is {largest})",
                largest + 1
            ),
            experts.to_string(),
        )),
    }
}

fn check_cells(ranks: usize, experts: usize, file: &Place) -> Result<(), TraceError> {
    let most = crate::routing::MAX_CELLS;
    match ranks.checked_mul(experts) {
        Some(cells) if cells <= most => Ok(()),
        _ => Err(TraceError::invalid(
            file.clone(),
            format!("source ranks * experts of at most {most}"),
            format!("{ranks} * {experts}"),
        )),
    }
}

struct Assembler {
    rows: Box<dyn Rows>,
    row: Row,
    /// Whether `row` is yet to be used.
    held: bool,
    ended: bool,
    file: Place,
    order: Order,
    keep_repeats: bool,
    kind: Kind,
    ranked: bool,
    ranks: usize,
    per_rank: usize,
    experts: usize,
    table: Table,
    top_k: usize,
    ready: VecDeque<TraceStep>,
    /// [`Order::Blocks`]: identical rows in a row, and how many.
    run: Row,
    run_length: usize,
    /// A row to be used, and how many times it is yet to be.
    kept: Row,
    owed: usize,
    /// Number of the next step, where the file does not say it.
    next: u64,
    /// Steps of [`Order::Parts`], and the tokens of a rank's slice.
    parts: usize,
    slice: usize,
    report: ImportReport,
}

impl Assembler {
    fn assumed(&self, options: &ImportOptions, stepped: bool) -> Vec<String> {
        let mut assumed = Vec::new();
        if options.experts.is_none() {
            assumed.push(format!(
                "{} experts: the largest id plus one, rounded up to a power of two",
                self.experts
            ));
        }
        let (ranks, tokens) = (self.ranks, self.per_rank);
        match self.order {
            Order::Stepped if self.ranked => {}
            Order::Stepped => assumed.push(format!(
                "the tokens of a step are dealt to {ranks} source ranks in equal slices"
            )),
            Order::Blocks => assumed.push(format!(
                "every step takes the next {} tokens, {tokens} for each of {ranks} source ranks",
                ranks * tokens
            )),
            Order::Parts if self.ranked => assumed.push(format!(
                "every source rank works through its tokens, {tokens} a step"
            )),
            Order::Parts => assumed.push(format!(
                "source rank r of {ranks} works through the contiguous slice r of the tokens, {tokens} a step"
            )),
        }
        if !stepped {
            assumed.push("steps: the file does not number them".into());
        }
        assumed
    }

    /// Drops repeats and makes sure that there is a step.
    fn prepare_parts(&mut self) -> Result<(), TraceError> {
        if !self.keep_repeats {
            self.table.drop_repeats(&mut self.report);
        }
        if self.ranked {
            self.table.sort_by_rank();
        }
        let layers = self.table.num_layers();
        let most = (0..layers).map(|layer| self.table.tokens_of(layer)).max();
        let tokens = most.unwrap_or(0);
        self.slice = self.table.tokens() / self.ranks;
        self.parts = self.num_parts();
        let used = (self.parts * self.per_rank * self.ranks).min(tokens);
        self.report.left_out_tokens = (tokens - used) as u64;
        if self.parts == 0 {
            return Err(TraceError::invalid(
                self.file.clone(),
                format!(
                    "at least {} tokens for each of {} source ranks",
                    self.per_rank, self.ranks
                ),
                match self.report.dropped_identical_tokens {
                    0 => format!("{tokens} tokens"),
                    dropped => format!(
                        "{tokens} tokens, after {dropped} in runs of identical ones were dropped (--keep-repeats keeps them)"
                    ),
                },
            ));
        }
        Ok(())
    }

    /// Steps that all ranks and layers have tokens for.
    fn num_parts(&self) -> usize {
        let layers = 0..self.table.num_layers();
        let least = |layer: usize| {
            let part = |rank: usize| self.part(layer, rank).len();
            (0..self.ranks).map(part).min().unwrap_or(0)
        };
        layers.map(least).min().unwrap_or(0) / self.per_rank
    }

    /// Tokens of `rank` in `layer`, of the whole file.
    fn part(&self, layer: usize, rank: usize) -> std::ops::Range<usize> {
        if self.ranked {
            return self.table.rank_range(layer, rank);
        }
        rank * self.slice..(rank + 1) * self.slice
    }

    /// The next step of [`Order::Parts`], all layers.
    fn take_parts(&mut self) -> Result<(), TraceError> {
        let step = self.next as usize;
        if step >= self.parts {
            return Ok(());
        }
        for layer in 0..self.table.num_layers() {
            let of = |rank: usize| {
                let first = self.part(layer, rank).start + step * self.per_rank;
                first..first + self.per_rank
            };
            let built = self
                .table
                .step(layer, self.next, self.experts, self.ranks, of)?;
            self.ready.push_back(TraceStep::Tokens(built));
        }
        self.next += 1;
        Ok(())
    }

    /// Reads a row unless one is held; false at the end.
    fn fill(&mut self) -> Result<bool, TraceError> {
        if self.held {
            return Ok(true);
        }
        self.held = !self.ended && self.kind.read(&mut *self.rows, &mut self.row)?;
        self.ended |= !self.held;
        Ok(self.held)
    }

    fn push(&mut self) -> Result<(), TraceError> {
        self.held = false;
        let rows = &self.rows;
        self.table.push(&self.row, || rows.place())
    }

    /// Makes the next row that is not in a long run of identical ones `kept`; false at the end.
    ///
    /// Rows change places and are never copied: most of the time goes into them.
    fn keep_next(&mut self) -> Result<bool, TraceError> {
        loop {
            if self.owed > 0 {
                self.owed -= 1;
                return Ok(true);
            }
            let more = !self.ended && self.kind.read(&mut *self.rows, &mut self.row)?;
            self.ended |= !more;
            if self.keep_repeats {
                std::mem::swap(&mut self.kept, &mut self.row);
                return Ok(more);
            }
            if more && self.run_length > 0 && self.run == self.row {
                self.run_length += 1;
                continue;
            }
            let length = std::mem::replace(&mut self.run_length, usize::from(more));
            std::mem::swap(&mut self.kept, &mut self.run);
            std::mem::swap(&mut self.run, &mut self.row);
            if length >= MIN_TOKENS {
                self.report.dropped_identical_tokens += length as u64;
            } else {
                self.owed = length;
            }
            if length == 0 && !more {
                return Ok(false);
            }
        }
    }

    /// The next step of [`Order::Blocks`], all layers.
    fn take_block(&mut self) -> Result<(), TraceError> {
        let wanted = self.ranks * self.per_rank;
        while self.table.tokens() < wanted {
            if !self.keep_next()? {
                self.report.left_out_tokens += self.table.tokens() as u64;
                self.table = Table::new(self.top_k);
                return Ok(());
            }
            let rows = &self.rows;
            self.table.push(&self.kept, || rows.place())?;
        }
        let per_rank = self.per_rank;
        let of = |_: &Table, _: usize, rank: usize| rank * per_rank..(rank + 1) * per_rank;
        self.finish_table(of, self.next)?;
        self.table.clear();
        self.next += 1;
        Ok(())
    }

    /// The next step of [`Order::Stepped`], all layers.
    fn take_step(&mut self) -> Result<(), TraceError> {
        while self.fill()? {
            let step = self.row.step.unwrap_or_default();
            while self.fill()? && self.row.step == Some(step) {
                self.push()?;
            }
            if self.held && self.row.step < Some(step) {
                return Err(TraceError::invalid(
                    self.rows.place().field("step"),
                    format!("steps in ascending order, {step} or later"),
                    format!("{}", self.row.step.unwrap_or_default()),
                ));
            }
            if !self.keep_repeats {
                self.table.drop_repeats(&mut self.report);
            }
            if self.table.tokens() == 0 {
                self.table = Table::new(self.top_k);
                continue;
            }
            let (ranks, ranked) = (self.ranks, self.ranked);
            if ranked {
                self.table.sort_by_rank();
            }
            let of = |table: &Table, layer: usize, rank: usize| {
                if ranked {
                    return table.rank_range(layer, rank);
                }
                let tokens = table.tokens_of(layer);
                let first = |rank: usize| rank * (tokens / ranks) + rank.min(tokens % ranks);
                first(rank)..first(rank + 1)
            };
            self.finish_table(of, step)?;
            // The next step may have other layers.
            self.table = Table::new(self.top_k);
            return Ok(());
        }
        Ok(())
    }

    fn finish_table(
        &mut self,
        of: impl Fn(&Table, usize, usize) -> std::ops::Range<usize>,
        step: u64,
    ) -> Result<(), TraceError> {
        for layer in 0..self.table.num_layers() {
            let range = |rank: usize| of(&self.table, layer, rank);
            let built = self
                .table
                .step(layer, step, self.experts, self.ranks, range);
            let built = built.map_err(|error| {
                let field = format!("step {step}: {}", error.place());
                error.at(self.file.clone().field(field))
            })?;
            self.ready.push_back(TraceStep::Tokens(built));
        }
        Ok(())
    }
}

impl Steps for Assembler {
    fn next_step(&mut self) -> Result<Option<TraceStep>, TraceError> {
        if self.ready.is_empty() {
            match self.order {
                Order::Parts => self.take_parts()?,
                Order::Blocks => self.take_block()?,
                Order::Stepped => self.take_step()?,
            }
        }
        let step = self.ready.pop_front();
        if step.is_none() && self.next == 0 && self.order == Order::Blocks {
            return Err(TraceError::invalid(
                self.file.clone(),
                format!(
                    "at least {} tokens for each of {} source ranks",
                    self.per_rank, self.ranks
                ),
                format!("{} tokens", self.report.left_out_tokens),
            ));
        }
        Ok(step)
    }

    fn report(&self, report: &mut ImportReport) {
        self.rows.report(report);
        report.dropped_identical_tokens += self.report.dropped_identical_tokens;
        report.left_out_tokens += self.report.left_out_tokens;
    }
}
