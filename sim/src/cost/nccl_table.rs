//! A user's own measurements of NCCL, and corrections of the model towards them.
//!
//! Two column layouts are read, told apart by the header:
//! - one node: `op_name,nccl_dtype,num_gpus,message_elements,latency_ms`, where `message_elements`
//!   counts elements of `nccl_dtype`;
//! - several nodes: `op_name,nccl_version,num_nodes,gpus_per_node,message_bytes,metric,value`, where
//!   `metric` is `latency_us` or `busbw_gbps` (nccl-tests conventions).

use crate::cost::nccl::{CollectiveKind, Nccl};
use crate::cost::provenance::{Estimate, Provenance};
use crate::units::Time;
use std::io::Read;
use std::str::FromStr;
use thiserror::Error;

/// The header of the one-node layout.
pub const ONE_NODE_COLUMNS: [&str; 5] = [
    "op_name",
    "nccl_dtype",
    "num_gpus",
    "message_elements",
    "latency_ms",
];

/// The header of the several-nodes layout.
pub const MULTI_NODE_COLUMNS: [&str; 7] = [
    "op_name",
    "nccl_version",
    "num_nodes",
    "gpus_per_node",
    "message_bytes",
    "metric",
    "value",
];

/// One measured collective.
#[derive(Debug, Clone, PartialEq)]
pub struct NcclMeasurement {
    /// The collective.
    pub kind: CollectiveKind,
    /// GPUs that took part.
    pub gpus: usize,
    /// GPUs that took part on each node; equals `gpus` on one node.
    pub gpus_per_node: usize,
    /// Size in bytes, nccl-tests convention.
    pub bytes: u64,
    /// Measured time.
    pub time: Time,
    /// NCCL's version where the table states it: `2.17.1`.
    pub library: Option<String>,
    /// Line of the table, the header being line 1.
    pub line: u64,
}

/// What is wrong with a table.
#[derive(Debug, Error)]
pub enum NcclTableError {
    /// The bytes are no CSV (or no UTF-8), or reading failed.
    #[error("cannot read the table: {0}")]
    Csv(#[from] csv::Error),
    /// The header is of neither layout.
    #[error("line 1: expected the columns `{}` or `{}`, found `{found}`",
        ONE_NODE_COLUMNS.join(","), MULTI_NODE_COLUMNS.join(","))]
    Header {
        /// The header as read.
        found: String,
    },
    /// A field does not hold what its column needs.
    #[error("line {line}, column `{column}`: expected {expected}, found `{found}`")]
    Field {
        /// Line of the table, the header being line 1.
        line: u64,
        /// Name of the column.
        column: &'static str,
        /// What the column needs.
        expected: String,
        /// The field as read.
        found: String,
    },
}

/// One record and where it stands.
struct Row<'a> {
    record: &'a csv::StringRecord,
    columns: &'static [&'static str],
    line: u64,
}

