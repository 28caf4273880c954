//! Command line of moeplan.
pub mod validate;
