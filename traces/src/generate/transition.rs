//! From expert to expert of the next layer, as joint counts say.

use std::io::BufRead;

use crate::draw::{Shares, Source};
use crate::error::{Place, TraceError, quote};
use crate::generate::fixed_point;
use crate::routing::Shape;

/// Largest expert id: joint counts are a square.
const MAX_EXPERTS: usize = 1 << 12;

/// Joint counts of the experts that tokens chose in one recorded layer and in the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transitions {
    experts: usize,
    /// One `[experts, experts]` square a pair of layers: from (row) and to (column).
    pairs: Vec<Vec<u64>>,
}

impl Transitions {
    /// Reads rows `pair,"(from, to)",count` without a header, as `allenai/OLMoE` publishes them
    /// (`scripts/routing_output`, `crosslayer`): pair 0 is the first recorded layer and the second.
    ///
    /// The number of experts is the largest id plus one, rounded up to a power of two.
    pub fn read(reader: impl BufRead, name: &str) -> Result<Self, TraceError> {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .from_reader(reader);
        let mut rows: Vec<(usize, usize, usize, u64)> = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|error| {
                let line = error.position().map_or(0, csv::Position::line);
                let place = Place::of(name).line(line);
                TraceError::invalid(place, "pair,\"(from, to)\",count", error.to_string())
            })?;
            let line = record.position().map_or(0, csv::Position::line);
            let row = joint(&record).ok_or_else(|| {
                let text = record.iter().collect::<Vec<_>>().join(",");
                TraceError::invalid(
                    Place::of(name).line(line),
                    format!(
                        "pair,\"(from, to)\",count with ids below {MAX_EXPERTS} and pairs below 64"
                    ),
                    quote(text.as_bytes()),
                )
            })?;
            rows.push(row);
        }
        let Some(largest) = rows.iter().map(|&(_, from, to, _)| from.max(to)).max() else {
            return Err(TraceError::invalid(
                Place::of(name),
                "at least one row pair,\"(from, to)\",count",
                "none",
            ));
        };
        let experts = (largest + 1).next_power_of_two();
        let count = rows.iter().map(|&(pair, ..)| pair + 1).max().unwrap_or(0);
        let mut pairs = vec![vec![0_u64; experts * experts]; count];
        for (pair, from, to, count) in rows {
            let cell = &mut pairs[pair][from * experts + to];
            *cell = cell.saturating_add(count);
        }
        Ok(Self { experts, pairs })
    }

    /// Experts of every layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Pairs of layers; later layers use them in turn.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Copies that chose each expert in the first layer of a pair: what layer 0 should look like.
    pub fn marginal(&self, pair: usize) -> Vec<u64> {
        self.pairs[pair % self.pairs.len()]
            .chunks_exact(self.experts)
            .map(|row| {
                row.iter()
                    .fold(0, |sum: u64, &count| sum.saturating_add(count))
            })
            .collect()
    }

    pub(super) fn check_for(&self, shape: &Shape) -> Result<(), TraceError> {
        if shape.experts == self.experts {
            return Ok(());
        }
        Err(TraceError::invalid(
            Place::of("joint counts").field("experts"),
            format!("as many as the layer has, {}", shape.experts),
            self.experts.to_string(),
        ))
    }

    /// What a rank draws from in `layer`, whose tokens were routed as `row` says in the layer
    /// before. Experts never seen there send their tokens anywhere.
    pub(super) fn follow(&self, row: &[u32], layer: u32, top_k: u32) -> Source {
        let pair = &self.pairs[(layer as usize - 1) % self.pairs.len()];
        let mut weights = vec![0.0; self.experts];
        for (&count, seen) in row.iter().zip(pair.chunks_exact(self.experts)) {
            let sum: f64 = seen.iter().map(|&count| count as f64).sum();
            for (weight, &to) in weights.iter_mut().zip(seen) {
                *weight += f64::from(count)
                    * if sum > 0.0 {
                        to as f64 / sum
                    } else {
                        1.0 / self.experts as f64
                    };
            }
        }
        let copies: u64 = row.iter().map(|&count| u64::from(count)).sum();
        let tokens = (copies / u64::from(top_k)) as u32;
        Source(vec![(Shares::new(&fixed_point(&weights), top_k), tokens)])
    }
}

fn joint(record: &csv::StringRecord) -> Option<(usize, usize, usize, u64)> {
    let (pair, experts, count) = (record.get(0)?, record.get(1)?, record.get(2)?);
    let (from, to) = experts
        .trim()
        .strip_prefix('(')?
        .strip_suffix(')')?
        .split_once(',')?;
    let id = |text: &str| text.trim().parse::<usize>().ok();
    let row = (id(pair)?, id(from)?, id(to)?, count.trim().parse().ok()?);
    (record.len() == 3 && row.0 < 64 && row.1 < MAX_EXPERTS && row.2 < MAX_EXPERTS).then_some(row)
}
