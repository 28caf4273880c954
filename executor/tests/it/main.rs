//! The executor against its oracle, and strategies against each other.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../fixture/any.rs"]
mod any;
mod audit;
mod bad_input;
#[path = "../fixture/mod.rs"]
mod fixture;
mod memory;
mod oracle;
mod strategies;
