//! Scaling a recorded step to another shape; the rules are at [`RoutingStep::resample`].

use crate::draw::{Shares, Source, fill_rows, stream};
use crate::error::TraceError;
use crate::routing::{RoutingStep, Shape};

pub(crate) fn resample(
    recorded: &RoutingStep,
    target: &Shape,
    seed: u64,
) -> Result<RoutingStep, TraceError> {
    target.check()?;
    if recorded.shape() == Some(*target) {
        return Ok(recorded.clone());
    }
    let loads = recorded.expert_loads();
    let sources: Vec<Source> = recorded
        .rows()
        .take(target.ranks)
        .map(|row| {
            let weights = if row.iter().all(|&count| count == 0) {
                split(&loads, target.experts)
            } else {
                let row: Vec<u64> = row.iter().map(|&count| count.into()).collect();
                split(&row, target.experts)
            };
            Source(vec![(
                Shares::new(&weights, target.top_k),
                target.tokens_per_rank,
            )])
        })
        .collect();
    let replicas = if target.experts.is_multiple_of(recorded.num_experts()) {
        target.experts / recorded.num_experts()
    } else {
        1
    };
    let (step, layer) = (recorded.step(), recorded.layer());
    let counts = fill_rows(target, &sources, replicas, |rank| {
        stream(seed, "resample", step, layer, rank)
    });
    Ok(RoutingStep::from_checked(
        step,
        layer,
        target.top_k,
        target.experts,
        counts,
    ))
}

/// The weights of `experts` experts that share `recorded` by overlap of the intervals
/// `[e/E, (e+1)/E)`; exact, in units of one recorded copy over `experts`.
fn split(recorded: &[u64], experts: usize) -> Vec<u128> {
    let (from, to) = (recorded.len() as u128, experts as u128);
    let mut weights = vec![0; experts];
    let mut target = 0;
    // Both kinds of interval end at whole multiples of 1 / (from * to).
    let mut at = 0;
    for (expert, &load) in (1_u128..).zip(recorded) {
        while at < expert * to {
            let end = (expert * to).min((target as u128 + 1) * from);
            weights[target] += u128::from(load) * (end - at);
            if end == (target as u128 + 1) * from {
                target += 1;
            }
            at = end;
        }
    }
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_merges_and_overlaps() {
        assert_eq!(split(&[3, 5], 4), [6, 6, 10, 10]);
        assert_eq!(split(&[1, 2, 3, 4], 2), [6, 14]);
        // Three experts onto two: the middle one is halved.
        assert_eq!(split(&[1, 2, 3], 2), [4, 8]);
    }
}
