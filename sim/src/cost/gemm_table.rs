//! GEMM times from a user's own measurements, with the compact model filling the gaps.
//!
//! A measured shape answers for itself. Between them the logarithm of measured / model is
//! interpolated, not the time: the model carries tiles, waves and bandwidths, the table only
//! corrects it. The interpolation is kriging (a Gaussian process) over the nearest rows, in the
//! coordinates log m, log n, log k and half of log mn, since shapes with equal numbers of tiles
//! err alike. Far from every row the correction fades and the model alone is left.
//!
//! Half of the A100 bf16 table predicts the other half to 4 % (inverse-distance weights: 4.4 %).

use crate::cost::gemm::{GemmParams, GemmShape};
use crate::cost::provenance::{Estimate, Provenance};
use crate::spec::DType;
use crate::units::Time;
use std::collections::BTreeMap;
use std::io::Read;

/// Rows that take part in one interpolation.
const NEIGHBOURS: usize = 16;
/// Distance over which errors of the model stay alike, in factors of e summed over coordinates.
const REACH: f64 = 1.4;
/// Share of the model's squared error that is scatter of single rows.
const SCATTER: f64 = 0.03;

/// What is wrong with a table of measurements.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file lacks a column.
    #[error("line 1: expected a column `{column}`, found {found}")]
    Column {
        /// The missing column.
        column: &'static str,
        /// The columns there are.
        found: String,
    },
    /// A field does not hold what its column promises.
    #[error("line {line}, column `{column}`: expected {expected}, found `{found}`")]
    Field {
        /// Line of the file, from 1.
        line: u64,
        /// Name of the column.
        column: &'static str,
        /// What the column holds.
        expected: &'static str,
        /// What is there instead.
        found: String,
    },
    /// The text is not a CSV table.
    #[error("expected a CSV table: {0}")]
    Csv(#[from] csv::Error),
    /// There is a header and nothing else.
    #[error("line 2: expected at least one measurement, found the end of the table")]
    Empty,
}

/// One measured product and how far the model is off there.
#[derive(Debug, Clone)]
struct Sample {
    at: [f64; 4],
    log_ratio: f64,
}

/// The measurements of one number type.
#[derive(Debug, Clone, Default)]
struct Samples {
    exact: BTreeMap<(u64, u64, u64), Time>,
    /// In ascending order of log m, so that a search can stop early.
    sorted: Vec<Sample>,
    /// Smallest and largest m, n and k.
    range: [(u64, u64); 3],
}

/// Reads a CSV with the columns `gemm_dtype`, `m`, `n`, `k` and `latency_ms`, in any order; other
/// columns are ignored.
///
/// # Errors
/// A missing column, a field that is no number of its kind, an empty table.
pub fn read_gemm_rows(table: impl Read) -> Result<Vec<(GemmShape, Time)>, TableError> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(table);
    let header = reader.headers()?.clone();
    let column = |name: &'static str| {
        header
            .iter()
            .position(|h| h == name)
            .ok_or_else(|| TableError::Column {
                column: name,
                found: header.iter().collect::<Vec<_>>().join(", "),
            })
    };
    let dtype_at = column("gemm_dtype")?;
    let extents_at = [
        ("m", column("m")?),
        ("n", column("n")?),
        ("k", column("k")?),
    ];
    let latency_at = column("latency_ms")?;

    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        let wrong = |column, expected, found: &str| TableError::Field {
            line,
            column,
            expected,
            found: found.to_owned(),
        };
        let dtype = parse_dtype(&record[dtype_at]).ok_or_else(|| {
            let expected = "bfloat16, float16, tf32 or float32";
            wrong("gemm_dtype", expected, &record[dtype_at])
        })?;
        let mut extents = [0; 3];
        for (extent, (name, at)) in extents.iter_mut().zip(extents_at) {
            *extent = record[at]
                .parse()
                .ok()
                .filter(|x| *x > 0)
                .ok_or_else(|| wrong(name, "a whole number above 0", &record[at]))?;
        }
        // Below a picosecond or above a day nothing was measured.
        let latency = record[latency_at]
            .parse::<f64>()
            .ok()
            .filter(|ms| (1e-9..86_400_000.0).contains(ms))
            .ok_or_else(|| {
                let expected = "milliseconds above 0 and below a day";
                wrong("latency_ms", expected, &record[latency_at])
            })?;
        let [m, n, k] = extents;
        let shape = GemmShape::dense(m, n, k, dtype);
        rows.push((shape, Time::from_secs_f64(latency * 1e-3)));
    }
    if rows.is_empty() {
        return Err(TableError::Empty);
    }
    Ok(rows)
}

