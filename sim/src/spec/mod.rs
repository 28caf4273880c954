//! What the user asks for: the layer and the strategy. One schema serves TOML files, flags and
//! tests; the hardware it runs on is in [`crate::hardware`].

mod dtype;
mod gate;
mod layer;
mod strategy;

pub use dtype::DType;
pub use gate::Gate;
pub use layer::{Experts, LayerSpec, ResolvedLayer, SpecError};
pub use strategy::{
    AllToAll, Choice, Encode, Layout, PIPELINE_DEGREES, Padding, Phase, Policy, Strategy,
};
