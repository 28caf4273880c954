//! One file a subcommand: settings in, an [`Answer`](crate::output::Answer) out.

pub mod balance;
pub mod breakdown;
mod byte_matrix;
pub mod calibrate;
pub mod collective;
pub mod compare;
pub mod execute;
pub mod goodput;
pub mod kernel;
pub mod model;
pub mod plan;
pub mod report;
pub mod sweep;
pub mod trace;
pub mod validate;
pub mod validate_executor;