/// Measured GEMM times over a [`GemmParams`] model.
#[derive(Debug, Clone)]
pub struct GemmTable {
    model: GemmParams,
    samples: BTreeMap<DType, Samples>,
}

impl GemmTable {
    /// Reads a table as [`read_gemm_rows`] does. Rows with one shape are averaged.
    pub fn read(table: impl Read, model: &GemmParams) -> Result<GemmTable, TableError> {
        Ok(GemmTable::from_rows(read_gemm_rows(table)?, model))
    }

    /// A table of measured products. Only `m`, `n`, `k` and the number type count; products with
    /// an extent or a time of zero say nothing and are dropped.
    pub fn from_rows(
        rows: impl IntoIterator<Item = (GemmShape, Time)>,
        model: &GemmParams,
    ) -> GemmTable {
        let mut sums: BTreeMap<(DType, u64, u64, u64), (f64, f64)> = BTreeMap::new();
        for (shape, time) in rows {
            if shape.m > 0 && shape.n > 0 && shape.k > 0 && time > Time::ZERO {
                let key = (shape.dtype, shape.m, shape.n, shape.k);
                let sum = sums.entry(key).or_default();
                *sum = (sum.0 + time.as_secs_f64(), sum.1 + 1.0);
            }
        }
        let mut samples: BTreeMap<DType, Samples> = BTreeMap::new();
        for ((dtype, m, n, k), (total, count)) in sums {
            let time = Time::from_secs_f64(total / count);
            let shape = GemmShape::dense(m, n, k, dtype);
            let predicted = model.estimate(&shape).time.max(Time::from_ps(1));
            let of_dtype = samples.entry(dtype).or_default();
            if of_dtype.exact.is_empty() {
                of_dtype.range = [(m, m), (n, n), (k, k)];
            }
            for (range, x) in of_dtype.range.iter_mut().zip([m, n, k]) {
                *range = (range.0.min(x), range.1.max(x));
            }
            of_dtype.exact.insert((m, n, k), time);
            // The map yields ascending m: the samples come out sorted.
            of_dtype.sorted.push(Sample {
                at: coordinates(&shape),
                log_ratio: (time.as_secs_f64() / predicted.as_secs_f64()).ln(),
            });
        }
        GemmTable {
            model: model.clone(),
            samples,
        }
    }

    /// How long `shape` takes.
    ///
    /// `Measured` for a shape of the table, `Interpolated` within its smallest to largest m, n and
    /// k, `Extrapolated` outside and for batches, which tables do not hold. fp16 and bf16 stand
    /// in for each other. With no row of the number type: the model's own estimate.
    pub fn estimate(&self, shape: &GemmShape) -> Estimate {
        let modelled = self.model.estimate(shape);
        let Some(samples) = self.samples_for(shape.dtype) else {
            return modelled;
        };
        if shape.batch != 1 || modelled.time == Time::ZERO {
            return modelled;
        }
        if let Some(time) = samples.exact.get(&(shape.m, shape.n, shape.k)) {
            return Estimate::new(*time, Provenance::Measured);
        }
        let inside = samples
            .range
            .iter()
            .zip([shape.m, shape.n, shape.k])
            .all(|((low, high), x)| (*low..=*high).contains(&x));
        let provenance = if inside {
            Provenance::Interpolated
        } else {
            Provenance::Extrapolated
        };
        let correction = samples.log_ratio(coordinates(shape)).exp();
        Estimate::new(modelled.time.scale(correction), provenance)
    }

