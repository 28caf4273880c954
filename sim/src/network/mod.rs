//! Flow-level network: ports, links, max-min fair sharing.

mod drained;
pub mod fabric;
mod fair;
mod load;
pub mod reference;
pub mod traffic;

pub use drained::Drained;
pub use load::ClassLoad;
