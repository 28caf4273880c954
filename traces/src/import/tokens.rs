//! Choices of every token as CSV, in one of two forms.
//!
//! Wide: a column `L0`, `L1`, ... for every MoE layer, each cell the ids a token chose there, best
//! first, separated by spaces; scores, if there are, in `W0`, `W1`, ... The captures of gpt-oss
//! have this layout.
//!
//! Long: a row for every token and layer, with a column of the layer and one of ids (`topk_ids`,
//! `expert_ids`, ...), or one for every choice (`expert0`, `expert1`, ...), likewise for scores.
//!
//! Columns of the step (`step`, ...) and the source rank (`rank`, ...) are used where there are
//! any; all others are ignored.

use super::assemble::{Rows, assemble};
use super::table::Row;
use super::text::{Records, numbered};
use super::{ImportOptions, ImportReport, Imported, names};
use crate::error::{Place, TraceError, quote};
use crate::format::{leading_number, parse_number, parse_score};
use crate::input::Source;

/// Largest expert id.
pub(super) const MAX_EXPERT: u64 = (1 << 20) - 1;

/// Most choices of one token; more make no sense, and comparing them would take for ever.
pub(super) const MAX_CHOICES: usize = 256;

/// Whether this is the header of such a file.
pub(super) fn is_header(header: &[&str]) -> bool {
    let wide = header.iter().any(|name| layer_of(name).is_some());
    let ids = header.iter().any(|name| names::is(name, names::IDS));
    let choices = header
        .iter()
        .any(|name| numbered(name, names::NUMBERED_IDS).is_some());
    let keyed = header
        .iter()
        .any(|name| names::is(name, names::LAYER) || *name == "token");
    wide || ids || (choices && keyed && !is_counts(header))
}

/// Columns of experts, as many as there are of counts, are counts.
fn is_counts(header: &[&str]) -> bool {
    let rank = header.iter().any(|name| names::is(name, names::RANK));
    rank && !header.contains(&"token")
}

fn layer_of(name: &str) -> Option<u32> {
    numbered(name, names::LAYER_IDS)
}

/// Reads everything below the header.
pub(super) fn read(source: &Source, options: &ImportOptions) -> Result<Imported, TraceError> {
    let layout = "expert ids of every token, CSV";
    assemble(layout, source.place(), options, || {
        TokenRecords::open(source, options)
    })
}

/// Columns that hold the choices in one layer.
#[derive(Debug, Default)]
struct Choices {
    layer: Option<u32>,
    ids: Vec<usize>,
    scores: Vec<usize>,
}

struct TokenRecords {
    records: Records,
    /// Which columns are ids, if [`plain_ids`] can read the file.
    plain: Option<Vec<bool>>,
    header: Vec<String>,
    step: Option<usize>,
    rank: Option<usize>,
    layer: Option<usize>,
    /// One, or as many as there are layers.
    choices: Vec<Choices>,
    top_k: Option<usize>,
    exact: bool,
    left_out: u64,
}

impl TokenRecords {
    fn open(source: &Source, options: &ImportOptions) -> Result<Self, TraceError> {
        let mut records = Records::open(source)?;
        records.advance()?;
        let header: Vec<String> = records.fields();
        let find = |names: &[&str]| header.iter().position(|name| names::is(name, names));
        let (step, rank) = (find(names::STEP), find(names::RANK));
        let choices = find_choices(&header, &records)?;
        let plain = (step.is_none() && rank.is_none()).then(|| plain_columns(&header, &choices));
        Ok(Self {
            step,
            rank,
            layer: find(names::LAYER),
            choices,
            plain: plain.flatten(),
            records,
            header,
            top_k: options.top_k.map(|top_k| top_k as usize),
            exact: options.top_k.is_none(),
            left_out: 0,
        })
    }

    fn number(&self, column: Option<usize>, most: u64) -> Result<Option<u64>, TraceError> {
        let Some(column) = column else {
            return Ok(None);
        };
        let place = || self.place().field(self.header[column].as_str());
        parse_number(self.records.field(column).trim(), most, place).map(Some)
    }

