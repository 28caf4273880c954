//! Flow-level network: ports, links, max-min fair sharing.

pub mod fabric;
pub mod traffic;
