//! The planner: every way to run a layer on every cluster at hand, and the best of them with reasons.
//!
//! [`space`] says what is tried, `loads` on which routing and placement of experts, [`bound`] what a plan cannot
//! beat, `outline` the same for models whose blocks repeat; [`search`] tries what the bounds leave, with a `tester` a
//! world; [`pareto`] tells which plans nothing is better than, [`explain`] why, and [`sensitivity`] what more of each
//! resource would buy.

pub mod bound;
pub mod explain;
pub mod figures;
pub mod limits;
mod loads;
mod outline;
pub mod pareto;
pub mod search;
pub mod sensitivity;
pub mod space;
mod tester;

pub use explain::{Limit, Share, Verdict};
pub use figures::{Figures, Objectives};
pub use limits::{Goal, Limits, Violation};
pub use search::{Outcome, Pruning, search};
pub use sensitivity::Sensitivity;
pub use space::{Candidate, Decision, Site, Slices, Space, Tokens, World, gpu_counts};
pub use tester::Evaluated;

#[cfg(test)]
mod tests;
