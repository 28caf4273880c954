//! A user's byte matrix: who sends how much to whom.

use super::collective::MAX_BYTES;
use crate::error::{Error, Place};
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

/// Most GPUs of a byte matrix.
const MAX_MATRIX: usize = 4_096;

/// Bytes by `[source * gpus + destination]`, in rows of `row_bytes`.
pub(super) struct Matrix {
    /// By source, then destination.
    pub(super) rows: Arc<Vec<u32>>,
    /// Bytes of a row.
    pub(super) row_bytes: u64,
    /// GPUs on each side.
    pub(super) gpus: usize,
}

impl Matrix {
    fn bytes(&self, source: usize, destination: usize) -> u64 {
        u64::from(self.rows[source * self.gpus + destination]).saturating_mul(self.row_bytes)
    }

    /// Bytes of the fullest send buffer.
    pub(super) fn most_sent(&self) -> u64 {
        let sent = |source| {
            (0..self.gpus)
                .map(|to| self.bytes(source, to))
                .fold(0, u64::saturating_add)
        };
        (0..self.gpus).map(sent).max().unwrap_or(0)
    }

    /// The time of the busiest port at its full rate. With `spread` the NICs of a node count as one.
    pub(super) fn port_seconds(&self, node: usize, nvlink: f64, nic: f64, spread: bool) -> f64 {
        let group = if spread { node } else { 1 };
        let groups = self.gpus / group;
        // Out and in, through NVLink ports of each GPU and NICs of each group.
        let mut local = vec![[0.0f64; 2]; self.gpus];
        let mut remote = vec![[0.0f64; 2]; groups];
        for source in 0..self.gpus {
            for destination in (0..self.gpus).filter(|&to| to != source) {
                let bytes = self.bytes(source, destination) as f64;
                if source / node == destination / node {
                    local[source][0] += bytes;
                    local[destination][1] += bytes;
                } else {
                    remote[source / group][0] += bytes;
                    remote[destination / group][1] += bytes;
                }
            }
        }
        let most = |ports: &[[f64; 2]]| ports.iter().flatten().copied().fold(0.0, f64::max);
        // Hierarchical algorithms may also detour local bytes, so only NICs bind them.
        let within = if spread { 0.0 } else { most(&local) / nvlink };
        within.max(most(&remote) / group as f64 / nic)
    }
}

/// A square of bytes by source (row) and destination (column), without a header.
pub(super) fn read(path: &Path) -> Result<Matrix, Error> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|source| Error::Read {
        path: name.clone(),
        source,
    })?;
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(BufReader::new(file));
    let wrong = |line: u64, message: String| {
        let place = Place {
            file: Some(name.clone()),
            line: usize::try_from(line).ok(),
            field: None,
        };
        Error::input(place, message)
    };
    let (mut cells, mut columns) = (Vec::new(), 0);
    for record in reader.records() {
        let record = record.map_err(|error| {
            let line = error.position().map_or(0, csv::Position::line);
            wrong(line, format!("expected rows of one length, found: {error}"))
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        columns = record.len();
        if columns > MAX_MATRIX || cells.len() >= MAX_MATRIX * MAX_MATRIX {
            return Err(wrong(
                line,
                format!("expected at most {MAX_MATRIX} GPUs, found more"),
            ));
        }
        for cell in &record {
            let bytes: u64 = cell
                .parse()
                .ok()
                .filter(|bytes| *bytes <= MAX_BYTES)
                .ok_or_else(|| {
                    wrong(
                        line,
                        format!("expected bytes from 0 to {MAX_BYTES}, found `{cell}`"),
                    )
                })?;
            cells.push(bytes);
        }
    }
    if columns < 2 || cells.len() != columns * columns {
        let rows = cells.len().checked_div(columns).unwrap_or(0);
        let message =
            format!("expected a square of at least 2 GPUs, found {rows} rows of {columns}");
        return Err(Error::input(Place::file(name), message));
    }
    let largest = cells.iter().copied().max().unwrap_or(0);
    if largest == 0 {
        return Err(Error::input(
            Place::file(name),
            "expected bytes to send, found only zeros",
        ));
    }
    // Counts have 32 bits; larger messages are rounded up to rows of several bytes.
    let row_bytes = largest.div_ceil(u64::from(u32::MAX));
    let rows = cells
        .into_iter()
        .map(|bytes| u32::try_from(bytes.div_ceil(row_bytes)).unwrap_or(u32::MAX))
        .collect();
    Ok(Matrix {
        rows: Arc::new(rows),
        row_bytes,
        gpus: columns,
    })
}
