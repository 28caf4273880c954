//! Flow-level network: ports, links, max-min fair sharing.
