//! A sweep as the dashboard sees it: a table of points, and how far it is.
//!
//! Reads what `moeplan sweep` writes: its CSV, or its journal while it runs (a line of JSON with
//! the number of scenarios, then `checksum, number, rows in JSON` a line).

use crate::error::{Error, Place};
use serde_json::Value;

/// A table of points.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Points {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// Cells by point.
    pub rows: Vec<Vec<String>>,
    /// Scenarios done.
    pub done: usize,
    /// Scenarios asked for, where known.
    pub of: Option<usize>,
}

impl Points {
    /// Whether `start`, the first bytes of a file, may be those of a sweep.
    pub fn is_sweep(start: &[u8]) -> bool {
        start.starts_with(b"scenario,") || start.starts_with(b"{\"moeplan\"")
    }

    /// The sweep in `text`, called `name` in errors.
    ///
    /// # Errors
    /// What is neither the CSV nor the journal of a sweep.
    pub fn parse(text: &str, name: &str) -> Result<Points, Error> {
        match text.starts_with('{') {
            true => journal(text),
            false => table(text),
        }
        .map_err(|(line, message)| {
            let place = Place {
                file: Some(name.to_owned()),
                line: Some(line),
                field: None,
            };
            Error::input(place, message)
        })
    }

    /// Whether nothing more comes.
    pub fn is_complete(&self) -> bool {
        self.of.is_none_or(|of| self.done >= of)
    }

    /// The place of column `name`.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column == name)
    }

    /// The number in a cell; none where there is none.
    pub fn number(&self, row: usize, column: usize) -> Option<f64> {
        let cell = self.rows.get(row)?.get(column)?;
        cell.parse().ok().filter(|value: &f64| value.is_finite())
    }

    /// Columns whose cells are numbers, or empty.
    pub fn numeric(&self) -> Vec<usize> {
        let is_number = |column: usize| {
            let mut any = false;
            for row in 0..self.rows.len() {
                match self.number(row, column) {
                    Some(_) => any = true,
                    None if self.rows[row]
                        .get(column)
                        .is_some_and(|cell| !cell.is_empty()) =>
                    {
                        return false;
                    }
                    None => {}
                }
            }
            any
        };
        (0..self.columns.len())
            .filter(|&column| is_number(column))
            .collect()
    }

    /// Columns of the settings that vary: those between the scenario's number and its status.
    pub fn varying(&self) -> std::ops::Range<usize> {
        1.min(self.columns.len())..self.column("status").unwrap_or(1).max(1)
    }

    /// Whether a point can be run: where the sweep says nothing, it can.
    pub fn is_feasible(&self, row: usize) -> bool {
        let status = self
            .column("status")
            .and_then(|column| self.rows.get(row)?.get(column));
        status.is_none_or(|status| status == "done")
    }

    /// Points than which no other is better in both columns, less being better, by the first.
    pub fn pareto(&self, x: usize, y: usize) -> Vec<usize> {
        let mut found: Vec<(f64, f64, usize)> = (0..self.rows.len())
            .filter(|&row| self.is_feasible(row))
            .filter_map(|row| Some((self.number(row, x)?, self.number(row, y)?, row)))
            .collect();
        found.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut best = f64::INFINITY;
        found.retain(|point| {
            let better = point.1 < best;
            best = best.min(point.1);
            better
        });
        found.into_iter().map(|(_, _, row)| row).collect()
    }
}

type Problem = (usize, String);

fn table(text: &str) -> Result<Points, Problem> {
    let mut reader = csv::ReaderBuilder::new()
        .flexible(false)
        .from_reader(text.as_bytes());
    let problem = |error: csv::Error| {
        let line = error.position().map_or(1, |place| place.line() as usize);
        (line, format!("expected the CSV of a sweep: {error}"))
    };
    let headers = reader.headers().map_err(problem)?;
    let columns: Vec<String> = headers.iter().map(str::to_owned).collect();
    if columns.first().is_none_or(|first| first != "scenario") {
        let message = "expected the CSV of a sweep, its first column `scenario`";
        return Err((1, message.into()));
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(problem)?;
        rows.push(record.iter().map(str::to_owned).collect());
    }
    Ok(Points {
        done: rows.len(),
        columns,
        rows,
        of: None,
    })
}

fn journal(text: &str) -> Result<Points, Problem> {
    let mut lines = text.split_inclusive('\n').enumerate();
    let header: Value = lines
        .next()
        .and_then(|(_, line)| serde_json::from_str(line).ok())
        .ok_or((1, "expected the journal of a sweep".to_owned()))?;
    let of = header.get("scenarios").and_then(Value::as_u64);
    let mut points = Points {
        of: Some(of.ok_or((1, "expected `scenarios`, how many there are".to_owned()))? as usize),
        ..Points::default()
    };
    for (index, line) in lines {
        // A torn last line is one that is still being written.
        if !line.ends_with('\n') {
            break;
        }
        let rows = line.splitn(3, '\t').nth(2);
        let rows: Vec<serde_json::Map<String, Value>> = rows
            .and_then(|rows| serde_json::from_str(rows).ok())
            .ok_or((index + 1, "expected checksum, number and rows".to_owned()))?;
        points.done += 1;
        for row in rows {
            if points.columns.is_empty() {
                points.columns = row.keys().cloned().collect();
            }
            let cells = points.columns.iter().map(|column| match row.get(column) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
            });
            let cells = cells.collect();
            points.rows.push(cells);
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "scenario,cluster.gpus,status,step_time_ns,cost\n\
                         0,16,done,50,1\n1,32,done,30,2\n2,64,done,35,4\n3,128,refused,,\n";

    #[test]
    fn a_table_has_points_and_a_front() {
        let points = Points::parse(TABLE, "sweep.csv").unwrap();
        assert_eq!((points.done, points.is_complete()), (4, true));
        assert_eq!(points.varying(), 1..2);
        assert_eq!(points.numeric(), [0, 1, 3, 4]);
        assert!(!points.is_feasible(3));
        // The third costs more than the second and is slower.
        assert_eq!(points.pareto(4, 3), [0, 1]);
    }

    #[test]
    fn a_journal_tells_how_far_it_is() {
        let text = "{\"moeplan\":\"0.1.0\",\"scenarios\":3}\n\
                    00000000\t0\t[{\"scenario\":0,\"status\":\"done\",\"step_time_ns\":5}]\n\
                    00000000\t1\t[{\"scenario\":1,\"sta";
        let points = Points::parse(text, "sweep.journal").unwrap();
        assert_eq!(
            (points.done, points.of, points.is_complete()),
            (1, Some(3), false)
        );
        assert_eq!(points.rows, [["0", "done", "5"]]);
    }

    #[test]
    fn what_is_no_sweep_is_refused_with_its_line() {
        for (text, says) in [
            ("a,b\n1,2\n", "x:1: expected the CSV of a sweep"),
            ("scenario,b\n1,2,3\n", "x:2: "),
            ("{}\n", "x:1: expected `scenarios`"),
            ("{\"scenarios\":1}\nnonsense\n", "x:2: expected checksum"),
        ] {
            let error = Points::parse(text, "x").unwrap_err().to_string();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
