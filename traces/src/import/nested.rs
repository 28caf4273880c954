//! Nested lists of numbers, and the rows of tokens in them.

use std::collections::VecDeque;

use super::table::Row;
use super::tokens::{MAX_CHOICES, MAX_EXPERT, are_different};
use crate::error::{Place, TraceError};

/// A number (no extents), a list of numbers (one), a list of lists of equal length (two), ...
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Nested {
    pub(super) shape: Vec<usize>,
    /// Row-major.
    pub(super) values: Vec<f64>,
}

/// What one record of a per-token file says.
#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) step: Option<u64>,
    pub(super) layer: Option<u64>,
    pub(super) rank: Option<u64>,
    pub(super) ids: Option<Nested>,
    pub(super) scores: Option<Nested>,
    /// By layer.
    pub(super) wide_ids: Vec<(u32, Nested)>,
    pub(super) wide_scores: Vec<(u32, Nested)>,
}

/// Turns records into rows.
#[derive(Debug)]
pub(super) struct RowMaker {
    top_k: Option<usize>,
    exact: bool,
    pub(super) left_out: u64,
}

impl RowMaker {
    pub(super) fn new(top_k: Option<u32>) -> Self {
        Self {
            top_k: top_k.map(|top_k| top_k as usize),
            exact: top_k.is_none(),
            left_out: 0,
        }
    }

    /// Appends the rows of `record`: ids of `[choices]` are one token in one layer; `[tokens,
    /// choices]` are tokens where the record names a layer, otherwise `[layers, choices]` of one
    /// token; `[tokens, layers, choices]` are tokens.
    pub(super) fn append(
        &mut self,
        record: Record,
        place: impl Fn(&str) -> Place,
        rows: &mut VecDeque<Row>,
    ) -> Result<(), TraceError> {
        let too_large = |field: &str, most: u64, found: u64| {
            let expected = format!("a whole number from 0 to {most}");
            TraceError::invalid(place(field), expected, found.to_string())
        };
        let rank = match record.rank {
            Some(rank) if rank > MAX_EXPERT => return Err(too_large("rank", MAX_EXPERT, rank)),
            rank => rank.map(|rank| rank as u32),
        };
        let most_layer = u64::from(u32::MAX);
        let first_layer = match record.layer {
            Some(layer) if layer > most_layer => return Err(too_large("layer", most_layer, layer)),
            layer => layer.map(|layer| layer as u32),
        };
        let new = || Row {
            step: record.step,
            rank,
            ..Row::default()
        };
        if !record.wide_ids.is_empty() {
            let mut wide = record.wide_ids;
            wide.sort_by_key(|(layer, _)| *layer);
            let mut row = new();
            for (layer, ids) in wide {
                let scores = record.wide_scores.iter().find(|(of, _)| *of == layer);
                let scores = scores.map(|(_, scores)| scores.values.as_slice());
                row.layers.push(layer);
                let field = format!("L{layer}");
                self.choices(&ids.values, scores, || place(&field), &mut row)?;
            }
            rows.push_back(row);
            return Ok(());
        }
        let ids = record.ids.unwrap_or_default();
        let (tokens, layers, width) = match (ids.shape[..].as_ref(), first_layer) {
            (&[width], _) => (1, 1, width),
            (&[tokens, width], Some(_)) => (tokens, 1, width),
            (&[layers, width], None) => (1, layers, width),
            (&[tokens, layers, width], None) => (tokens, layers, width),
            (shape, _) => {
                return Err(TraceError::invalid(
                    place("ids"),
                    "a list of expert ids, or lists of such lists",
                    format!("{} levels of lists", shape.len()),
                ));
            }
        };
        if record
            .scores
            .as_ref()
            .is_some_and(|scores| scores.shape != ids.shape)
        {
            return Err(TraceError::invalid(
                place("scores"),
                format!("as many scores as ids, {:?}", ids.shape),
                format!("{:?}", record.scores.unwrap_or_default().shape),
            ));
        }
        for token in 0..tokens {
            let mut row = new();
            for layer in 0..layers {
                let cells = (token * layers + layer) * width..(token * layers + layer + 1) * width;
                let scores = record
                    .scores
                    .as_ref()
                    .map(|scores| &scores.values[cells.clone()]);
                row.layers.push(first_layer.unwrap_or(layer as u32));
                self.choices(&ids.values[cells], scores, || place("ids"), &mut row)?;
            }
            rows.push_back(row);
        }
        Ok(())
    }

    /// Appends the choices of one token in one layer.
    fn choices(
        &mut self,
        ids: &[f64],
        scores: Option<&[f64]>,
        place: impl Fn() -> Place,
        row: &mut Row,
    ) -> Result<(), TraceError> {
        let before = row.ids.len();
        let wanted = *self.top_k.get_or_insert(ids.len().max(1));
        let fail = |expected: String| {
            let shown: Vec<f64> = ids.iter().copied().take(16).collect();
            Err(TraceError::invalid(place(), expected, format!("{shown:?}")))
        };
        if ids.len() < wanted || (self.exact && ids.len() > wanted) {
            return fail(format!("{wanted} expert ids, the best first"));
        }
        for &id in &ids[..wanted.min(ids.len())] {
            if id.fract() != 0.0 || !(0.0..=MAX_EXPERT as f64).contains(&id) {
                return fail(format!("whole numbers from 0 to {MAX_EXPERT}"));
            }
            row.ids.push(id as u32);
        }
        if !are_different(&row.ids[before..]) {
            return fail(format!("different experts, at most {MAX_CHOICES}"));
        }
        self.left_out += (ids.len() - wanted) as u64;
        let Some(scores) = scores else { return Ok(()) };
        let finite = scores
            .iter()
            .take(wanted)
            .all(|&score| (score as f32).is_finite());
        if scores.len() < wanted || !finite {
            return fail(format!("{wanted} finite scores"));
        }
        row.scores
            .extend(scores[..wanted].iter().map(|&score| score as f32));
        Ok(())
    }
}
