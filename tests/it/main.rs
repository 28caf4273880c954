//! One integration binary: links once, tests the whole of moeplan.

mod cli;
mod closed_form;
mod determinism;
mod golden;
mod hostile;
mod properties;
mod scale;
mod sensitivity;
mod tidy;