    /// Appends the choices in one layer.
    fn read_choices(&mut self, index: usize, row: &mut Row) -> Result<(), TraceError> {
        let choices = &self.choices[index];
        let records = &self.records;
        let field = |column: usize| records.place().field(self.header[column].as_str());
        let before = row.ids.len();
        for &column in &choices.ids {
            append_ids(records.field(column), &mut row.ids, || field(column))?;
        }
        let first = choices.ids.first().copied().unwrap_or_default();
        let whole = || quote(records.field(first).as_bytes());
        let cell = &row.ids[before..];
        if !are_different(cell) {
            return Err(TraceError::invalid(
                field(first),
                format!("different experts, at most {MAX_CHOICES}"),
                whole(),
            ));
        }
        // Without the option the first token says how many there are.
        let wanted = *self.top_k.get_or_insert(cell.len().max(1));
        if cell.len() < wanted || (self.exact && cell.len() > wanted) {
            return Err(TraceError::invalid(
                field(first),
                format!("{wanted} expert ids, the best first"),
                whole(),
            ));
        }
        self.left_out += (cell.len() - wanted) as u64;
        row.ids.truncate(before + wanted);
        if choices.scores.is_empty() {
            return Ok(());
        }
        let before = row.scores.len();
        for &column in &choices.scores {
            for text in pieces(records.field(column)) {
                row.scores.push(parse_score(text, || field(column))?);
            }
        }
        let found = row.scores.len() - before;
        if found < wanted || found > MAX_CHOICES {
            return Err(TraceError::invalid(
                field(choices.scores[0]),
                format!("{wanted} scores, one for every expert id"),
                found.to_string(),
            ));
        }
        row.scores.truncate(before + wanted);
        Ok(())
    }
}

impl Rows for TokenRecords {
    fn next_row(&mut self, row: &mut Row) -> Result<bool, TraceError> {
        if !self.records.advance_line()? {
            return Ok(false);
        }
        row.clear();
        if let (Some(columns), Some(top_k)) = (&self.plain, self.top_k) {
            if row.layers.len() == self.choices.len()
                && plain_ids(self.records.line(), columns, top_k, &mut row.ids)
            {
                return Ok(true);
            }
            row.ids.clear();
        }
        self.records.split_by(self.header.len())?;
        row.step = self.number(self.step, u64::MAX)?;
        row.rank = self.number(self.rank, MAX_EXPERT)?.map(|rank| rank as u32);
        let wide = self
            .choices
            .first()
            .is_some_and(|first| first.layer.is_some());
        if wide {
            if row.layers.len() != self.choices.len() {
                row.layers = self.choices.iter().filter_map(|each| each.layer).collect();
            }
        } else {
            let layer = self.number(self.layer, u32::MAX.into())?;
            row.layers.clear();
            row.layers.push(layer.unwrap_or(0) as u32);
        }
        for index in 0..self.choices.len() {
            self.read_choices(index, row)?;
        }
        Ok(true)
    }

    fn place(&self) -> Place {
        self.records.place()
    }

    fn report(&self, report: &mut ImportReport) {
        report.left_out_choices += self.left_out;
    }
}

