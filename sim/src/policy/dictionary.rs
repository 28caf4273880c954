//! The dictionary of Section 3.3: `floor(c / R) -> (r*, d*, a*)`, learned by trying.

use crate::compile::{Load, Plan};
use crate::simulate::{Scenario, Step, simulate_step};
use crate::spec::SpecError;
use crate::units::Time;
use std::collections::{BTreeMap, BTreeSet};

/// R: capacities that share an entry.
const CAPACITY_WINDOW: u64 = 128;

/// Entries by capacity window.
#[derive(Debug, Default)]
pub(super) struct Dictionary {
    entries: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Plans still to be tried, last first.
    trials: Vec<Plan>,
    best: Plan,
    best_time: Time,
}

impl Dictionary {
    /// Runs the next step; returns whether it was a trial. A key's trials run one a step, each on a
    /// real step: what a bad one costs is charged.
    pub(super) fn next(
        &mut self,
        scenario: &Scenario<'_>,
        plans: &[Plan],
        load: &Load,
    ) -> Result<(Step, bool), SpecError> {
        let key = load.capacity.per_gpu / CAPACITY_WINDOW;
        let entry = match self.entries.entry(key) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                let trials = trials(scenario, plans, load)?;
                vacant.insert(Entry {
                    best: plans[0],
                    best_time: Time::MAX,
                    trials,
                })
            }
        };
        let trial = entry.trials.pop();
        let plan = trial.unwrap_or(entry.best);
        let step = simulate_step(scenario, plan, load)?.step;
        if trial.is_some() && step.fits && step.time < entry.best_time {
            (entry.best, entry.best_time) = (plan, step.time);
        }
        Ok((step, trial.is_some()))
    }
}

/// The plans a key tries, last first: for each degree and algorithm r = 0, r = W/E, and a ternary
/// search over the r between them, which takes the time to be convex in r (Section 3.3). In all
/// about `(log_{3/2}(W/E) + 2) · 4 · 2`.
fn trials(scenario: &Scenario<'_>, plans: &[Plan], load: &Load) -> Result<Vec<Plan>, SpecError> {
    let mut families: BTreeMap<(u64, u64, crate::spec::AllToAll), Vec<Plan>> = BTreeMap::new();
    for &plan in plans {
        families
            .entry((plan.forward_degree, plan.backward_degree, plan.all_to_all))
            .or_default()
            .push(plan);
    }
    let mut order: Vec<Plan> = Vec::new();
    for family in families.values() {
        let mut tried = BTreeSet::new();
        let mut time = |plan: Plan| -> Result<Time, SpecError> {
            if tried.insert(plan) {
                order.push(plan);
            }
            Ok(simulate_step(scenario, plan, load)?.step.time)
        };
        let inner: Vec<Plan> = family
            .iter()
            .copied()
            .filter(|plan| plan.adaptive_r != 0)
            .collect();
        for &plan in family.iter().filter(|plan| plan.adaptive_r == 0) {
            time(plan)?;
        }
        if let Some(&last) = inner.last() {
            time(last)?;
        }
        let (mut low, mut high) = (0, inner.len().saturating_sub(2));
        while high > low {
            let third = (high - low) / 3;
            let (left, right) = (low + third, high - third);
            if left == right {
                break;
            }
            if time(inner[left])? <= time(inner[right])? {
                high = right - 1
            } else {
                low = left + 1
            }
        }
        if let Some(&plan) = inner.get(low) {
            time(plan)?;
        }
    }
    order.reverse();
    Ok(order)
}
