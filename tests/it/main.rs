//! One integration binary: links once, tests the whole of moeplan.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cli;
mod closed_form;
mod determinism;
mod execute;
mod golden;
mod hostile;
mod perfetto;
mod plan;
mod properties;
mod report;
mod scale;
mod sensitivity;
mod sweep;
mod tidy;
mod trace_cli;
mod trace_import;
mod whole_models;