impl Row<'_> {
    fn text(&self, column: usize) -> &str {
        self.record.get(column).unwrap_or_default()
    }

    fn error(&self, column: usize, expected: impl Into<String>) -> NcclTableError {
        NcclTableError::Field {
            line: self.line,
            column: self.columns.get(column).copied().unwrap_or("?"),
            expected: expected.into(),
            found: self.text(column).to_owned(),
        }
    }

    fn kind(&self, column: usize) -> Result<CollectiveKind, NcclTableError> {
        CollectiveKind::from_str(self.text(column)).map_err(|_| {
            self.error(
                column,
                "alltoall (or all_to_all), all_gather, reduce_scatter or all_reduce",
            )
        })
    }

    /// A whole number from 1 to `most`.
    fn count(&self, column: usize, most: u64) -> Result<u64, NcclTableError> {
        self.text(column)
            .parse()
            .ok()
            .filter(|n| (1..=most).contains(n))
            .ok_or_else(|| self.error(column, format!("a whole number from 1 to {most}")))
    }

    fn gpus(&self, column: usize) -> Result<usize, NcclTableError> {
        let n = self.count(column, 1 << 20)?;
        usize::try_from(n).map_err(|_| self.error(column, "a number of GPUs"))
    }

    fn positive(&self, column: usize) -> Result<f64, NcclTableError> {
        self.text(column)
            .parse()
            .ok()
            .filter(|v: &f64| v.is_finite() && *v > 0.0)
            .ok_or_else(|| self.error(column, "a finite number above 0"))
    }

    fn one_node(&self) -> Result<NcclMeasurement, NcclTableError> {
        let kind = self.kind(0)?;
        let element_bytes = match self.text(1) {
            "int8" | "uint8" => 1,
            "half" | "bfloat16" => 2,
            "int32" | "float" => 4,
            _ => {
                return Err(self.error(1, "int8, uint8, half, bfloat16, int32 or float"));
            }
        };
        let gpus = self.gpus(2)?;
        if gpus < 2 {
            return Err(self.error(2, "2 GPUs or more"));
        }
        Ok(NcclMeasurement {
            kind,
            gpus,
            gpus_per_node: gpus,
            bytes: self.count(3, 1 << 44)? * element_bytes,
            time: Time::from_secs_f64(self.positive(4)? * 1e-3),
            library: None,
            line: self.line,
        })
    }

    fn multi_node(&self) -> Result<NcclMeasurement, NcclTableError> {
        let kind = self.kind(0)?;
        let (nodes, gpus_per_node) = (self.gpus(2)?, self.gpus(3)?);
        let gpus = nodes.saturating_mul(gpus_per_node);
        if gpus < 2 {
            return Err(self.error(3, "2 GPUs or more in all"));
        }
        let bytes = self.count(4, 1 << 44)?;
        let value = self.positive(6)?;
        let time = match self.text(5) {
            "latency_us" => Time::from_secs_f64(value * 1e-6),
            "busbw_gbps" => {
                let carried = bytes as f64 * kind.steps(gpus) as f64 / gpus as f64;
                Time::from_secs_f64(carried / (value * 1e9))
            }
            _ => return Err(self.error(5, "latency_us or busbw_gbps")),
        };
        let version = self.text(1);
        Ok(NcclMeasurement {
            kind,
            gpus,
            gpus_per_node,
            bytes,
            time,
            library: (!version.is_empty()).then(|| version.to_owned()),
            line: self.line,
        })
    }
}

/// Reads a table of measurements in either layout.
///
/// # Errors
/// The first thing that is wrong, with its line and column.
pub fn parse_nccl_table(input: impl Read) -> Result<Vec<NcclMeasurement>, NcclTableError> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(input);
    let header = reader.headers()?.clone();
    let columns: &'static [&'static str] = if header == ONE_NODE_COLUMNS[..] {
        &ONE_NODE_COLUMNS
    } else if header == MULTI_NODE_COLUMNS[..] {
        &MULTI_NODE_COLUMNS
    } else {
        return Err(NcclTableError::Header {
            found: header.iter().collect::<Vec<_>>().join(","),
        });
    };
    let mut rows = Vec::new();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record)? {
        let row = Row {
            record: &record,
            columns,
            line: record.position().map_or(0, csv::Position::line),
        };
        if record.len() != columns.len() {
            return Err(NcclTableError::Field {
                line: row.line,
                column: columns.get(record.len()).copied().unwrap_or("(beyond)"),
                expected: format!("{} fields", columns.len()),
                found: format!("{} fields", record.len()),
            });
        }
        rows.push(if columns.len() == ONE_NODE_COLUMNS.len() {
            row.one_node()?
        } else {
            row.multi_node()?
        });
    }
    Ok(rows)
}

/// Measured over modelled time by size, for one collective on one shape of cluster.
#[derive(Debug, Clone, PartialEq)]
struct Curve {
    kind: CollectiveKind,
    gpus: usize,
    gpus_per_node: usize,
    /// (bytes, mean measured time over modelled time), ascending in bytes.
    ratios: Vec<(u64, f64)>,
}

/// A model corrected by measurements: where a curve was measured, its shape between the points is
/// the model's and its level the measurement's.
#[derive(Debug, Clone, PartialEq)]
pub struct CorrectedNccl {
    model: Nccl,
    curves: Vec<Curve>,
}

