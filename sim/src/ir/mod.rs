//! The operation graph: one program that the simulator times and the executor runs.
//!
//! A [`Program`] is written once per (layer, strategy, routing step) by [`crate::compile`]. It is
//! SPMD: every rank runs the same list of operations, with sizes that may differ by rank.

mod at_once;
mod buffer;
mod critical_path;
mod op;
mod per_rank;
mod placement;
mod program;
mod ring;
mod timeline;
mod traffic;
mod work;

pub use buffer::{Buffer, BufferId, Lifetime};
pub use critical_path::{PathOp, critical_path, waiting_for_others};
pub use op::{
    Elementwise, Expert, ExpertRows, Few, Gradient, Kernels, Op, OpId, OpKind, Pass, Scope, Stage,
    Stream, Transport,
};
pub use per_rank::PerRank;
pub use placement::{Homes, Placement};
pub use program::{Program, ProgramBuilder};
pub use ring::Ring;
pub use timeline::{Span, Timeline};
pub use traffic::{Traffic, TrafficId, rows_of_chunk, share_of_chunk};
pub use work::Work;
