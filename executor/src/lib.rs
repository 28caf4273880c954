//! The reference executor: runs the very [`Program`](moeplan_sim::ir::Program) that the simulator
//! times.
//!
//! [`lower`](lower::lower) works out every address once; a [`Backend`] runs the resulting
//! [`Task`](task::Task)s of every rank in the order the program allows, and counts the bytes and
//! FLOPs it really touched, which [`audit`] holds against the program's own counts. Outputs and
//! gradients are held against [`oracle`] by the tests.

pub mod assign;
pub mod audit;
pub mod backend;
mod cosine;
pub mod cpu;
pub mod cuda;
mod error;
pub mod inputs;
pub mod lower;
pub mod memory;
pub mod number;
pub mod oracle;
pub mod slices;
pub mod task;

pub use backend::{Backend, Executed, Job, Ran, RankOutputs, execute, tokens_of_step};
pub use cosine::CosineLayout;
pub use error::ExecError;
pub use inputs::{ExpertWeights, Inputs, Routing};
pub use memory::Allocation;
