//! Where experts sit, and how often: policies that move and copy experts to even out the load, on what
//! they really know (past steps), with the cost of moving charged.
//!
//! An [`Arrangement`] gives every rank the same number of slots and every slot an expert. It turns a
//! routing step over E experts into one over W·slots, so that the layer compiles as it always does:
//! a permutation of experts is a placement with contiguous homes, and copies of an expert share its
//! load.

mod arrangement;
mod arranger;
mod eplb;
mod migration;
mod policy;
mod run;

pub use arrangement::Arrangement;
pub use arranger::{Arranged, Arranger, Balancing, Schedule};
pub use policy::{Affinity, Balancer, Contiguous, Eplb, Past, Shadowing, named};
pub use run::{BalancedRun, BalancedStep};

/// Names of the policies.
pub const POLICIES: &[&str] = &[
    "static",
    "eplb",
    "eplb-hierarchical",
    "shadowing",
    "affinity",
];

#[cfg(test)]
mod tests;
