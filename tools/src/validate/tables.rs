//! Holds the cost models against a measured table, row by row.

use crate::error::{Error, Place};
use moeplan_sim::cost::gemm_table::read_gemm_rows;
use moeplan_sim::cost::moe_table::read_moe_ffn_rows;
use moeplan_sim::cost::nccl::{CollectiveKind, Nccl, port_bound};
use moeplan_sim::cost::nccl_table::{NcclMeasurement, parse_nccl_table};
use moeplan_sim::hardware::Hardware;
use moeplan_sim::units::{Bandwidth, Time};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Read;

/// What a table measures, and so the layout of its columns.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// Collectives.
    Nccl,
    /// Matrix products.
    Gemm,
    /// Fused MoE feed-forward kernels.
    MoeFfn,
}

impl TableKind {
    /// Name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            TableKind::Nccl => "nccl",
            TableKind::Gemm => "gemm",
            TableKind::MoeFfn => "moe-ffn",
        }
    }
}

/// One measured row beside ours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub label: String,
    /// The size class it is summed up in.
    pub class: String,
    /// Measured time.
    pub measured_ns: f64,
    /// Ours.
    pub simulated_ns: f64,
    /// Ours over theirs, less one.
    pub relative_error: f64,
    /// No collective of these bytes can be faster; `None` for kernels.
    pub port_bound_ns: Option<f64>,
}

/// Accuracy over the rows of one class.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// Which rows.
    pub class: String,
    /// How many.
    pub rows: usize,
    /// Mean absolute error, as a fraction.
    pub mape: f64,
    /// 95th percentile of the absolute error.
    pub p95: f64,
    /// Mean error: above 0 where we are slower than measured.
    pub bias: f64,
}

/// Reads `table` and simulates every row of it on `hardware`.
///
/// # Errors
/// A table that is not in the layout of its kind, naming line and column.
pub fn compare(
    table: impl Read,
    name: &str,
    kind: TableKind,
    hardware: &Hardware,
) -> Result<Vec<Row>, Error> {
    let bad = |message: String| Error::input(Place::file(name), message);
    match kind {
        TableKind::Nccl => {
            let rows = parse_nccl_table(table).map_err(|error| bad(error.to_string()))?;
            compare_nccl(rows, hardware)
        }
        TableKind::Gemm => {
            let rows = read_gemm_rows(table).map_err(|error| bad(error.to_string()))?;
            let row = |(shape, measured): (moeplan_sim::cost::gemm::GemmShape, Time)| {
                let class = match shape.m {
                    0..=16 => "m <= 16",
                    17..=128 => "m 17 to 128",
                    _ => "m > 128",
                };
                let label = format!("{} {}x{}x{}", shape.dtype, shape.m, shape.n, shape.k);
                Row::new(
                    label,
                    class,
                    measured,
                    hardware.gpu.gemm.estimate(&shape).time,
                    None,
                )
            };
            Ok(rows.into_iter().map(row).collect())
        }
        TableKind::MoeFfn => {
            let rows = read_moe_ffn_rows(table).map_err(|error| bad(error.to_string()))?;
            let row = |(shape, measured): (moeplan_sim::cost::moe_ffn::MoeFfnShape, Time)| {
                let class = match shape.tokens {
                    0..=128 => "up to 128 tokens",
                    129..=2_048 => "129 to 2,048 tokens",
                    _ => "above 2,048 tokens",
                };
                let label = format!(
                    "{} tokens, {} experts, top-{}, {}x{}",
                    shape.tokens, shape.experts, shape.top_k, shape.hidden, shape.inter
                );
                Row::new(
                    label,
                    class,
                    measured,
                    hardware.gpu.moe_ffn.estimate(&shape).time,
                    None,
                )
            };
            Ok(rows.into_iter().map(row).collect())
        }
    }
}

