//! The executor against its oracle, and strategies against each other.

mod bad_input;
mod common;
mod oracle;
mod strategies;
