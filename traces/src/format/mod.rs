//! The trace format of moeplan, in two faces: CSV for people, Parquet for size.
//!
//! ```text
//! # format: moeplan-trace/1
//! # model: what routed the tokens
//! # experts: 4
//! # top_k: 2
//! # source_ranks: 2
//! # tokens_per_rank: 8            (or `varies`)
//! # origin: where the tokens come from
//! # licence: of the data
//! # recorded_by: the full command
//! # reduced: what was left out, summed up or divided; may be repeated or missing
//! # note: anything else; may be repeated or missing
//! step,layer,source_rank,e0,e1,e2,e3
//! 0,0,0,5,3,4,4
//! 0,0,1,2,6,6,2
//! ```
//!
//! Rows are in ascending order of (step, layer), which may have gaps, then of source rank, which
//! may not. Every line ends in a line feed, so that a cut file is noticed.
//!
//! Where the choices of single tokens are known a row is a token: its place in its rank, its
//! experts with the best first and, if they were recorded, their scores. A rank without tokens
//! has no rows.
//!
//! ```text
//! step,layer,source_rank,token,expert0,expert1,score0,score1
//! 0,0,0,0,3,1,0.75,0.25
//! 0,0,0,1,0,3,0.5,0.5
//! ```
//!
//! The Parquet face ([`parquet`]) has the same columns, the experts of a row in one list.

mod lines;
mod meta;
pub(crate) mod parquet;
mod read;
mod write;

pub(crate) use lines::{Lines, append_numbers, leading_number, parse_number, parse_score};
pub use meta::TraceMeta;
pub use parquet::ParquetWriter;
pub use read::TraceReader;
pub use write::TraceWriter;

use crate::error::{Place, TraceError};
use crate::routing::RoutingStep;
use crate::tokens::TokenStep;

/// First metadata line of every trace.
pub(crate) const FORMAT: &str = "moeplan-trace/1";

/// A whole trace in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Where it comes from and what all its steps share.
    pub meta: TraceMeta,
    /// Ascending in (step, layer).
    pub steps: Vec<RoutingStep>,
}

impl Trace {
    /// Indices of the recorded MoE layers, ascending.
    pub fn layers(&self) -> Vec<u32> {
        let mut layers: Vec<u32> = self.steps.iter().map(RoutingStep::layer).collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    /// The steps of one layer, in time order.
    pub fn steps_of_layer(&self, layer: u32) -> impl Iterator<Item = &RoutingStep> {
        self.steps.iter().filter(move |step| step.layer() == layer)
    }
}

/// One step of one layer, in as much detail as was recorded.
#[derive(Debug, Clone, PartialEq)]
pub enum TraceStep {
    /// Copies from every source rank to every expert.
    Counts(RoutingStep),
    /// The choices of every token.
    Tokens(TokenStep),
}

impl TraceStep {
    /// Index of the step.
    pub fn step(&self) -> u64 {
        match self {
            Self::Counts(step) => step.step(),
            Self::Tokens(step) => step.step(),
        }
    }

    /// Index of the MoE layer.
    pub fn layer(&self) -> u32 {
        match self {
            Self::Counts(step) => step.layer(),
            Self::Tokens(step) => step.layer(),
        }
    }

    /// Copies from every source rank to every expert.
    pub fn into_counts(self) -> RoutingStep {
        match self {
            Self::Counts(step) => step,
            Self::Tokens(step) => step.counts(),
        }
    }
}

/// What the rows of a file hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Copies per source rank and expert.
    Counts,
    /// Choices of single tokens.
    Tokens {
        /// Whether their scores were recorded.
        scores: bool,
    },
}

impl Rows {
    /// Names of the columns of the CSV face.
    fn columns(self, meta: &TraceMeta) -> impl Iterator<Item = String> + use<> {
        let (experts, choices) = match self {
            Self::Counts => (meta.experts, 0),
            Self::Tokens { .. } => (0, meta.top_k),
        };
        let scores = match self {
            Self::Tokens { scores: true } => choices,
            Self::Counts | Self::Tokens { .. } => 0,
        };
        let keys = read::KEY_COLUMNS.into_iter().map(str::to_owned);
        keys.chain((choices > 0).then(|| "token".to_owned()))
            .chain((0..experts).map(|expert| format!("e{expert}")))
            .chain((0..choices).map(|choice| format!("expert{choice}")))
            .chain((0..scores).map(|choice| format!("score{choice}")))
    }
}

/// Holds the steps of a trace against its metadata as they are written.
#[derive(Debug)]
struct StepCheck {
    /// File name, for messages.
    name: String,
    meta: TraceMeta,
    rows: Option<Rows>,
    last: Option<(u64, u32)>,
}

impl StepCheck {
    fn new(name: &str, meta: TraceMeta) -> Self {
        Self {
            name: name.to_owned(),
            meta,
            rows: None,
            last: None,
        }
    }

    fn place(&self) -> Place {
        Place::of(self.name.as_str())
    }

    /// Fails where a step holds something else than the first; true for the first.
    fn begin(&mut self, rows: Rows) -> Result<bool, TraceError> {
        match self.rows {
            None => {
                self.rows = Some(rows);
                Ok(true)
            }
            Some(first) if first == rows => Ok(false),
            Some(first) => Err(TraceError::invalid(
                self.place(),
                format!("steps that all hold {first:?}"),
                format!("{rows:?}"),
            )),
        }
    }

    fn counts(&mut self, step: &RoutingStep) -> Result<(), TraceError> {
        let sizes = (step.num_experts(), step.top_k(), step.source_ranks());
        self.sizes((step.step(), step.layer()), sizes, |rank| {
            u64::from(step.tokens(rank))
        })
    }

    fn tokens(&mut self, step: &TokenStep) -> Result<(), TraceError> {
        let sizes = (step.num_experts(), step.top_k(), step.source_ranks());
        self.sizes((step.step(), step.layer()), sizes, |rank| {
            step.tokens(rank) as u64
        })
    }

    fn sizes(
        &mut self,
        key: (u64, u32),
        found: (usize, u32, usize),
        tokens: impl Fn(usize) -> u64,
    ) -> Result<(), TraceError> {
        let meta = &self.meta;
        let sizes = (meta.experts, meta.top_k, meta.source_ranks);
        if sizes != found {
            return Err(TraceError::invalid(
                self.place(),
                format!("(experts, top_k, source ranks) of {sizes:?}"),
                format!("{found:?}"),
            ));
        }
        if self.last.is_some_and(|last| key <= last) {
            return Err(TraceError::invalid(
                self.place().field("step"),
                "ascending steps, and layers within a step",
                format!("step {}, layer {}", key.0, key.1),
            ));
        }
        if let Some(expected) = meta.tokens_per_rank {
            let expected = u64::from(expected);
            if let Some(rank) = (0..found.2).find(|&rank| tokens(rank) != expected) {
                return Err(TraceError::invalid(
                    self.place().field(format!("rank {rank}")),
                    format!("{expected} tokens (tokens_per_rank)"),
                    tokens(rank).to_string(),
                ));
            }
        }
        self.last = Some(key);
        Ok(())
    }

    /// Fails where there was no step.
    fn finish(&self) -> Result<(), TraceError> {
        match self.last {
            Some(_) => Ok(()),
            None => Err(TraceError::invalid(
                self.place(),
                "at least one step",
                "none",
            )),
        }
    }
}