fn compare_nccl(
    measurements: Vec<NcclMeasurement>,
    hardware: &Hardware,
) -> Result<Vec<Row>, Error> {
    let mut models: BTreeMap<Option<String>, Nccl> = BTreeMap::new();
    let mut rows = Vec::new();
    for measurement in measurements {
        let library =
            measurement
                .library
                .as_ref()
                .map(|version| match version.starts_with("nccl-") {
                    true => version.clone(),
                    false => format!("nccl-{version}"),
                });
        let known = library.filter(|name| hardware.collectives.library.contains_key(name));
        if !models.contains_key(&known) {
            let model = Nccl::new(hardware.collectives.clone(), known.as_deref())?;
            models.insert(known.clone(), model);
        }
        let model = &models[&known];
        let (gpus, node) = (measurement.gpus, measurement.gpus_per_node);
        let estimate = model.estimate(measurement.kind, measurement.bytes, gpus, node);
        let size = if measurement.bytes < 1 << 20 {
            "below 1 MiB"
        } else {
            "from 1 MiB"
        };
        let place = if gpus > node {
            format!("{}x{node} GPUs", gpus / node)
        } else {
            "one node".to_string()
        };
        let bound = bound(measurement.kind, measurement.bytes, gpus, node, model);
        let label = format!(
            "{} {gpus} GPUs {} bytes",
            measurement.kind, measurement.bytes
        );
        rows.push(Row::new(
            label,
            &format!("{place}, {size}"),
            measurement.time,
            estimate.time,
            Some(bound),
        ));
    }
    Ok(rows)
}

/// The time the busiest port needs for its bytes at full rate: NVLink ports in a node; between nodes
/// the NICs, which carry what leaves the node.
pub fn bound(
    kind: CollectiveKind,
    bytes: u64,
    gpus: usize,
    gpus_per_node: usize,
    model: &Nccl,
) -> Time {
    let rate = |gb_per_s: f64| Bandwidth::try_from(gb_per_s).ok();
    let params = model.params();
    let (Some(port), Some(nic)) = (
        rate(params.intra.port_gb_per_s),
        rate(params.nic.wire_gb_per_s),
    ) else {
        return Time::ZERO;
    };
    if gpus <= gpus_per_node {
        return port_bound(kind, bytes, gpus, port);
    }
    let nodes = gpus / gpus_per_node;
    match kind {
        CollectiveKind::AllToAll => {
            let remote = (bytes as f64 * (gpus - gpus_per_node) as f64 / gpus as f64) as u64;
            let local = (bytes as f64 * (gpus_per_node - 1) as f64 / gpus as f64) as u64;
            nic.time_for(remote).max(port.time_for(local))
        }
        CollectiveKind::AllGather | CollectiveKind::ReduceScatter | CollectiveKind::AllReduce => {
            port_bound(kind, bytes / gpus_per_node as u64, nodes, nic)
        }
    }
}

impl Row {
    fn new(
        label: String,
        class: &str,
        measured: Time,
        simulated: Time,
        bound: Option<Time>,
    ) -> Row {
        let ns = |time: Time| time.as_ps() as f64 / 1e3;
        Row {
            label,
            class: class.to_string(),
            measured_ns: ns(measured),
            simulated_ns: ns(simulated),
            relative_error: ns(simulated) / ns(measured) - 1.0,
            port_bound_ns: bound.map(ns),
        }
    }
}

/// Accuracy by class, then over all rows.
pub fn summarise(rows: &[Row]) -> Vec<Accuracy> {
    let mut classes: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in rows {
        classes
            .entry(&row.class)
            .or_default()
            .push(row.relative_error);
    }
    let all: Vec<f64> = rows.iter().map(|row| row.relative_error).collect();
    let mut summary: Vec<Accuracy> = classes
        .into_iter()
        .map(|(class, errors)| Accuracy::of(class, &errors))
        .collect();
    if summary.len() > 1 {
        summary.push(Accuracy::of("all", &all));
    }
    summary
}

impl Accuracy {
    fn of(class: &str, errors: &[f64]) -> Accuracy {
        let mut absolute: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
        absolute.sort_by(f64::total_cmp);
        let count = errors.len().max(1) as f64;
        let at =
            ((absolute.len() as f64 * 0.95).ceil() as usize).clamp(1, absolute.len().max(1)) - 1;
        Accuracy {
            class: class.to_string(),
            rows: errors.len(),
            mape: absolute.iter().sum::<f64>() / count,
            p95: absolute.get(at).copied().unwrap_or(0.0),
            bias: errors.iter().sum::<f64>() / count,
        }
    }
}
