//! One integration binary: links once, tests the whole of moeplan.

mod cli;
mod hostile;
mod sensitivity;
