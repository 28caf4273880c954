//! Measured fused MoE feed-forwards, in the column layout of ai-dynamo/aiconfigurator.

use super::gemm_table::TableError;
use super::moe_ffn::{ExpertLoad, MoeFfnShape};
use super::power_law::busiest_rank;
use crate::units::Time;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read;

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

/// A fused MoE feed-forward under expert and tensor parallelism and power-law routing.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerLawFfn {
    /// Tokens of the expert-parallel group.
    pub num_tokens: u64,
    /// Model dimension.
    pub hidden_size: u64,
    /// Hidden dimension of an expert over all tensor-parallel ranks.
    pub inter_size: u64,
    /// Experts a token.
    pub top_k: u64,
    /// Experts over all expert-parallel ranks.
    pub num_experts: u64,
    /// Tensor-parallel ranks.
    pub tensor_parallel: u64,
    /// Expert-parallel ranks.
    pub expert_parallel: u64,
    /// Exponent of the expert loads' power law.
    pub exponent: f64,
}

impl PowerLawFfn {
    /// The work of the busiest rank. `None` where the experts or their channels do not divide over
    /// the ranks, a number is 0 or beyond 2^32, or more experts are asked for than there are.
    pub fn busiest(&self) -> Option<MoeFfnShape> {
        let sizes = [
            self.num_tokens,
            self.hidden_size,
            self.inter_size,
            self.top_k,
            self.num_experts,
            self.tensor_parallel,
            self.expert_parallel,
        ];
        let sound = sizes.iter().all(|size| (1..=1 << 32).contains(size))
            && self.num_experts <= 1 << 20
            && self.top_k <= self.num_experts
            && self.num_experts.is_multiple_of(self.expert_parallel)
            && self.inter_size.is_multiple_of(self.tensor_parallel)
            // The law is integrated with the exponent 1 - a, which must not be 0.
            && self.exponent.is_finite()
            && (self.exponent - 1.0).abs() > 1e-9;
        sound.then(|| {
            let rows = busiest_rank(
                self.num_tokens,
                self.num_experts as usize,
                self.top_k,
                self.exponent,
                self.expert_parallel as usize,
            );
            self.shape(ExpertLoad::from_rows(&rows))
        })
    }

    fn shape(&self, load: ExpertLoad) -> MoeFfnShape {
        let experts = self.num_experts / self.expert_parallel;
        let inter = self.inter_size / self.tensor_parallel;
        MoeFfnShape {
            tokens: self.num_tokens,
            top_k: self.top_k,
            hidden: self.hidden_size,
            inter,
            experts,
            load,
            tuned: TUNED.contains(&(experts, inter)),
        }
    }
}

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

/// Reads a table with the columns `num_tokens, hidden_size, inter_size, topk, num_experts,
/// moe_tp_size, moe_ep_size, distribution, latency_ms`, in any order, and rebuilds the routing of
/// each row.
///
/// # Errors
/// A missing column, a field that is no number of its kind, an empty table.
pub fn read_moe_ffn_rows(table: impl Read) -> Result<Vec<(MoeFfnShape, Time)>, TableError> {
    let mut loads: BTreeMap<(u64, u64, u64, u64, String), ExpertLoad> = BTreeMap::new();
    let mut rows = Vec::new();
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(table);
    let header = reader.headers()?.clone();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let row: Row = record.deserialize(Some(&header))?;
        let wrong = |column, expected, found: String| TableError::Field {
            line,
            column,
            expected,
            found,
        };
        let exponent = row
            .distribution
            .strip_prefix("power_law_")
            .and_then(|text| text.parse().ok());
        let exponent = exponent.ok_or_else(|| {
            wrong(
                "distribution",
                "power_law_ and an exponent",
                row.distribution.clone(),
            )
        })?;
        // Below a picosecond or above a day nothing was measured.
        if !(1e-9..86_400_000.0).contains(&row.latency_ms) {
            let expected = "milliseconds above 0 and below a day";
            return Err(wrong("latency_ms", expected, row.latency_ms.to_string()));
        }
        let law = PowerLawFfn {
            num_tokens: row.num_tokens,
            hidden_size: row.hidden_size,
            inter_size: row.inter_size,
            top_k: row.topk,
            num_experts: row.num_experts,
            tensor_parallel: row.moe_tp_size,
            expert_parallel: row.moe_ep_size,
            exponent,
        };
        let key = (
            row.num_tokens,
            row.num_experts,
            row.topk,
            row.moe_ep_size,
            row.distribution,
        );
        let shape = match loads.get(&key) {
            Some(&load) => Some(law.shape(load)),
            None => law.busiest().inspect(|shape| {
                loads.insert(key, shape.load);
            }),
        };
        let shape = shape.ok_or_else(|| {
            let expected = "experts that divide over moe_ep_size, sizes above 0";
            wrong("num_experts", expected, format!("{}", row.num_experts))
        })?;
        rows.push((shape, Time::from_secs_f64(row.latency_ms * 1e-3)));
    }
    if rows.is_empty() {
        return Err(TableError::Empty);
    }
    Ok(rows)
}
