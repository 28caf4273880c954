//! The planner: every way to run a layer on every cluster at hand, and the best of them with reasons.
//!
//! [`space`] says what is tried, [`bound`] what a plan cannot beat, [`search`] tries what the bounds
//! leave, [`pareto`] tells which plans nothing is better than, [`explain`] why, and [`sensitivity`] what more
//! of each resource would buy.

pub mod bound;
pub mod explain;
pub mod figures;
pub mod limits;
pub mod pareto;
pub mod search;
pub mod sensitivity;
pub mod space;

pub use explain::{Limit, Share, Verdict};
pub use figures::{Figures, Objectives};
pub use limits::{Goal, Limits, Violation};
pub use search::{Evaluated, Outcome, Pruning, search};
pub use sensitivity::Sensitivity;
pub use space::{Candidate, Decision, Site, Space, Tokens, World, gpu_counts};

#[cfg(test)]
mod tests;
