//! Copies per expert and layer, `list_index,expert,count` without a header, as OLMoE's authors
//! publish them: one step, every list a layer, one source rank. Experts that are not listed have
//! no copies.

use std::collections::BTreeMap;
use std::io::BufRead;

use super::{ImportOptions, Records, check_size, expert_count};
use crate::error::TraceError;
use crate::format::{Trace, TraceMeta, parse_number};
use crate::routing::RoutingStep;

/// Largest expert id.
const MAX_EXPERT: u64 = (1 << 20) - 1;

/// Reads from the first record on, which is in `records` already.
pub(super) fn read<R: BufRead>(
    records: &mut Records<R>,
    options: &ImportOptions,
) -> Result<Trace, TraceError> {
    let mut layers: BTreeMap<u32, BTreeMap<usize, u32>> = BTreeMap::new();
    let mut largest = 0;
    loop {
        let record = &records.record;
        let place = || records.place();
        if record.len() != 3 {
            return Err(TraceError::invalid(
                place(),
                "three columns: list_index,expert,count",
                format!("{} columns", record.len()),
            ));
        }
        let number = |column: usize, field: &str, most: u64| {
            let text = record.get(column).unwrap_or_default();
            parse_number(text, most, || place().field(field))
        };
        let layer = number(0, "list_index", u32::MAX.into())? as u32;
        let expert = number(1, "expert", MAX_EXPERT)? as usize;
        let count = number(2, "count", u32::MAX.into())? as u32;
        let experts = layers.entry(layer).or_default();
        if experts.insert(expert, count).is_some() {
            return Err(TraceError::invalid(
                place().field("expert"),
                format!("every expert of list {layer} once"),
                format!("{expert} again"),
            ));
        }
        largest = largest.max(expert);
        if !records.advance()? {
            break;
        }
    }
    let file = || crate::Place::of(records.name.as_str());
    let experts = expert_count(largest, options, file())?;
    check_size(&[layers.len(), experts], file())?;
    let top_k = options.top_k.unwrap_or(1);
    let mut steps = Vec::with_capacity(layers.len());
    for (layer, counts) in layers {
        let mut row = vec![0; experts];
        for (expert, count) in counts {
            row[expert] = count;
        }
        let step = RoutingStep::new(0, layer, top_k, experts, row);
        steps.push(step.map_err(|error| match error {
            TraceError::Invalid {
                place,
                expected,
                found,
            } => {
                let field = place.field.unwrap_or_default();
                let field = format!("list {layer}: {field}");
                TraceError::invalid(file().field(field), expected, found)
            }
            io @ TraceError::Io { .. } => io,
        })?);
    }
    let even = steps
        .iter()
        .all(|step| step.shape() == steps[0].shape() && step.shape().is_some());
    let mut meta = TraceMeta::of_step(&steps[0]);
    meta.tokens_per_rank = meta.tokens_per_rank.filter(|_| even);
    meta.origin = records.name.trim().to_owned();
    meta.notes = vec!["imported from counts per expert; layers are list indices".to_owned()];
    Ok(Trace { meta, steps })
}
