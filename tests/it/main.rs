//! One integration binary: links once, tests the whole of moeplan.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cli;
mod closed_form;
mod dash;
mod determinism;
mod execute;
mod golden;
mod hostile;
mod properties;
mod run_file;
mod scale;
mod sensitivity;
mod tidy;
mod trace_cli;
mod trace_import;