/// Columns of choices, in ascending order of layer.
fn find_choices(header: &[String], records: &Records) -> Result<Vec<Choices>, TraceError> {
    let all = |prefixes: &[&str]| {
        let mut found: Vec<(u32, usize)> = Vec::new();
        for (column, name) in header.iter().enumerate() {
            found.extend(numbered(name, prefixes).map(|number| (number, column)));
        }
        found.sort_unstable();
        found
    };
    let wide = all(names::LAYER_IDS);
    if let Some(two) = wide.windows(2).find(|two| two[0].0 == two[1].0) {
        return Err(TraceError::invalid(
            records.place().field(header[two[1].1].as_str()),
            "every layer once",
            "it again",
        ));
    }
    if !wide.is_empty() {
        let scores = all(names::LAYER_SCORES);
        let choices = wide.into_iter().map(|(layer, column)| Choices {
            layer: Some(layer),
            ids: vec![column],
            scores: {
                let same = scores.iter().filter(|(of, _)| *of == layer);
                same.map(|&(_, column)| column).collect()
            },
        });
        let choices: Vec<Choices> = choices.collect();
        return match choices.iter().find(|layer| layer.scores.is_empty()) {
            Some(bare) if !scores.is_empty() => Err(TraceError::invalid(
                records.place(),
                "scores of every layer, or of none",
                format!("none of layer {}", bare.layer.unwrap_or_default()),
            )),
            Some(_) | None => Ok(choices),
        };
    }
    let named = |names: &[&str], prefixes: &[&str]| match header
        .iter()
        .position(|name| names::is(name, names))
    {
        Some(column) => vec![column],
        None => all(prefixes)
            .into_iter()
            .map(|(_, column)| column)
            .collect(),
    };
    Ok(vec![Choices {
        layer: None,
        ids: named(names::IDS, names::NUMBERED_IDS),
        scores: named(names::SCORES, names::NUMBERED_SCORES),
    }])
}

/// Whether no id comes twice, and there are not too many to tell.
pub(super) fn are_different(ids: &[u32]) -> bool {
    if ids.len() > MAX_CHOICES {
        return false;
    }
    // Without an early end: there are few, and they are almost always different.
    let mut twice = false;
    for (index, id) in ids.iter().enumerate() {
        for other in &ids[..index] {
            twice |= id == other;
        }
    }
    !twice
}

/// The numbers of a cell, which may be separated by anything that lists are written with.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| " \t,;|[]()".contains(letter))
        .filter(|piece| !piece.is_empty())
}

/// Which columns are ids, where every layer is one column of them in ascending order, and nothing else is read.
fn plain_columns(header: &[String], choices: &[Choices]) -> Option<Vec<bool>> {
    let mut columns = vec![false; header.len()];
    let mut last = None;
    for layer in choices {
        let &[column] = layer.ids.as_slice() else {
            return None;
        };
        if layer.layer.is_none() || !layer.scores.is_empty() || Some(column) <= last {
            return None;
        }
        columns[column] = true;
        last = Some(column);
    }
    Some(columns)
}

/// Appends the ids of a whole line in one pass: `top_k` different ones of up to three digits in every cell of ids, with
/// single spaces between them, as almost all lines are.
///
/// Gives up at whatever is not: then the caller has to look closely, from the start.
fn plain_ids(line: &[u8], columns: &[bool], top_k: usize, ids: &mut Vec<u32>) -> bool {
    let mut at = 0;
    for (column, &is_ids) in columns.iter().enumerate() {
        let last = column + 1 == columns.len();
        if is_ids {
            let before = ids.len();
            for choice in 1..=top_k {
                let (id, digits) = leading_number(&line[at..]);
                at += digits;
                let ends = match line.get(at) {
                    Some(b' ') => choice < top_k,
                    Some(b',') => choice == top_k && !last,
                    Some(_) => false,
                    None => choice == top_k && last,
                };
                if !(1..4).contains(&digits) || !ends {
                    return false;
                }
                ids.push(id);
                at += 1;
            }
            if !are_different(&ids[before..]) {
                return false;
            }
        } else {
            match memchr::memchr2(b',', b'"', &line[at..]) {
                Some(end) if line[at + end] == b',' && !last => at += end + 1,
                None if last => at = line.len() + 1,
                Some(_) | None => return false,
            }
        }
    }
    at == line.len() + 1
}

fn append_ids(text: &str, ids: &mut Vec<u32>, place: impl Fn() -> Place) -> Result<(), TraceError> {
    let before = ids.len();
    for piece in pieces(text) {
        ids.push(parse_number(piece, MAX_EXPERT, &place)? as u32);
        if ids.len() - before > MAX_CHOICES {
            break;
        }
    }
    Ok(())
}
