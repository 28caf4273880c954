//! The event engine: plays a priced program on every rank. The only place where time advances.
//!
//! Each rank has a host thread that issues operations in program order, and one in-order queue a
//! [`Stream`](crate::ir::Stream). A collective starts when its last participant has arrived. While
//! both queues of a rank run, each slows the other down.

mod queue;
mod rows;
mod run;

pub use queue::EventQueue;
pub use run::{Concurrency, Contention, PricedOp, Resource, RunStats, run, step_time};