impl CorrectedNccl {
    /// The model corrected by `rows`. Rows of one point (two element types, say) are averaged. Rows
    /// that state a library version other than the model's are left out.
    pub fn new(model: Nccl, rows: &[NcclMeasurement]) -> CorrectedNccl {
        let ours = model.library().trim_start_matches("nccl-").to_owned();
        let mut sorted: Vec<&NcclMeasurement> = rows
            .iter()
            .filter(|row| row.library.as_ref().is_none_or(|version| *version == ours))
            .collect();
        sorted.sort_by_key(|row| (row.kind, row.gpus, row.gpus_per_node, row.bytes));
        let mut curves: Vec<Curve> = Vec::new();
        for point in sorted.chunk_by(|a, b| {
            (a.kind, a.gpus, a.gpus_per_node, a.bytes) == (b.kind, b.gpus, b.gpus_per_node, b.bytes)
        }) {
            let Some(first) = point.first() else { continue };
            let modelled = model
                .estimate(first.kind, first.bytes, first.gpus, first.gpus_per_node)
                .time;
            let measured: f64 = point.iter().map(|row| row.time.as_secs_f64()).sum();
            let ratio = measured / point.len() as f64 / modelled.as_secs_f64();
            let key = (first.kind, first.gpus, first.gpus_per_node);
            match curves.last_mut() {
                Some(curve) if (curve.kind, curve.gpus, curve.gpus_per_node) == key => {
                    curve.ratios.push((first.bytes, ratio));
                }
                _ => curves.push(Curve {
                    kind: first.kind,
                    gpus: first.gpus,
                    gpus_per_node: first.gpus_per_node,
                    ratios: vec![(first.bytes, ratio)],
                }),
            }
        }
        CorrectedNccl { model, curves }
    }

    /// The model underneath.
    pub const fn model(&self) -> &Nccl {
        &self.model
    }

