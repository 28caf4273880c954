//! Where the loads of a layer change for good.

use serde::Serialize;

use super::step::StepStats;

/// Fewest steps between two changes.
const SHORTEST: usize = 4;
/// A split must save this many times `ln(steps)` of the noise of one step. Splitting pure noise
/// saves about as much as one step's noise, at the best place a few times that; 3 ln n leaves
/// fewer than one false change in a hundred traces of white noise (tested).
const PENALTY: f64 = 3.0;

/// The mean loads before and after this step differ.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChangePoint {
    /// Index of the training step from which on loads are different.
    pub step: u64,
    /// Total variation distance between the mean shares of the stretch before and the one after.
    pub distance: f64,
}

/// Change points by binary segmentation (Scott and Knott 1974) of the share vectors.
///
/// A stretch costs the squared distance of its steps from its mean, summed over experts. The
/// stretch is split where that saves most (the first place of equals), as long as it saves more
/// than `3 ln(n)` times the noise of one step; both halves keep at least 4 steps. The noise is half
/// of the mean squared distance between neighbouring steps, which a lasting change hardly moves.
/// Loads that glide rather than jump are cut into stretches that are about even.
pub(super) fn change_points(steps: &[StepStats], shares: &[Vec<f64>]) -> Vec<ChangePoint> {
    if shares.len() < 2 * SHORTEST {
        return Vec::new();
    }
    let neighbours = shares.windows(2).map(|two| squared(&two[0], &two[1]));
    let noise = neighbours.sum::<f64>() / (2 * (shares.len() - 1)) as f64;
    let penalty = PENALTY * libm::log(shares.len() as f64) * noise;
    let mut cuts = Vec::new();
    let mut open = vec![(0, shares.len())];
    while let Some((start, end)) = open.pop() {
        let best = best_split(&shares[start..end]);
        // Rounding saves about 1e-30 where nothing moves.
        if let Some((at, _)) = best.filter(|(_, saved)| *saved > penalty.max(1e-24)) {
            let cut = start + at;
            cuts.push(cut);
            open.push((start, cut));
            open.push((cut, end));
        }
    }
    cuts.sort_unstable();
    let ends: Vec<usize> = [0].into_iter().chain(cuts).chain([shares.len()]).collect();
    ends.windows(3)
        .map(|ends| {
            let mean = |from: usize, to: usize| super::layer::mean_of_rows(&shares[from..to]);
            let (before, after) = (mean(ends[0], ends[1]), mean(ends[1], ends[2]));
            ChangePoint {
                step: steps[ends[1]].step,
                distance: super::distance::total_variation(&before, &after),
            }
        })
        .collect()
}

/// The split that saves most, and how much: `a b / (a + b)` times the squared distance between the
/// means of its sides of `a` and `b` steps.
fn best_split(shares: &[Vec<f64>]) -> Option<(usize, f64)> {
    let count = shares.len();
    let experts = shares.first().map_or(0, Vec::len);
    let mut all = vec![0.0; experts];
    for row in shares {
        all.iter_mut()
            .zip(row)
            .for_each(|(all, value)| *all += value);
    }
    let mut before = vec![0.0; experts];
    let mut best: Option<(usize, f64)> = None;
    for (at, row) in (1..count).zip(shares) {
        before
            .iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += value);
        if at < SHORTEST || count - at < SHORTEST {
            continue;
        }
        let (a, b) = (at as f64, (count - at) as f64);
        let gap: f64 = before
            .iter()
            .zip(&all)
            .map(|(before, all)| before / a - (all - before) / b)
            .map(|gap| gap * gap)
            .sum();
        let saved = a * b / (a + b) * gap;
        if best.is_none_or(|(_, most)| saved > most) {
            best = Some((at, saved));
        }
    }
    best
}

fn squared(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}
