//! Policies: who decides what a strategy leaves `auto`, step by step, and at what cost.

mod dictionary;
mod search;

pub use search::{best, candidates};

use crate::compile::{Load, Routing};
use crate::simulate::{Scenario, Step, Trace, simulate_step};
use crate::spec::{Policy, ResolvedLayer, SpecError, Strategy};
use crate::units::Time;
use dictionary::Dictionary;

/// One step as the policy ran it.
#[derive(Debug, Clone)]
pub struct Decided {
    /// The step under the policy's plan.
    pub step: Step,
    /// Whether the dictionary was still trying: the step ran a trial, not its best choice.
    pub trial: bool,
    /// The best time of all plans the strategy allows on this step, where it was worked out.
    pub oracle: Option<Time>,
}

impl Decided {
    /// Time lost against the oracle.
    pub fn regret(&self) -> Option<Time> {
        self.oracle.map(|oracle| self.step.time - oracle)
    }
}

/// Decides and simulates the steps of one strategy, in order.
pub struct Runner<'a> {
    scenario: Scenario<'a>,
    strategy: Strategy,
    plans: Vec<crate::compile::Plan>,
    kept: Option<crate::compile::Plan>,
    dictionary: Dictionary,
    with_oracle: bool,
}

impl<'a> Runner<'a> {
    /// A runner for `strategy`. `with_oracle` also works out the best plan of every step, so that
    /// regret can be told.
    ///
    /// # Errors
    /// A strategy none of whose plans the layer can run.
    pub fn new(
        scenario: Scenario<'a>,
        strategy: Strategy,
        with_oracle: bool,
    ) -> Result<Self, SpecError> {
        let plans = candidates(&strategy, scenario.layer)?;
        Ok(Runner {
            scenario,
            strategy,
            plans,
            kept: None,
            dictionary: Dictionary::default(),
            with_oracle,
        })
    }

    /// Steps from here on are of `layer`, which differs from the one before in top-k alone (top-ANY).
    pub fn reroute(&mut self, layer: &'a ResolvedLayer) {
        self.scenario.layer = layer;
    }

    /// The load of `routing` under this strategy's capacity setting.
    pub fn load(&self, routing: &Routing<'_>) -> Load {
        let x = self
            .strategy
            .capacity_factor
            .unwrap_or(self.scenario.layer.spec.capacity_factor);
        Load::new(self.scenario.layer, x, self.strategy.padding, routing)
    }

    /// Runs the next step.
    ///
    /// # Errors
    /// A plan the layer cannot run.
    pub fn step(&mut self, routing: &Routing<'_>) -> Result<Decided, SpecError> {
        self.step_of(&self.load(routing))
    }

    /// Runs the next step, whose load under this strategy is known.
    ///
    /// # Errors
    /// A plan the layer cannot run.
    pub fn step_of(&mut self, load: &Load) -> Result<Decided, SpecError> {
        if let [only] = self.plans[..] {
            let step = simulate_step(&self.scenario, only, load)?.step;
            return Ok(Decided {
                oracle: Some(step.time),
                step,
                trial: false,
            });
        }
        let (step, trial) = match self.strategy.policy {
            Policy::Oracle => (best(&self.scenario, &self.plans, load)?, false),
            Policy::Dictionary => self.dictionary.next(&self.scenario, &self.plans, load)?,
            Policy::Static => {
                let plan = self.keep(load)?;
                (simulate_step(&self.scenario, plan, load)?.step, false)
            }
        };
        let oracle = match self.strategy.policy {
            Policy::Oracle => Some(step.time),
            Policy::Static | Policy::Dictionary if self.with_oracle => {
                Some(best(&self.scenario, &self.plans, load)?.time)
            }
            Policy::Static | Policy::Dictionary => None,
        };
        Ok(Decided {
            step,
            trial,
            oracle,
        })
    }

    /// The program, prices and timeline of a step under `plan`, for breakdowns and exports.
    ///
    /// # Errors
    /// A plan the layer cannot run.
    pub fn trace(
        &self,
        routing: &Routing<'_>,
        plan: crate::compile::Plan,
    ) -> Result<Trace, SpecError> {
        simulate_step(&self.scenario, plan, &self.load(routing))
    }

    /// The static policy's plan: the best on the first step it saw.
    fn keep(&mut self, load: &Load) -> Result<crate::compile::Plan, SpecError> {
        if let Some(plan) = self.kept {
            return Ok(plan);
        }
        let plan = best(&self.scenario, &self.plans, load)?.plan;
        self.kept = Some(plan);
        Ok(plan)
    }
}
