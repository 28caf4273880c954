//! The `moeplan` binary.
fn main() {}
