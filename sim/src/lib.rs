//! Deterministic simulation of one Mixture-of-Experts layer on a GPU cluster.
//!
//! `LayerSpec + Cluster + Strategy + RoutingStep -> Program -> Timeline`: `compile`
//! writes the operation graph, [`cost`] says how long each operation takes, `engine` plays it.

pub mod cost;
pub mod network;
pub mod spec;
pub mod units;
