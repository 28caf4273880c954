//! A policy over the steps of a trace.

use super::{Arrangement, Arranger, Balancer, Schedule};
use crate::compile::{Load, Plan, Routing};
use crate::policy::best;
use crate::simulate::Scenario;
use crate::spec::{Padding, SpecError};
use crate::units::Time;
use moeplan_traces::RoutingStep;

/// One step under a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct BalancedStep {
    /// The layer's step, without moving and summing.
    pub step: Time,
    /// Moving experts before it.
    pub migration: Time,
    /// Summing the gradients of copies after it.
    pub copies: Time,
    /// Experts moved.
    pub moved: u64,
    /// Rows of the fullest rank over the mean.
    pub max_over_mean: f64,
    /// The plan.
    pub plan: Plan,
}

impl BalancedStep {
    /// All of it.
    pub fn time(&self) -> Time {
        self.step + self.migration + self.copies
    }
}

/// A policy at work on one layer.
pub struct BalancedRun<'a> {
    scenario: Scenario<'a>,
    arranger: Arranger<'a>,
    plans: Vec<Plan>,
}

impl<'a> BalancedRun<'a> {
    /// A run of dropless `plans`, the best of which is taken on every step.
    ///
    /// # Errors
    /// A layer whose experts span several GPUs, or plans that pad.
    pub fn new(
        scenario: Scenario<'a>,
        balancer: &'a dyn Balancer,
        schedule: Schedule,
        plans: Vec<Plan>,
    ) -> Result<Self, SpecError> {
        if plans.iter().any(|plan| plan.padding != Padding::Dropless) {
            return Err(SpecError::new(
                "padding",
                "dropless: padded buffers are alike wherever experts sit",
                "capacity",
            ));
        }
        Ok(BalancedRun {
            arranger: Arranger::new(&scenario, balancer, schedule)?,
            scenario,
            plans,
        })
    }

    /// The arrangement in force.
    pub fn arrangement(&self) -> &Arrangement {
        self.arranger.arrangement()
    }

    /// Runs the next step: the policy decides on the steps before it, then it runs, then it is seen.
    ///
    /// # Errors
    /// A step of another shape, or a plan the layer cannot run.
    pub fn step(&mut self, step: &RoutingStep) -> Result<BalancedStep, SpecError> {
        let arranged = self.arranger.next(step)?;
        let layer = self.arranger.layer();
        let routing = Routing::Step(&arranged.routing);
        let load = Load::new(layer, 0.0, Padding::Dropless, &routing);
        let scenario = Scenario {
            layer,
            ..self.scenario
        };
        let ran = best(&scenario, &self.plans, &load)?;
        let ranks = arranged.routing.expert_loads();
        let ranks: Vec<u64> = ranks
            .chunks(layer.local_experts as usize)
            .map(|slots| slots.iter().sum())
            .collect();
        let mean = ranks.iter().sum::<u64>() as f64 / ranks.len() as f64;
        let most = ranks.iter().copied().max().unwrap_or(0) as f64;
        Ok(BalancedStep {
            step: ran.time,
            migration: arranged.migration,
            copies: arranged.copies,
            moved: arranged.moved,
            max_over_mean: if mean > 0.0 { most / mean } else { 1.0 },
            plan: ran.plan,
        })
    }
}
