//! The trace format of moeplan: CSV under a few lines of metadata.
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
//! # note: anything else; may be repeated
//! step,layer,source_rank,e0,e1,e2,e3
//! 0,0,0,5,3,4,4
//! 0,0,1,2,6,6,2
//! ```
//!
//! Rows are in ascending order of (step, layer), which may have gaps, then of source rank, which
//! may not. Every line ends in a line feed, so that a cut file is noticed.

mod lines;
mod meta;
mod read;
mod write;

pub(crate) use lines::parse_number;
pub use meta::TraceMeta;
pub use read::TraceReader;
pub use write::TraceWriter;

use crate::routing::RoutingStep;

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
