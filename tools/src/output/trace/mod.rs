//! Traces described for people.

mod pair;
mod stats;

pub use pair::{distances, side_by_side};
pub use stats::{heading, per_step, plots, summary};
