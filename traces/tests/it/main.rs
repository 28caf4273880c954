//! Integration tests of the traces crate, in one binary.

mod format;
mod generate;
mod import;
mod resample;
mod routing;
