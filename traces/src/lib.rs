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
mod input;
mod resample;
mod routing;
mod shipped;
mod stats;
mod tokens;

pub use draw::stream as random_stream;
pub use error::{Place, TraceError};
pub use format::{ParquetWriter, Trace, TraceMeta, TraceReader, TraceStep, TraceWriter};
pub use generate::{Curve, Domains, FittedTrace, Popularity, RoutingSpec, Transitions, Workload};
pub use import::{Assign, Axis, ImportOptions, ImportReport, TraceSource, open, open_ranks};
pub use input::Input;
pub use routing::{RoutingStep, Shape};
pub use shipped::{SHIPPED, shipped};
pub use stats::{
    Autocorrelation, ChangePoint, Forecast, LAGS, LayerDistance, LayerStats, Range, StatsBuilder,
    StepStats, TraceDistance, TraceStats, jensen_shannon_bits, total_variation,
};
pub use tokens::TokenStep;
