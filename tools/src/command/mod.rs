//! One file a subcommand: settings in, an [`Answer`](crate::output::Answer) out.

pub mod compare;
pub mod validate;
