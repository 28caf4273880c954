//! Command line of moeplan.
