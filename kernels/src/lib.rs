//! CUDA C++ kernels of a Mixture-of-Experts layer: their text, launch geometry and typed arguments.
//!
//! This crate compiles no CUDA and needs none. A launcher (the executor's CUDA backend, or the host
//! build of the tests) takes a [`Launch`], which is plain data: which entry point, which grid, which
//! arguments in which order.

mod arguments;
#[cfg(all(feature = "host", host_build))]
pub mod host;
mod kernel;
mod launch;

pub use arguments::*;
pub use kernel::{KernelId, Module, Real, include_folder, nvrtc_options};
pub use launch::{Arg, Arguments, Geometry, In, Launch, Out, Parameter};

/// Whether the kernels were compiled for the host: the `host` feature is on and a C++ compiler was there.
pub const HOST_BUILD: bool = cfg!(all(feature = "host", host_build));
