//! Integration tests of the traces crate, in one binary.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

mod faces;
mod format;
mod fuzz;
mod generate;
mod import;
mod layouts;
mod resample;
mod routing;
mod shipped;
mod stats;
mod tokens;
