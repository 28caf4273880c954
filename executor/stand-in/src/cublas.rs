//! Filled in with the cuBLAS calls.
