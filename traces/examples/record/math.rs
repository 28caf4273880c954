//! Small dense algebra on row-major slices, in a fixed order of operations.

use std::ops::Range;

/// `y[n, b] += x[n, a] w[a, b]`.
pub(crate) fn add_product(y: &mut [f32], x: &[f32], w: &[f32], a: usize, b: usize) {
    for (y, x) in y.chunks_exact_mut(b).zip(x.chunks_exact(a)) {
        for (&x, w) in x.iter().zip(w.chunks_exact(b)) {
            for (y, &w) in y.iter_mut().zip(w) {
                *y += x * w;
            }
        }
    }
}

/// `dx[n, a] += dy[n, b] w[a, b]^T`.
pub(crate) fn add_product_transposed(dx: &mut [f32], dy: &[f32], w: &[f32], a: usize, b: usize) {
    let mut transposed = vec![0.0; a * b];
    for (i, row) in w.chunks_exact(b).enumerate() {
        for (j, &value) in row.iter().enumerate() {
            transposed[j * a + i] = value;
        }
    }
    add_product(dx, dy, &transposed, b, a);
}

/// `dw[a, b] += x[n, a]^T dy[n, b]`.
pub(crate) fn add_outer(dw: &mut [f32], x: &[f32], dy: &[f32], a: usize, b: usize) {
    for (x, dy) in x.chunks_exact(a).zip(dy.chunks_exact(b)) {
        for (&x, dw) in x.iter().zip(dw.chunks_exact_mut(b)) {
            for (dw, &dy) in dw.iter_mut().zip(dy) {
                *dw += x * dy;
            }
        }
    }
}

/// `db[b] += sum over rows of dy[n, b]`.
pub(crate) fn add_rows(db: &mut [f32], dy: &[f32]) {
    let b = db.len();
    for dy in dy.chunks_exact(b) {
        for (db, &dy) in db.iter_mut().zip(dy) {
            *db += dy;
        }
    }
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

/// Softmax of every row of `n` values, in place.
pub(crate) fn softmax(rows: &mut [f32], n: usize) {
    for row in rows.chunks_exact_mut(n) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in row.iter_mut() {
            *value = libm::expf(*value - most);
            sum += *value;
        }
        for value in row.iter_mut() {
            *value /= sum;
        }
    }
}

/// Rows divided by their root mean square; returns those divisors too.
pub(crate) fn normalize(rows: &[f32], n: usize) -> (Vec<f32>, Vec<f32>) {
    let mut out = Vec::with_capacity(rows.len());
    let mut scales = Vec::with_capacity(rows.len() / n);
    for row in rows.chunks_exact(n) {
        let scale = libm::sqrtf(dot(row, row) / n as f32 + 1e-6);
        out.extend(row.iter().map(|&value| value / scale));
        scales.push(scale);
    }
    (out, scales)
}

/// Adds to `dx` the gradient of [`normalize`], given its outputs and their gradient.
pub(crate) fn add_normalize_gradient(
    dx: &mut [f32],
    out: &[f32],
    scales: &[f32],
    dout: &[f32],
    n: usize,
) {
    let rows = dx.chunks_exact_mut(n).zip(out.chunks_exact(n));
    for ((dx, out), (dout, &scale)) in rows.zip(dout.chunks_exact(n).zip(scales)) {
        let mean = dot(out, dout) / n as f32;
        for ((dx, &out), &dout) in dx.iter_mut().zip(out).zip(dout) {
            *dx += (dout - out * mean) / scale;
        }
    }
}

/// Parameters and their gradients in one vector each, given out in pieces.
pub(crate) struct Store {
    pub(crate) values: Vec<f32>,
    pub(crate) gradients: Vec<f32>,
}

impl Store {
    /// The gradients of a piece, and the values of all.
    pub(crate) fn gradient(&mut self, piece: &Range<usize>) -> &mut [f32] {
        &mut self.gradients[piece.clone()]
    }

    pub(crate) fn value(&self, piece: &Range<usize>) -> &[f32] {
        &self.values[piece.clone()]
    }
}
