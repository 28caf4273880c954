//! Constants from measurements.

use moeplan_sim::hardware::{Curve, GemmTerms};

/// The middle of `values`, which are not empty.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Coefficients of 0 or more with the least sum of squared relative errors of `rows`: (amounts,
/// measured). All choices of coefficients that are not zero are tried, so the least is found.
pub(super) fn non_negative<const N: usize>(rows: &[([f64; N], f64)]) -> [f64; N] {
    let mut best = ([0.0; N], f64::INFINITY);
    for set in 1_u32..1 << N {
        let chosen: Vec<usize> = (0..N).filter(|index| set & (1 << index) != 0).collect();
        let Some(values) = least_squares(rows, &chosen) else {
            continue;
        };
        if values.iter().any(|value| *value < 0.0) {
            continue;
        }
        let mut coefficients = [0.0; N];
        for (&index, value) in chosen.iter().zip(&values) {
            coefficients[index] = *value;
        }
        let error = rows.iter().map(|(amounts, measured)| {
            let ours: f64 = amounts.iter().zip(&coefficients).map(|(a, c)| a * c).sum();
            (ours / measured - 1.0).powi(2)
        });
        let error: f64 = error.sum();
        if error < best.1 {
            best = (coefficients, error);
        }
    }
    best.0
}

/// Solves the normal equations of relative errors for the `chosen` coefficients.
fn least_squares<const N: usize>(rows: &[([f64; N], f64)], chosen: &[usize]) -> Option<Vec<f64>> {
    let n = chosen.len();
    let mut system = vec![vec![0.0; n + 1]; n];
    // Amounts differ by ten orders of magnitude: each is scaled by its largest.
    let scale: Vec<f64> = chosen
        .iter()
        .map(|&index| {
            rows.iter()
                .map(|(a, t)| a[index] / t)
                .fold(f64::MIN_POSITIVE, f64::max)
        })
        .collect();
    for (amounts, measured) in rows {
        let row: Vec<f64> = chosen
            .iter()
            .zip(&scale)
            .map(|(&index, scale)| amounts[index] / measured / scale)
            .collect();
        for i in 0..n {
            for j in 0..n {
                system[i][j] += row[i] * row[j];
            }
            system[i][n] += row[i];
        }
    }
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| system[a][column].abs().total_cmp(&system[b][column].abs()))?;
        system.swap(column, pivot);
        if system[column][column].abs() < 1e-12 {
            return None;
        }
        let pivot = system[column].clone();
        for (index, row) in system.iter_mut().enumerate() {
            if index != column {
                let factor = row[column] / pivot[column];
                row.iter_mut()
                    .zip(&pivot)
                    .for_each(|(value, above)| *value -= factor * above);
            }
        }
    }
    Some(
        (0..n)
            .map(|i| system[i][n] / system[i][i] / scale[i])
            .collect(),
    )
}

/// Improves `start`, all above 0, until no step of one of them lowers `loss`, or `rounds` are over: coordinate descent on
/// logarithmic scales.
pub(super) fn descend(start: &[f64], rounds: usize, loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let (mut values, mut steps) = (start.to_vec(), vec![1.3_f64; start.len()]);
    let mut best = loss(&values);
    for _ in 0..rounds {
        let mut moved = false;
        for index in 0..values.len() {
            let before = values[index];
            let better = [steps[index], 1.0 / steps[index]]
                .into_iter()
                .find_map(|factor| {
                    values[index] = before * factor;
                    let candidate = loss(&values);
                    (candidate < best - 1e-9).then_some((before * factor, candidate))
                });
            values[index] = better.map_or(before, |(value, _)| value);
            best = better.map_or(best, |(_, loss)| loss);
            steps[index] = match better {
                Some(_) => steps[index].powf(1.2).min(2.0),
                None => steps[index].sqrt(),
            };
            moved |= better.is_some();
        }
        if !moved && steps.iter().all(|step| *step < 1.001) {
            break;
        }
    }
    values
}

/// Terms of products from (m, n, k) and microseconds each.
pub(super) fn gemm(samples: &[([f64; 3], f64)]) -> GemmTerms {
    let rows: Vec<([f64; 5], f64)> = samples
        .iter()
        .filter(|(_, us)| *us > 0.0)
        .map(|([m, n, k], us)| (GemmTerms::amounts(*m, *n, *k), *us))
        .collect();
    let [call, multiply_add, left, right, result] = non_negative(&rows);
    GemmTerms {
        call_us: call,
        multiply_add_ps: multiply_add * 1e6,
        left_ps: left * 1e6,
        right_ps: right * 1e6,
        result_ps: result * 1e6,
    }
}

/// A curve through the geometric means of samples (x, y), two points a doubling of x.
pub(super) fn curve(samples: &[(f64, f64)]) -> Option<Curve> {
    let mut bins: std::collections::BTreeMap<i64, Vec<(f64, f64)>> =
        std::collections::BTreeMap::new();
    for &(x, y) in samples.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0) {
        let bin = (x.log2() * 2.0).round() as i64;
        bins.entry(bin).or_default().push((x.ln(), y.ln()));
    }
    let mean = |bin: Vec<(f64, f64)>| {
        let n = bin.len() as f64;
        let (x, y) = bin
            .iter()
            .fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        [rounded((x / n).exp()), rounded((y / n).exp())]
    };
    let mut points: Vec<[f64; 2]> = bins.into_values().map(mean).collect();
    points.dedup_by(|b, a| b[0] <= a[0]);
    (!points.is_empty()).then_some(Curve(points))
}

/// Four significant digits: what a measurement is worth.
pub(super) fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_that_made_the_times_are_found() {
        let truth = GemmTerms {
            call_us: 2.0,
            multiply_add_ps: 50.0,
            left_ps: 900.0,
            right_ps: 0.0,
            result_ps: 1500.0,
        };
        let shapes = [8.0, 40.0, 200.0, 900.0];
        let samples: Vec<([f64; 3], f64)> = shapes
            .iter()
            .flat_map(|&m| shapes.iter().map(move |&n| (m, n)))
            .flat_map(|(m, n)| shapes.iter().map(move |&k| [m, n, k]))
            .map(|[m, n, k]| ([m, n, k], truth.microseconds(m, n, k)))
            .collect();
        let found = gemm(&samples);
        for ([m, n, k], us) in &samples {
            assert!((found.microseconds(*m, *n, *k) / us - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn descent_finds_the_values_that_made_the_times() {
        let truth = [3.0, 0.2];
        let time = |x: &[f64], n: f64| x[0] + x[1] * n;
        let sizes = [1.0, 10.0, 100.0, 1000.0];
        let loss = |x: &[f64]| -> f64 {
            let errors = sizes.map(|n| (time(x, n) / time(&truth, n)).ln().abs());
            errors.iter().sum()
        };
        let found = descend(&[1.0, 1.0], 200, loss);
        for (found, truth) in found.iter().zip(truth) {
            assert!((found / truth - 1.0).abs() < 0.01, "{found} {truth}");
        }
    }

    #[test]
    fn coefficients_never_turn_negative() {
        let rows = [([1.0, 1.0], 1.0), ([1.0, 2.0], 0.9), ([1.0, 4.0], 0.7)];
        assert!(non_negative(&rows).iter().all(|value| *value >= 0.0));
    }
}
