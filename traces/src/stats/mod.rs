//! How uneven routing is, how it moves, and how well it can be foreseen.

mod changes;
mod distance;
mod layer;
mod step;

pub use changes::ChangePoint;
pub use distance::{LayerDistance, TraceDistance, jensen_shannon_bits, total_variation};
pub use layer::{Autocorrelation, Forecast, LayerStats, Range};
pub use step::StepStats;

use crate::error::TraceError;
use crate::routing::RoutingStep;
use layer::Series;

/// Lags, in recorded steps, when nothing is said.
pub const LAGS: [usize; 5] = [1, 2, 4, 8, 16];

/// Collects the statistics of a trace step by step.
///
/// Keeps the loads of every step of every layer (steps x experts numbers a layer), not the rows of
/// the ranks: a trace of 2,048 ranks takes a two-thousandth of its size.
#[derive(Debug, Clone)]
pub struct StatsBuilder {
    capacity_factors: Vec<f64>,
    lags: Vec<usize>,
    /// One a layer, ascending.
    layers: Vec<(u32, Series)>,
}

/// Statistics of a whole trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceStats {
    /// One a layer, ascending.
    pub layers: Vec<LayerStats>,
}

impl StatsBuilder {
    /// Measures what is dropped at `capacity_factors`, and autocorrelation at `lags` recorded
    /// steps.
    pub fn new(capacity_factors: &[f64], lags: &[usize]) -> Self {
        Self {
            capacity_factors: capacity_factors.to_vec(),
            lags: lags.to_vec(),
            layers: Vec::new(),
        }
    }

    /// Adds a step; steps of a layer come in time order.
    pub fn push(&mut self, step: &RoutingStep) {
        let loads = step.expert_loads();
        let stats = StepStats::with_loads(step, &loads, &self.capacity_factors);
        let layer = step.layer();
        let at = match self
            .layers
            .binary_search_by_key(&layer, |(layer, _)| *layer)
        {
            Ok(at) => at,
            Err(at) => {
                self.layers.insert(at, (layer, Series::default()));
                at
            }
        };
        self.layers[at].1.push(stats, loads);
    }

    /// The statistics of what was pushed.
    pub fn finish(self) -> TraceStats {
        let layers = self.layers.into_iter();
        let mut layers: Vec<LayerStats> = layers
            .map(|(layer, series)| LayerStats::new(layer, series, &self.lags))
            .collect();
        for later in 1..layers.len() {
            layers[later].coupling_to_previous =
                layer::coupling(&layers[later - 1], &layers[later]);
        }
        TraceStats { layers }
    }
}

impl TraceStats {
    /// Statistics of `steps`.
    pub fn of<'a>(
        steps: impl IntoIterator<Item = &'a RoutingStep>,
        capacity_factors: &[f64],
        lags: &[usize],
    ) -> Self {
        let mut builder = StatsBuilder::new(capacity_factors, lags);
        steps.into_iter().for_each(|step| builder.push(step));
        builder.finish()
    }

    /// The statistics of a layer.
    pub fn layer(&self, layer: u32) -> Option<&LayerStats> {
        self.layers.iter().find(|stats| stats.layer == layer)
    }

    /// How far `other` is from this, layer by layer.
    ///
    /// # Errors
    /// No layer in common.
    pub fn distance(&self, other: &Self) -> Result<TraceDistance, TraceError> {
        TraceDistance::new(self, other)
    }
}
