//! One integration binary: links once, tests the whole of moeplan.
