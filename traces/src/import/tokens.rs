//! Expert ids of every token: a header with one column `L0`, `L1`, ... per MoE layer (others are
//! ignored), each cell the ids a token chose there, best first, separated by spaces. The captures
//! of gpt-oss have this layout.
//!
//! Such a file does not say which GPU a token was on. Here the token stream is cut into as many
//! contiguous slices of equal length as there are source ranks, and every rank works through its
//! own slice: ranks see different documents at one time, as they do in data parallelism. Tokens
//! that do not fill a slice or a step are left out.

use std::io::BufRead;

use super::{ImportOptions, Records, check_size, expert_count, layer_of};
use crate::error::{Place, TraceError, quote};
use crate::format::{Trace, TraceMeta, parse_number};
use crate::routing::RoutingStep;

/// Largest expert id.
const MAX_EXPERT: u64 = (1 << 20) - 1;

/// Most choices of one token; more make no sense, and comparing them would take for ever.
const MAX_CHOICES: usize = 256;

/// A column of the file that holds the choices of one layer.
struct Column {
    index: usize,
    layer: u32,
    /// `[tokens, top_k]`.
    ids: Vec<u32>,
}

/// Reads everything below the header, which is in `records` already.
pub(super) fn read<R: BufRead>(
    records: &mut Records<R>,
    options: &ImportOptions,
) -> Result<Trace, TraceError> {
    let file = Place::of(records.name.as_str());
    for (field, value) in [
        ("source_ranks", options.source_ranks as u64),
        ("tokens_per_rank", options.tokens_per_rank.into()),
    ] {
        if value == 0 {
            return Err(TraceError::invalid(file.field(field), "at least 1", "0"));
        }
    }
    let mut columns = find_columns(records)?;
    let width = records.record.len();
    let mut top_k = options.top_k;
    let mut largest = 0;
    let mut tokens = 0_usize;
    let mut ids = Vec::new();
    while records.advance()? {
        let place = || records.place();
        if records.record.len() != width {
            return Err(TraceError::invalid(
                place(),
                format!("{width} columns"),
                format!("{} columns", records.record.len()),
            ));
        }
        for column in &mut columns {
            let field = || place().field(format!("L{}", column.layer));
            let text = records.record.get(column.index).unwrap_or_default();
            ids.clear();
            for id in text.split_ascii_whitespace() {
                let id = parse_number(id, MAX_EXPERT, field)? as u32;
                if ids.contains(&id) || ids.len() == MAX_CHOICES {
                    return Err(TraceError::invalid(
                        field(),
                        format!("different experts, at most {MAX_CHOICES}"),
                        quote(text.as_bytes()),
                    ));
                }
                largest = largest.max(id as usize);
                ids.push(id);
            }
            // Without the option the first token says how many there are.
            let wanted = *top_k.get_or_insert(ids.len().max(1) as u32) as usize;
            let exact = options.top_k.is_none();
            if ids.len() < wanted || (exact && ids.len() > wanted) || wanted == 0 {
                return Err(TraceError::invalid(
                    field(),
                    format!("{wanted} expert ids, the best first"),
                    quote(text.as_bytes()),
                ));
            }
            column.ids.extend_from_slice(&ids[..wanted]);
        }
        tokens += 1;
    }
    let (ranks, per_rank) = (options.source_ranks, options.tokens_per_rank as usize);
    let slice = tokens / ranks;
    let num_steps = slice / per_rank;
    let Some(top_k) = top_k.filter(|_| num_steps > 0) else {
        return Err(TraceError::invalid(
            file,
            format!("at least {per_rank} tokens for each of {ranks} source ranks"),
            format!("{tokens} tokens"),
        ));
    };
    let experts = expert_count(largest, options, file.clone())?;
    check_size(&[num_steps, columns.len(), ranks, experts], file)?;

    let mut steps = Vec::with_capacity(num_steps * columns.len());
    for step in 0..num_steps {
        for column in &columns {
            let mut counts = vec![0; ranks * experts];
            for (rank, row) in counts.chunks_exact_mut(experts).enumerate() {
                let first = (rank * slice + step * per_rank) * top_k as usize;
                for &id in &column.ids[first..][..per_rank * top_k as usize] {
                    row[id as usize] += 1;
                }
            }
            let routing = RoutingStep::new(step as u64, column.layer, top_k, experts, counts)?;
            steps.push(routing);
        }
    }
    let mut meta = TraceMeta::of_step(&steps[0]);
    meta.origin = records.name.trim().to_owned();
    meta.notes = vec![format!(
        "imported from expert ids of {tokens} tokens: source rank r reads the contiguous slice r of {slice}; {} tokens left out",
        tokens - num_steps * per_rank * ranks
    )];
    Ok(Trace { meta, steps })
}

/// Layer columns in ascending order of layer.
fn find_columns<R: BufRead>(records: &Records<R>) -> Result<Vec<Column>, TraceError> {
    let mut columns: Vec<Column> = Vec::new();
    for (index, name) in records.record.iter().enumerate() {
        if let Some(layer) = layer_of(name) {
            columns.push(Column {
                index,
                layer,
                ids: Vec::new(),
            });
        }
    }
    columns.sort_by_key(|column| column.layer);
    match columns.windows(2).find(|two| two[0].layer == two[1].layer) {
        Some(two) => Err(TraceError::invalid(
            records.place().field(format!("L{}", two[0].layer)),
            "every layer once",
            "it again",
        )),
        None => Ok(columns),
    }
}
