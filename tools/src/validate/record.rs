//! The recorded accuracy: what CI holds every change against.

use super::Outcome;
use super::tables::{Accuracy, TableKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Accuracy as recorded with this version: written by `moeplan validate --record`.
const RECORDED: &str = include_str!("recorded.csv");
/// Points of error by which a figure may drift before it counts as worse.
const TOLERANCE: f64 = 0.005;

/// One recorded error, a fraction: of a published case, or the mean over a class of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `fig14/16/all`, or `table/gemm/m > 128`.
    pub id: String,
    /// Rows behind it: 1 for a published case.
    pub rows: usize,
    /// Absolute relative error, or mean of them.
    pub error: f64,
    /// 95th percentile; the error itself for a published case.
    pub p95: f64,
    /// Mean signed error.
    pub bias: f64,
}

/// A figure that has become worse than recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worse {
    /// Which.
    pub id: String,
    /// Its recorded error.
    pub recorded: f64,
    /// Its error now.
    pub now: f64,
}

/// The id of a table's class.
pub fn table_id(kind: TableKind, class: &str) -> String {
    format!("table/{}/{class}", kind.name())
}

/// Entries of what was simulated.
pub fn entries(outcomes: &[Outcome], tables: &[(TableKind, Vec<Accuracy>)]) -> Vec<Entry> {
    let published = outcomes.iter().filter_map(|outcome| {
        let error = outcome.relative_error?;
        Some(Entry {
            id: outcome.id.clone(),
            rows: 1,
            error: error.abs(),
            p95: error.abs(),
            bias: error,
        })
    });
    let tables = tables.iter().flat_map(|(kind, classes)| {
        classes.iter().map(|class| Entry {
            id: table_id(*kind, &class.class),
            rows: class.rows,
            error: class.mape,
            p95: class.p95,
            bias: class.bias,
        })
    });
    published.chain(tables).collect()
}

/// The recorded entries.
///
/// # Errors
/// A record that was damaged by hand.
pub fn recorded() -> Result<Vec<Entry>, csv::Error> {
    csv::Reader::from_reader(RECORDED.as_bytes())
        .deserialize()
        .collect()
}

/// What is worse now than recorded. Entries that were not simulated this time are passed over.
pub fn worse(now: &[Entry], recorded: &[Entry]) -> Vec<Worse> {
    let recorded: BTreeMap<&str, f64> = recorded
        .iter()
        .map(|entry| (entry.id.as_str(), entry.error))
        .collect();
    now.iter()
        .filter_map(|entry| {
            let before = *recorded.get(entry.id.as_str())?;
            (entry.error > before + TOLERANCE).then(|| Worse {
                id: entry.id.clone(),
                recorded: before,
                now: entry.error,
            })
        })
        .collect()
}

impl Entry {
    /// To the digits of the record: what is shown is then the same whether it was measured now or then.
    #[must_use]
    pub fn rounded(&self) -> Entry {
        let round = |value: f64| (value * 1e5).round() / 1e5;
        Entry {
            error: round(self.error),
            p95: round(self.p95),
            bias: round(self.bias),
            ..self.clone()
        }
    }
}

/// The record as CSV.
///
/// # Errors
/// None in practice: it is written to memory.
pub fn to_csv(entries: &[Entry]) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for entry in entries {
        writer.serialize(entry)?;
    }
    let bytes = writer
        .into_inner()
        .map_err(|error| csv::Error::from(error.into_error()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, error: f64) -> Entry {
        Entry {
            id: id.into(),
            rows: 1,
            error,
            p95: error,
            bias: error,
        }
    }

    #[test]
    fn drift_is_forgiven_and_loss_is_not() {
        let recorded = [entry("a", 0.05), entry("b", 0.05)];
        let now = [entry("a", 0.054), entry("b", 0.056), entry("new", 0.9)];
        let ids: Vec<String> = worse(&now, &recorded).into_iter().map(|w| w.id).collect();
        assert_eq!(ids, ["b"]);
    }

    #[test]
    fn the_record_round_trips() {
        let entries = [entry("a", 0.05), entry("table/gemm/m > 128, b", 0.1)];
        let text = to_csv(&entries).unwrap();
        let read: Vec<Entry> = csv::Reader::from_reader(text.as_bytes())
            .deserialize()
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(read, entries);
    }
}
