//! Tokens of several layers, and what is done to them before they become steps.

use super::report::ImportReport;
use crate::error::{Place, TraceError};
use crate::routing::MAX_CELLS;
use crate::tokens::TokenStep;

/// Tokens in a row that are dropped when they made the same choices in all layers. A few may be
/// chance: text repeats itself.
pub(super) const MIN_TOKENS: usize = 16;

/// One row of a per-token file: the choices of one token in one or more layers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub(super) step: Option<u64>,
    pub(super) rank: Option<u32>,
    /// Layers, in ascending order.
    pub(super) layers: Vec<u32>,
    /// `[layers, top_k]`, best first.
    pub(super) ids: Vec<u32>,
    /// Of the same shape, or empty.
    pub(super) scores: Vec<f32>,
}

impl Row {
    /// Empties the row, layers aside.
    pub(super) fn clear(&mut self) {
        self.step = None;
        self.rank = None;
        self.ids.clear();
        self.scores.clear();
    }
}

/// The tokens of one layer.
#[derive(Debug, Default)]
struct Layer {
    layer: u32,
    /// `[tokens, top_k]`.
    ids: Vec<u32>,
    scores: Vec<f32>,
    /// Source rank of every token, where known.
    ranks: Vec<u32>,
}

/// The tokens of a step, or of a whole file.
#[derive(Debug)]
pub(super) struct Table {
    top_k: usize,
    /// In ascending order of layer.
    layers: Vec<Layer>,
    cells: usize,
}

impl Table {
    pub(super) fn new(top_k: usize) -> Self {
        Self {
            top_k,
            layers: Vec::new(),
            cells: 0,
        }
    }

    /// Empties the layers, for more tokens of the same ones.
    pub(super) fn clear(&mut self) {
        self.cells = 0;
        for layer in &mut self.layers {
            layer.ids.clear();
            layer.scores.clear();
            layer.ranks.clear();
        }
    }

    /// Number of layers seen.
    pub(super) fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Tokens that every layer has.
    pub(super) fn tokens(&self) -> usize {
        let tokens = self.layers.iter().map(|layer| layer.ids.len() / self.top_k);
        tokens.min().unwrap_or(0)
    }

    /// Appends a row. Fails where there are too many of them to be held.
    pub(super) fn push(
        &mut self,
        row: &Row,
        place: impl FnOnce() -> Place,
    ) -> Result<(), TraceError> {
        self.cells += row.ids.len();
        if self.cells > MAX_CELLS {
            return Err(TraceError::invalid(
                place(),
                format!(
                    "at most {MAX_CELLS} choices to be held at once (--assign blocks, or a column of steps, needs fewer)"
                ),
                self.cells.to_string(),
            ));
        }
        let top_k = self.top_k;
        for (index, &layer) in row.layers.iter().enumerate() {
            let at = match self.layers.get(index) {
                Some(found) if found.layer == layer => index,
                _ => self.position(layer),
            };
            let into = &mut self.layers[at];
            into.ids
                .extend_from_slice(&row.ids[index * top_k..][..top_k]);
            if !row.scores.is_empty() {
                into.scores
                    .extend_from_slice(&row.scores[index * top_k..][..top_k]);
            }
            into.ranks.extend(row.rank);
        }
        Ok(())
    }

    fn position(&mut self, layer: u32) -> usize {
        let at = self.layers.partition_point(|found| found.layer < layer);
        if self.layers.get(at).is_none_or(|found| found.layer != layer) {
            let new = Layer {
                layer,
                ..Layer::default()
            };
            self.layers.insert(at, new);
        }
        at
    }

    /// Drops runs of tokens that made the same choices, in all layers together where these have
    /// the same tokens, otherwise layer by layer.
    pub(super) fn drop_repeats(&mut self, report: &mut ImportReport) {
        let len = |layer: &Layer| layer.ids.len();
        let together = self
            .layers
            .iter()
            .all(|layer| len(layer) == len(&self.layers[0]));
        if together {
            report.dropped_identical_tokens += drop_runs(&mut self.layers, self.top_k);
        } else {
            for layer in &mut self.layers {
                let dropped = drop_runs(std::slice::from_mut(layer), self.top_k);
                report.dropped_identical_tokens += dropped;
            }
        }
        self.cells = self.layers.iter().map(len).sum();
    }

