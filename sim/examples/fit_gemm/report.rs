//! Errors of predictions against measurements.

/// Mean error, bias and 95th percentile of ratios predicted / measured, as one printable line.
pub(crate) fn summary(ratios: &[f64]) -> String {
    let mut errors: Vec<f64> = ratios.iter().map(|r| (r - 1.0).abs()).collect();
    errors.sort_by(f64::total_cmp);
    let p95 = errors
        .get(errors.len() * 95 / 100)
        .copied()
        .unwrap_or_default();
    format!(
        "MAPE {:5.2} %  bias {:+5.2} %  p95 {:5.1} %  ({} rows)",
        100.0 * mean(errors.iter().copied()),
        100.0 * (mean(ratios.iter().copied()) - 1.0),
        100.0 * p95,
        ratios.len()
    )
}

/// The arithmetic mean; NaN when there is nothing.
pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// What the fit minimises: half the mean relative error, which MAPE asks for, and half the mean
/// logarithmic error, without which MAPE would favour predictions that are too low.
pub(crate) fn loss(ratios: impl ExactSizeIterator<Item = f64>) -> f64 {
    mean(ratios.map(|r| 0.5 * (r - 1.0).abs() + 0.5 * r.ln().abs()))
}
