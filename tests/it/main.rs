//! One integration binary: links once, tests the whole of moeplan.

mod closed_form;
mod determinism;
mod golden;
mod properties;
mod scale;
mod tidy;