    /// [`Nccl::estimate`] times the measured correction, linear in log(bytes) between measured
    /// sizes: `Measured` at a measured size, `Interpolated` between two, `Extrapolated` beyond the
    /// ends (with the nearest correction). The model's own estimate where nothing was measured.
    pub fn estimate(
        &self,
        kind: CollectiveKind,
        bytes: u64,
        gpus: usize,
        gpus_per_node: usize,
    ) -> Estimate {
        let modelled = self.model.estimate(kind, bytes, gpus, gpus_per_node);
        let local = gpus_per_node.min(gpus);
        let curve = self
            .curves
            .iter()
            .find(|c| (c.kind, c.gpus, c.gpus_per_node) == (kind, gpus, local));
        let Some(curve) = curve.filter(|_| bytes > 0) else {
            return modelled;
        };
        let after = curve.ratios.partition_point(|&(size, _)| size < bytes);
        let below = after.checked_sub(1).and_then(|i| curve.ratios.get(i));
        let (ratio, provenance) = match (below, curve.ratios.get(after)) {
            (_, Some(&(size, ratio))) if size == bytes => (ratio, Provenance::Measured),
            (Some(&(low, a)), Some(&(high, b))) => {
                let log = |size: u64| (size as f64).ln();
                let share = (log(bytes) - log(low)) / (log(high) - log(low));
                (a + (b - a) * share, Provenance::Interpolated)
            }
            (Some(&(_, ratio)), None) | (None, Some(&(_, ratio))) => {
                (ratio, Provenance::Extrapolated)
            }
            (None, None) => return modelled,
        };
        Estimate::new(modelled.time.scale(ratio), provenance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::nccl::NcclParams;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct File {
        collectives: NcclParams,
    }

    fn model() -> Nccl {
        let text = include_str!("../hardware/fitted/a100_nccl.toml");
        let file: File = toml::from_str(text).unwrap();
        Nccl::new(file.collectives, None).unwrap()
    }

    fn parse(text: &str) -> Result<Vec<NcclMeasurement>, NcclTableError> {
        parse_nccl_table(text.as_bytes())
    }

    fn one_node(rows: &str) -> Result<Vec<NcclMeasurement>, NcclTableError> {
        parse(&format!("{}\n{rows}", ONE_NODE_COLUMNS.join(",")))
    }

    fn multi_node(rows: &str) -> Result<Vec<NcclMeasurement>, NcclTableError> {
        parse(&format!("{}\n{rows}", MULTI_NODE_COLUMNS.join(",")))
    }

    #[test]
    fn elements_become_bytes_and_bus_bandwidth_becomes_time() {
        let row = one_node("alltoall,half,8,1024,0.5\n").unwrap().remove(0);
        assert_eq!((row.kind, row.bytes), (CollectiveKind::AllToAll, 2048));
        assert_eq!((row.gpus, row.gpus_per_node, row.line), (8, 8, 2));
        assert_eq!(row.time, Time::from_us(500));
        // 16 GB * 2 * 15/16 at 30 GB/s: one second.
        let row = multi_node("all_reduce,2.0,2,8,16000000000,busbw_gbps,30\n")
            .unwrap()
            .remove(0);
        assert_eq!((row.gpus, row.gpus_per_node), (16, 8));
        assert_eq!(row.time, Time::from_us(1_000_000));
        assert_eq!(row.library.as_deref(), Some("2.0"));
    }

    #[test]
    fn an_error_names_line_column_and_what_was_expected() {
        let check = |result: Result<Vec<NcclMeasurement>, NcclTableError>, expected: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let good = "all_gather,half,8,1024,0.5\n";
        let at = |bad: &str| one_node(&format!("{good}{bad}\n"));
        check(at("gather,half,8,1,1"), "line 3, column `op_name`");
        check(
            at("all_gather,fp3,8,1,1"),
            "column `nccl_dtype`: expected int8",
        );
        check(
            at("all_gather,half,1,1,1"),
            "expected 2 GPUs or more, found `1`",
        );
        check(
            at("all_gather,half,8,-4,1"),
            "`message_elements`: expected a whole",
        );
        check(at("all_gather,half,8,99999999999999999,1"), "from 1 to");
        for bad in ["nan", "inf", "0", "-1", "", "1e999"] {
            check(
                at(&format!("all_gather,half,8,1,{bad}")),
                "column `latency_ms`: expected a finite number above 0",
            );
        }
        check(
            at("all_gather,half,8"),
            "expected 5 fields, found `3 fields`",
        );
        check(at("all_gather,half,8,1,1,1"), "column `(beyond)`");
        check(
            multi_node("all_gather,2.0,1,8,1024,algbw,1\n"),
            "line 2, column `metric`: expected latency_us or busbw_gbps, found `algbw`",
        );
        check(parse("a,b\n1,2\n"), "line 1: expected the columns `op_name");
        check(parse(""), "line 1: expected the columns");
        assert!(parse_nccl_table(&b"op_name,\xff\xfe\n"[..]).is_err());
    }

    #[test]
    fn a_correction_is_exact_at_its_points_and_says_so_elsewhere() {
        let rows = one_node(
            "all_gather,half,8,524288,0.030\n\
             all_gather,int8,8,1048576,0.032\n\
             all_gather,int8,8,4194304,0.060\n",
        )
        .unwrap();
        let corrected = CorrectedNccl::new(model(), &rows);
        let at =
            |bytes, gpus, local| corrected.estimate(CollectiveKind::AllGather, bytes, gpus, local);
        let exact = at(1 << 20, 8, 8);
        // Half and int8 rows of one size are one point: their mean.
        assert_eq!(exact.provenance, Provenance::Measured);
        assert!((exact.time.as_secs_f64() * 1e6 - 31.0).abs() < 1e-3);
        assert_eq!(at(2 << 20, 8, 8).provenance, Provenance::Interpolated);
        assert_eq!(at(1 << 19, 8, 8).provenance, Provenance::Extrapolated);
        assert_eq!(at(1 << 30, 8, 8).provenance, Provenance::Extrapolated);
        // Halfway in log(bytes) the correction is the mean of its neighbours'.
        let ratio = |bytes| {
            let plain = corrected
                .model()
                .estimate(CollectiveKind::AllGather, bytes, 8, 8);
            at(bytes, 8, 8).time.as_secs_f64() / plain.time.as_secs_f64()
        };
        let mean = (ratio(1 << 20) + ratio(4 << 20)) / 2.0;
        assert!((ratio(2 << 20) - mean).abs() < 1e-6);
        // Unmeasured shapes and other releases keep the model's answer.
        let plain = corrected
            .model()
            .estimate(CollectiveKind::AllGather, 1 << 20, 4, 8);
        assert_eq!(at(1 << 20, 4, 8), plain);
        let other = multi_node("all_gather,2.17.1,1,8,1048576,latency_us,99\n").unwrap();
        let untouched = CorrectedNccl::new(model(), &other);
        let estimate = untouched.estimate(CollectiveKind::AllGather, 1 << 20, 8, 8);
        assert_eq!(estimate.provenance, Provenance::Fitted);
    }
}
