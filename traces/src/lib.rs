//! Routing traces: how many token copies every rank sends to every expert, step by step.
//!
//! [`open`] reads a trace file of any known layout, [`shipped`] one that comes with the crate,
//! [`RoutingSpec`] makes routing up; [`RoutingStep::resample`] scales a step to another cluster.
//! Nothing here reads a clock, the environment or a file by itself.

mod draw;
mod error;
mod format;
mod generate;
mod import;
mod resample;
mod routing;
mod shipped;
mod stats;

pub use error::{Place, TraceError};
pub use format::{Trace, TraceMeta, TraceReader, TraceWriter};
pub use generate::{Curve, Domains, FittedTrace, Popularity, RoutingSpec, Transitions, Workload};
pub use import::{ImportOptions, open};
pub use routing::{RoutingStep, Shape};
pub use shipped::{SHIPPED, shipped};
pub use stats::{
    Autocorrelation, ChangePoint, Forecast, LAGS, LayerDistance, LayerStats, Range, StatsBuilder,
    StepStats, TraceDistance, TraceStats, jensen_shannon_bits, total_variation,
};