    fn samples_for(&self, dtype: DType) -> Option<&Samples> {
        let sibling = match dtype {
            DType::Fp16 => DType::Bf16,
            DType::Bf16 => DType::Fp16,
            DType::Tf32 | DType::Fp32 => dtype,
        };
        self.samples
            .get(&dtype)
            .or_else(|| self.samples.get(&sibling))
    }
}

impl Samples {
    /// The interpolated logarithm of measured / model at `at`.
    fn log_ratio(&self, at: [f64; 4]) -> f64 {
        let near = self.nearest(at);
        let covariance = |distance: f64| (-distance / REACH).exp();
        let count = near.len();
        // Solve (K + scatter) x = ratios, then the estimate is k . x.
        let mut matrix = [[0.0; NEIGHBOURS + 1]; NEIGHBOURS];
        for (i, (_, row)) in near.iter().enumerate() {
            for (j, (_, other)) in near.iter().enumerate() {
                matrix[i][j] = covariance(distance(row.at, other.at));
            }
            matrix[i][i] += SCATTER;
            matrix[i][count] = row.log_ratio;
        }
        let solution = solve(&mut matrix, count);
        let estimate: f64 = near
            .iter()
            .zip(solution)
            .map(|((distance, _), x)| covariance(*distance) * x)
            .sum();
        // Weights may be negative; the correction never leaves what was measured around.
        let (low, high) = near.iter().fold((0f64, 0f64), |(low, high), (_, s)| {
            (low.min(s.log_ratio), high.max(s.log_ratio))
        });
        estimate.clamp(low, high)
    }

    /// The nearest rows with their distances, nearest first; the first in the table wins a tie.
    fn nearest(&self, at: [f64; 4]) -> Vec<(f64, &Sample)> {
        let mut near: Vec<(f64, &Sample)> = Vec::with_capacity(NEIGHBOURS + 1);
        let offer = |near: &mut Vec<(f64, &'_ Sample)>, distance: f64| {
            near.len() < NEIGHBOURS || near.last().is_some_and(|(worst, _)| distance < *worst)
        };
        let start = self.sorted.partition_point(|s| s.at[0] < at[0]);
        let (below, above) = self.sorted.split_at(start);
        let mut sides: [Box<dyn Iterator<Item = &Sample>>; 2] =
            [Box::new(below.iter().rev()), Box::new(above.iter())];
        for side in &mut sides {
            for sample in side {
                // Log m alone is a lower bound, and grows along each side.
                if !offer(&mut near, (sample.at[0] - at[0]).abs()) {
                    break;
                }
                let distance = distance(sample.at, at);
                if offer(&mut near, distance) {
                    let place = near.partition_point(|(d, _)| *d <= distance);
                    near.insert(place, (distance, sample));
                    near.truncate(NEIGHBOURS);
                }
            }
        }
        near
    }
}

/// log m, log n, log k, and half of log mn.
fn coordinates(shape: &GemmShape) -> [f64; 4] {
    let [m, n, k] = [shape.m, shape.n, shape.k].map(|x| (x as f64).ln());
    [m, n, k, 0.5 * (m + n)]
}

/// The sum of the coordinates' differences.
fn distance(a: [f64; 4], b: [f64; 4]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum()
}

/// Solves the `count` symmetric positive definite equations of `matrix`, right side in column
/// `count`. Such matrices need no pivoting.
fn solve(matrix: &mut [[f64; NEIGHBOURS + 1]; NEIGHBOURS], count: usize) -> [f64; NEIGHBOURS] {
    for pivot in 0..count {
        let upper = matrix[pivot];
        for row in &mut matrix[pivot + 1..count] {
            let factor = row[pivot] / upper[pivot];
            for (x, above) in row.iter_mut().zip(upper) {
                *x -= factor * above;
            }
        }
    }
    let mut solution = [0.0; NEIGHBOURS];
    for row in (0..count).rev() {
        let known: f64 = (row + 1..count)
            .map(|column| matrix[row][column] * solution[column])
            .sum();
        solution[row] = (matrix[row][count] - known) / matrix[row][row];
    }
    solution
}

