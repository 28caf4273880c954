//! Traces that come with the crate.

use crate::error::{Place, TraceError, quote};
use crate::format::{Trace, TraceReader};

/// Names that [`shipped`] knows.
pub const SHIPPED: &[&str] = &["digits", "digits-free", "digits-top1", "text", "text-top1"];

/// Texts of the shipped traces, in the order of [`SHIPPED`].
const TEXTS: &[&str] = &[
    include_str!("digits-moe.csv"),
    include_str!("digits-free-moe.csv"),
    include_str!("digits-top1-moe.csv"),
    include_str!("text-moe.csv"),
    include_str!("text-top1-moe.csv"),
];

/// The shipped trace of this name; see `traces/README.md` for what they are.
pub fn shipped(name: &str) -> Result<Trace, TraceError> {
    let mut known = SHIPPED.iter().zip(TEXTS);
    let Some((_, text)) = known.find(|&(&known, _)| known == name) else {
        return Err(TraceError::invalid(
            Place::of("trace"),
            format!("a shipped trace ({})", SHIPPED.join(", ")),
            quote(name.as_bytes()),
        ));
    };
    let reader = TraceReader::new(text.as_bytes(), name)?;
    let meta = reader.meta().clone();
    let steps = reader.collect::<Result<_, _>>()?;
    Ok(Trace { meta, steps })
}
