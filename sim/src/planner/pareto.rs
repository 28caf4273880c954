//! Plans that nothing is better than.

use super::figures::Objectives;

/// Indices of the points that no other dominates, in order; of equal points the first.
pub fn front(points: &[Objectives]) -> Vec<usize> {
    let on_front = |index: &usize| {
        let point = &points[*index];
        let before = &points[..*index];
        !before.contains(point) && !points.iter().any(|other| other.dominates(point))
    };
    (0..points.len()).filter(on_front).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seconds_per_token: f64, gpus: u64) -> Objectives {
        Objectives {
            seconds_per_token,
            gpus,
            cost: seconds_per_token * gpus as f64,
            memory_bytes: 1,
            dropped_fraction: 0.0,
        }
    }

    #[test]
    fn what_is_slower_on_more_gpus_is_off_the_front() {
        let points = [point(1.0, 8), point(0.6, 16), point(1.1, 16), point(1.0, 8)];
        assert_eq!(front(&points), [0, 1]);
    }
}