    /// The step of layer `index` whose source rank `r` has the tokens of the ranges `of(r)`.
    pub(super) fn step(
        &self,
        index: usize,
        number: u64,
        experts: usize,
        ranks: usize,
        of: impl Fn(usize) -> std::ops::Range<usize>,
    ) -> Result<TokenStep, TraceError> {
        let layer = &self.layers[index];
        let tokens: Vec<usize> = (0..ranks).map(|rank| of(rank).len()).collect();
        let cells = |rank: usize| of(rank).start * self.top_k..of(rank).end * self.top_k;
        let mut ids = Vec::with_capacity(tokens.iter().sum::<usize>() * self.top_k);
        (0..ranks).for_each(|rank| ids.extend_from_slice(&layer.ids[cells(rank)]));
        let scores = (!layer.scores.is_empty()).then(|| {
            let mut scores = Vec::with_capacity(ids.len());
            (0..ranks).for_each(|rank| scores.extend_from_slice(&layer.scores[cells(rank)]));
            scores
        });
        let top_k = self.top_k as u32;
        TokenStep::new(number, layer.layer, top_k, experts, &tokens, ids, scores)
    }

    /// Brings the tokens of every layer into the order of their ranks, keeping the order within a
    /// rank. Afterwards `rank_starts` tells where each rank begins.
    pub(super) fn sort_by_rank(&mut self) {
        let top_k = self.top_k;
        for layer in &mut self.layers {
            if layer.ranks.is_sorted() {
                continue;
            }
            let mut order: Vec<usize> = (0..layer.ranks.len()).collect();
            order.sort_by_key(|&token| layer.ranks[token]);
            layer.ids = gathered(&layer.ids, &order, top_k);
            if !layer.scores.is_empty() {
                layer.scores = gathered(&layer.scores, &order, top_k);
            }
            layer.ranks.sort_unstable();
        }
    }

    /// Where the tokens of every rank lie in layer `index`, once they are sorted.
    pub(super) fn rank_range(&self, index: usize, rank: usize) -> std::ops::Range<usize> {
        let ranks = &self.layers[index].ranks;
        let before = |rank: usize| ranks.partition_point(|&found| (found as usize) < rank);
        before(rank)..before(rank + 1)
    }

    /// Tokens of layer `index`.
    pub(super) fn tokens_of(&self, index: usize) -> usize {
        self.layers[index].ids.len() / self.top_k
    }
}

fn gathered<T: Copy>(values: &[T], order: &[usize], width: usize) -> Vec<T> {
    let rows = order
        .iter()
        .flat_map(|&row| &values[row * width..][..width]);
    rows.copied().collect()
}

/// Removes long runs of tokens that are the same in all of `layers`; returns how many tokens.
fn drop_runs(layers: &mut [Layer], top_k: usize) -> u64 {
    let tokens = layers.first().map_or(0, |layer| layer.ids.len() / top_k);
    let same = |layers: &[Layer], one: usize, other: usize| {
        let equal = |layer: &Layer| {
            let row = |token: usize| token * top_k..token * top_k + top_k;
            let rank = |token: usize| layer.ranks.get(token);
            let scores = |token: usize| layer.scores.get(row(token));
            layer.ids[row(one)] == layer.ids[row(other)]
                && scores(one) == scores(other)
                && rank(one) == rank(other)
        };
        layers.iter().all(equal)
    };
    let (mut kept, mut start) = (0, 0);
    while start < tokens {
        let mut end = start + 1;
        while end < tokens && same(layers, start, end) {
            end += 1;
        }
        if end - start < MIN_TOKENS {
            if kept != start {
                for layer in layers.iter_mut() {
                    let cells = start * top_k..end * top_k;
                    layer.ids.copy_within(cells.clone(), kept * top_k);
                    if !layer.scores.is_empty() {
                        layer.scores.copy_within(cells, kept * top_k);
                    }
                    if !layer.ranks.is_empty() {
                        layer.ranks.copy_within(start..end, kept);
                    }
                }
            }
            kept += end - start;
        }
        start = end;
    }
    for layer in layers.iter_mut() {
        layer.ids.truncate(kept * top_k);
        layer.scores.truncate(kept * top_k);
        layer.ranks.truncate(kept);
    }
    (tokens - kept) as u64
}
