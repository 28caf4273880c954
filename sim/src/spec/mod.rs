//! What the user asks for: the layer, the strategy, the cluster.

mod dtype;

pub use dtype::DType;
