//! Flow-level network: when each rank of a collective is done, from who sends how much to whom.
//!
//! Every pair of ranks with bytes between them is one fluid flow; all start at time zero. At each
//! instant the rates are *max-min fair*: no flow can go faster without slowing one that is not
//! faster than itself. Latency and protocol are for the caller to add.
//!
//! - [`fabric`]: the links and which of them a flow crosses.
//! - [`traffic`]: the bytes.
//! - [`drain`]: the answer, fast. Symmetric traffic collapses into a few classes, solved exactly
//!   in microseconds; any matrix goes to the epoch solver (`epoch`), linear in pairs.
//! - [`reference`]: the same answer flow by flow and event by event, for tests.
//!
//! **Invariant:** pure and deterministic; no finish is below the port bound of its rank.

mod component;
mod drained;
mod epoch;
pub mod fabric;
mod fair;
mod flow;
mod load;
pub mod reference;
mod symmetric;
#[cfg(test)]
mod tests;
pub mod traffic;

pub use drained::Drained;
pub use flow::{drain, drain_in_steps};
pub use load::ClassLoad;
