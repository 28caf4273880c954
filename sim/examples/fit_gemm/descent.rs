//! Coordinate descent over the logarithms of positive parameters.

/// The largest and smallest step of one logarithm.
const STEP: (f64, f64) = (0.2, 0.003);

/// Improves `start` until no step of one parameter lowers `loss`, or `rounds` are over.
pub(crate) fn minimise(start: &[f64], rounds: usize, loss: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut logs: Vec<f64> = start.iter().map(|x| x.ln()).collect();
    let at = |logs: &[f64]| loss(&logs.iter().map(|x| x.exp()).collect::<Vec<f64>>());
    let mut best = at(&logs);
    let mut steps = vec![STEP.0; logs.len()];
    for _ in 0..rounds {
        if steps.iter().all(|step| step.abs() <= STEP.1) {
            break;
        }
        for i in 0..logs.len() {
            let before = logs[i];
            let mut improved = false;
            for direction in [1.0, -1.0] {
                logs[i] = before + direction * steps[i];
                let candidate = at(&logs);
                if candidate < best - 1e-7 {
                    best = candidate;
                    steps[i] *= 1.3 * direction;
                    improved = true;
                    break;
                }
                logs[i] = before;
            }
            if !improved {
                steps[i] *= 0.5;
            }
            // The sign remembers the direction that worked last.
            steps[i] = steps[i].abs().clamp(STEP.1, 0.5) * steps[i].signum();
        }
    }
    logs.iter().map(|x| x.exp()).collect()
}

/// `value` rounded to four significant digits.
pub(crate) fn rounded(value: f64) -> f64 {
    format!("{value:.3e}")
        .parse()
        .expect("a formatted number parses")
}
