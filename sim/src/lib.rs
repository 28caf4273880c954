//! Deterministic simulation of one Mixture-of-Experts layer on a GPU cluster.
//!
//! `layer + cluster + strategy + routing step -> Program -> Timeline`: [`compile`] writes the
//! operation graph of [`ir`], [`cost`] prices every operation on a [`hardware`], [`engine`] plays
//! it, [`policy`] decides what a strategy leaves open, and [`simulate`] sums up.

pub mod balance;
pub mod compile;
pub mod cost;
pub mod economy;
pub mod engine;
pub mod hardware;
pub mod ir;
pub mod model;
pub mod network;
pub mod planner;
pub mod policy;
pub mod simulate;
pub mod spec;
pub mod units;
pub mod world;
