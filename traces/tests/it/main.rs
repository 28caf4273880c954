//! Integration tests of the traces crate, in one binary.

#![expect(clippy::unwrap_used, reason = "helpers of tests unwrap as tests do")]

mod format;
mod generate;
mod import;
mod resample;
mod routing;
mod shipped;
mod tokens;
