//! One file a subcommand: settings in, an [`Answer`](crate::output::Answer) out.

pub mod breakdown;
pub mod collective;
pub mod compare;
pub mod kernel;
pub mod validate;
