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
mod tokens;

pub use error::{Place, TraceError};
pub use format::{Trace, TraceMeta, TraceReader, TraceWriter};
pub use generate::{Popularity, RoutingSpec};
pub use import::{ImportOptions, open};
pub use routing::{RoutingStep, Shape};
pub use shipped::{SHIPPED, shipped};
pub use stats::StepStats;
pub use tokens::TokenStep;