fn parse_dtype(text: &str) -> Option<DType> {
    match text {
        "bfloat16" => Some(DType::Bf16),
        "float16" | "half" => Some(DType::Fp16),
        "float32" | "float" => Some(DType::Fp32),
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> GemmParams {
        crate::cost::gemm::tests::a100()
    }

    fn shape(m: u64) -> GemmShape {
        GemmShape::dense(m, 2048, 4096, DType::Bf16)
    }

    /// The model's time for `m`, times `factor`.
    fn scaled(m: u64, factor: f64) -> (GemmShape, Time) {
        (shape(m), model().estimate(&shape(m)).time.scale(factor))
    }

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = GemmTable::read(text.as_bytes(), &model()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_measured_shape_answers_for_itself() {
        let text = "kernel,gemm_dtype,m,n,k,latency_ms\nx,bfloat16,64,2048,4096,0.25\n";
        let table = GemmTable::read(text.as_bytes(), &model()).unwrap();
        let exact = Estimate::new(Time::from_us(250), Provenance::Measured);
        assert_eq!(table.estimate(&shape(64)), exact);
        // The other 16-bit type has no rows of its own.
        let half = GemmShape {
            dtype: DType::Fp16,
            ..shape(64)
        };
        assert_eq!(table.estimate(&half), exact);
    }

    #[test]
    fn a_constant_error_of_the_model_is_corrected_between_rows_and_fades_far_away() {
        let rows = [scaled(64, 2.0), scaled(128, 2.0), scaled(256, 2.0)];
        let table = GemmTable::from_rows(rows, &model());
        let ratio = |m| {
            let estimate = table.estimate(&shape(m));
            let modelled = model().estimate(&shape(m)).time;
            (
                estimate.time.as_secs_f64() / modelled.as_secs_f64(),
                estimate.provenance,
            )
        };
        let (between, provenance) = ratio(90);
        assert!((1.7..=2.0).contains(&between), "{between}");
        assert_eq!(provenance, Provenance::Interpolated);
        let (far, provenance) = ratio(1 << 40);
        assert!((1.0..1.01).contains(&far), "{far}");
        assert_eq!(provenance, Provenance::Extrapolated);
    }

    #[test]
    fn without_rows_of_the_type_the_model_answers() {
        let table = GemmTable::from_rows([scaled(64, 2.0)], &model());
        for other in [
            GemmShape {
                dtype: DType::Tf32,
                ..shape(64)
            },
            GemmShape::batched(2, 64, 2048, 4096, DType::Bf16),
        ] {
            assert_eq!(table.estimate(&other), model().estimate(&other));
        }
    }

    #[test]
    fn errors_name_the_line_the_column_and_what_was_expected() {
        let head = "gemm_dtype,m,n,k,latency_ms\n";
        check_error(
            "gemm_dtype,m,n,latency_ms\n",
            "line 1: expected a column `k`, found gemm_dtype, m, n, latency_ms",
        );
        check_error(
            &format!("{head}bf16,1,1,1,1\nbf16,1,0,1,1\n"),
            "line 3, column `n`: expected a whole number above 0, found `0`",
        );
        check_error(
            &format!("{head}fp8,1,1,1,1\n"),
            "line 2, column `gemm_dtype`: expected bfloat16, float16, tf32 or float32, found `fp8`",
        );
        check_error(
            &format!("{head}bf16,1,1,1,NaN\n"),
            "line 2, column `latency_ms`: expected milliseconds above 0 and below a day, found `NaN`",
        );
        check_error(
            head,
            "line 2: expected at least one measurement, found the end of the table",
        );
    }
}
