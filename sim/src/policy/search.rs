//! Every plan a strategy allows, and the best of them.

use crate::compile::{Load, Plan};
use crate::simulate::{Scenario, Step, simulate_if_fits, simulate_step};
use crate::spec::{AllToAll, Choice, PIPELINE_DEGREES, ResolvedLayer, SpecError, Strategy};
use rayon::prelude::*;

/// The All-to-Alls that `auto` chooses from: the two of the paper's dictionary (Section 3.3). The
/// fused MSCCL variants and 3DH are tried when named.
const AUTO_ALL_TO_ALL: [AllToAll; 2] = [AllToAll::Linear, AllToAll::TwoDh];

/// All plans of `strategy` on `layer`, in a fixed order. Plans that differ only in what r = 0 does
/// not use (chunks and All-to-All) are listed once.
///
/// # Errors
/// A fixed r that the layer does not allow.
pub fn candidates(strategy: &Strategy, layer: &ResolvedLayer) -> Result<Vec<Plan>, SpecError> {
    let valid = layer.valid_adaptive_r();
    if let Choice::Fixed(r) = strategy.adaptive_r
        && !valid.contains(&r)
    {
        let expected = format!(
            "0 or a divisor of W/E = {}, one of {valid:?}",
            layer.sharded_count
        );
        return Err(SpecError::new("adaptive-r", expected, r));
    }
    let mut plans = Vec::new();
    for adaptive_r in strategy.adaptive_r.among(&valid) {
        for forward_degree in strategy.pipeline_degree.among(&PIPELINE_DEGREES) {
            let backward = match strategy.backward_degree {
                None => vec![forward_degree],
                Some(choice) => choice.among(&PIPELINE_DEGREES),
            };
            for backward_degree in backward {
                for all_to_all in strategy.all_to_all.among(&AUTO_ALL_TO_ALL) {
                    plans.push(Plan {
                        encode: strategy.encode,
                        all_to_all,
                        layout: strategy.layout,
                        padding: strategy.padding,
                        forward_degree,
                        backward_degree,
                        adaptive_r,
                    });
                }
            }
        }
    }
    let mut seen_without_exchange = false;
    plans.retain(|plan| {
        plan.adaptive_r != 0 || !std::mem::replace(&mut seen_without_exchange, true)
    });
    Ok(plans)
}

/// The fastest plan that fits in memory, or the leanest where none does. Of equals, the first.
///
/// # Errors
/// A plan the layer cannot run.
pub fn best(scenario: &Scenario<'_>, plans: &[Plan], load: &Load) -> Result<Step, SpecError> {
    // What does not fit is not worth timing, unless nothing fits: then the leanest is shown.
    let tried: Vec<Result<Step, u64>> = plans
        .par_iter()
        .map(|&plan| {
            let tried = simulate_if_fits(scenario, plan, load)?;
            Ok(tried.map(|trace| trace.step))
        })
        .collect::<Result<_, SpecError>>()?;
    let (mut steps, mut too_large) = (Vec::new(), Vec::new());
    for (&plan, tried) in plans.iter().zip(tried) {
        match tried {
            Ok(step) => steps.push(step),
            Err(memory) => too_large.push((memory, plan)),
        }
    }
    if steps.is_empty() {
        let least = too_large.iter().map(|(memory, _)| *memory).min();
        for (_, plan) in too_large
            .iter()
            .filter(|(memory, _)| Some(*memory) == least)
        {
            steps.push(simulate_step(scenario, *plan, load)?.step);
        }
    }
    let faster = |best: Step, step: Step| if step.time < best.time { step } else { best };
    steps
        .into_iter()
        .reduce(faster)
        .ok_or_else(|| SpecError::new("strategy", "at least one plan", "none"))
}
