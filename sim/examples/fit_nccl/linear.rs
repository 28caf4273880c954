//! Non-negative least squares on relative errors, small enough to try every set of columns.

/// The non-negative coefficients that minimise `sum((row . c / target - 1)^2)` over the `allowed`
/// columns, and that minimum. Every subset of the columns is solved by its normal equations, and the
/// best one without a negative coefficient wins: exact, and free of any choice of path.
pub(crate) fn fit<const N: usize>(rows: &[([f64; N], f64)], allowed: [bool; N]) -> ([f64; N], f64) {
    let scaled: Vec<[f64; N]> = rows.iter().map(|(row, t)| row.map(|x| x / t)).collect();
    let mut best = ([0.0; N], rows.len() as f64);
    for set in 1..(1_usize << N) {
        let columns: Vec<usize> = (0..N).filter(|i| set >> i & 1 == 1).collect();
        if columns.len() > rows.len() || columns.iter().any(|&i| !allowed[i]) {
            continue;
        }
        let Some(solved) = solve(&scaled, &columns) else {
            continue;
        };
        if solved.iter().any(|&c| c < 0.0) {
            continue;
        }
        let mut coefficients = [0.0; N];
        for (&column, c) in columns.iter().zip(solved) {
            coefficients[column] = c;
        }
        let error = scaled
            .iter()
            .map(|row| (dot(row, &coefficients) - 1.0).powi(2))
            .sum();
        if error < best.1 {
            best = (coefficients, error);
        }
    }
    best
}

/// `sum(a * b)`.
pub(crate) fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Gaussian elimination with pivoting on the normal equations, every column scaled to length 1;
/// `None` where they are singular.
fn solve<const N: usize>(rows: &[[f64; N]], columns: &[usize]) -> Option<Vec<f64>> {
    let n = columns.len();
    let length = |c: usize| rows.iter().map(|row| row[c] * row[c]).sum::<f64>().sqrt();
    let lengths: Vec<f64> = columns.iter().map(|&c| length(c)).collect();
    if lengths.iter().any(|&l| l <= 0.0) {
        return None;
    }
    let mut m = vec![vec![0.0; n + 1]; n];
    for (i, &a) in columns.iter().enumerate() {
        for (j, &b) in columns.iter().enumerate() {
            let sum: f64 = rows.iter().map(|row| row[a] * row[b]).sum();
            m[i][j] = sum / (lengths[i] * lengths[j]);
        }
        m[i][n] = rows.iter().map(|row| row[a]).sum::<f64>() / lengths[i];
    }
    for i in 0..n {
        let pivot = (i..n).max_by(|&a, &b| m[a][i].abs().total_cmp(&m[b][i].abs()))?;
        m.swap(i, pivot);
        if m[i][i].abs() < 1e-10 {
            return None;
        }
        let pivot_row = m[i].clone();
        for row in &mut m[i + 1..] {
            let factor = row[i] / pivot_row[i];
            for (x, y) in row.iter_mut().zip(&pivot_row).skip(i) {
                *x -= factor * y;
            }
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| m[i][j] * x[j]).sum();
        x[i] = (m[i][n] - known) / m[i][i];
    }
    Some(x.iter().zip(&lengths).map(|(x, l)| x / l).collect())
}
