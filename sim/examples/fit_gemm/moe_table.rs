//! The MoE table as shapes and seconds.

use crate::power_law::busiest_rank;
use moeplan_sim::cost::moe_ffn::{ExpertLoad, MoeFfnShape};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// (experts, inter) pairs of the table that vLLM 0.14 ran at twice the rate of its default blocks,
/// told by the measurements themselves: it ships tuned blocks for them on the A100.
const TUNED: [(u64, u64); 8] = [
    (1, 14336),
    (8, 1792),
    (8, 2048),
    (8, 3584),
    (8, 4096),
    (8, 7168),
    (16, 2688),
    (128, 192),
];

#[derive(Deserialize)]
struct Row {
    num_tokens: u64,
    hidden_size: u64,
    inter_size: u64,
    topk: u64,
    num_experts: u64,
    moe_tp_size: u64,
    moe_ep_size: u64,
    distribution: String,
    latency_ms: f64,
}

/// A shape and its measured seconds.
pub(crate) type Sample = (MoeFfnShape, f64);

/// Reads the table, rebuilding the routing of each row.
pub(crate) fn read(path: &Path) -> Result<Vec<Sample>, Box<dyn std::error::Error>> {
    let mut loads: BTreeMap<(u64, u64, u64, u64, String), ExpertLoad> = BTreeMap::new();
    let mut rows = Vec::new();
    for row in csv::Reader::from_path(path)?.deserialize() {
        let row: Row = row?;
        let exponent: f64 = row.distribution.trim_start_matches("power_law_").parse()?;
        let key = (
            row.num_tokens,
            row.num_experts,
            row.topk,
            row.moe_ep_size,
            row.distribution,
        );
        let load = *loads.entry(key).or_insert_with(|| {
            ExpertLoad::from_rows(&busiest_rank(
                row.num_tokens,
                row.num_experts as usize,
                row.topk,
                exponent,
                row.moe_ep_size as usize,
            ))
        });
        let experts = row.num_experts / row.moe_ep_size;
        let inter = row.inter_size / row.moe_tp_size;
        let shape = MoeFfnShape {
            tokens: row.num_tokens,
            top_k: row.topk,
            hidden: row.hidden_size,
            inter,
            experts,
            load,
            tuned: TUNED.contains(&(experts, inter)),
        };
        rows.push((shape, row.latency_ms * 1e-3));
    }
    Ok(rows)
}
