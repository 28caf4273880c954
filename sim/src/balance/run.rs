//! A policy over the steps of a trace.

use super::{Arrangement, Balancer, Past, migration};
use crate::compile::{Load, Plan, Routing};
use crate::policy::best;
use crate::simulate::Scenario;
use crate::spec::{Padding, Phase, ResolvedLayer, SpecError};
use crate::units::Time;
use moeplan_traces::RoutingStep;

/// When a policy is asked again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Every so many steps.
    pub every: u64,
    /// Also as soon as the loads of a step are this far from those it last decided on: total variation,
    /// 0 (the same) to 1.
    pub drift: Option<f64>,
}

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
    balancer: &'a dyn Balancer,
    schedule: Schedule,
    plans: Vec<Plan>,
    slots_per_rank: usize,
    arrangement: Arrangement,
    arranged: ResolvedLayer,
    /// Time to sum the gradients of copies, under the arrangement in force.
    copies: Time,
    /// Loads since the last decision, and by source node.
    loads: Vec<f64>,
    by_node: Vec<f64>,
    seen: u64,
    /// Shares of the last step, and those the arrangement was decided on.
    last: Vec<f64>,
    basis: Vec<f64>,
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
        let layer = scenario.layer;
        if layer.sharded_count > 1 {
            let expected = format!("at least one expert a GPU: {}", layer.world_size);
            return Err(SpecError::new("num-experts", expected, layer.num_experts));
        }
        if plans.iter().any(|plan| plan.padding != Padding::Dropless) {
            return Err(SpecError::new(
                "padding",
                "dropless: padded buffers are alike wherever experts sit",
                "capacity",
            ));
        }
        let slots_per_rank = layer.local_experts as usize + balancer.extra_slots();
        let arrangement = Arrangement::contiguous(layer, slots_per_rank);
        let experts = layer.num_experts as usize;
        let nodes = (layer.world_size / scenario.gpus_per_node) as usize;
        Ok(BalancedRun {
            arranged: arrangement.layer(layer),
            arrangement,
            scenario,
            balancer,
            schedule,
            plans,
            slots_per_rank,
            copies: Time::ZERO,
            loads: vec![0.0; experts],
            by_node: vec![0.0; nodes * experts],
            seen: 0,
            last: Vec::new(),
            basis: Vec::new(),
        })
    }

    /// The arrangement in force.
    pub fn arrangement(&self) -> &Arrangement {
        &self.arrangement
    }

    /// Runs the next step: the policy decides on the steps before it, then it runs, then it is seen.
    ///
    /// # Errors
    /// A step of another shape, or a plan the layer cannot run.
    pub fn step(&mut self, step: &RoutingStep) -> Result<BalancedStep, SpecError> {
        let (migration, moved) = self.decide();
        let routed = self.arrangement.apply(step)?;
        let load = Load::new(
            &self.arranged,
            0.0,
            Padding::Dropless,
            &Routing::Step(&routed),
        );
        let scenario = Scenario {
            layer: &self.arranged,
            ..self.scenario
        };
        let ran = best(&scenario, &self.plans, &load)?;
        let ranks = routed.expert_loads();
        let ranks: Vec<u64> = ranks
            .chunks(self.slots_per_rank)
            .map(|slots| slots.iter().sum())
            .collect();
        let mean = ranks.iter().sum::<u64>() as f64 / ranks.len() as f64;
        let most = ranks.iter().copied().max().unwrap_or(0) as f64;
        self.observe(step);
        Ok(BalancedStep {
            step: ran.time,
            migration,
            copies: self.copies,
            moved,
            max_over_mean: if mean > 0.0 { most / mean } else { 1.0 },
            plan: ran.plan,
        })
    }

    fn observe(&mut self, step: &RoutingStep) {
        let experts = self.loads.len();
        let node = self.scenario.gpus_per_node as usize;
        for (source, row) in step.rows().enumerate() {
            let of_node = &mut self.by_node[source / node * experts..][..experts];
            for (expert, &count) in row.iter().enumerate() {
                self.loads[expert] += f64::from(count);
                of_node[expert] += f64::from(count);
            }
        }
        let loads: Vec<f64> = step
            .expert_loads()
            .iter()
            .map(|&load| load as f64)
            .collect();
        self.last = shares(&loads);
        self.seen += 1;
    }

    /// Asks the policy where its time has come; returns what moving takes.
    fn decide(&mut self) -> (Time, u64) {
        let drifted = || {
            let limit = self.schedule.drift?;
            let far = |(a, b): (&f64, &f64)| (a - b).abs();
            let distance: f64 = self.last.iter().zip(&self.basis).map(far).sum();
            Some(distance / 2.0 > limit)
        };
        let due = self.seen >= self.schedule.every.max(1) || drifted().unwrap_or(false);
        if self.seen == 0 || !due || !self.balancer.moves() {
            return (Time::ZERO, 0);
        }
        let wanted = self.balancer.arrange(&Past {
            layer: self.scenario.layer,
            gpus_per_node: self.scenario.gpus_per_node as usize,
            slots_per_rank: self.slots_per_rank,
            loads: &self.loads,
            by_node: &self.by_node,
            current: &self.arrangement,
        });
        self.basis = shares(&self.loads);
        // Nothing is moved for a placement that is no better on all that is known. Affinity moves for
        // locality, within the load it allows.
        let better = wanted.max_load(&self.loads) < self.arrangement.max_load(&self.loads);
        self.seen = 0;
        let cost = if better || self.balancer.name() == "affinity" {
            self.adopt(wanted)
        } else {
            (Time::ZERO, 0)
        };
        self.loads.fill(0.0);
        self.by_node.fill(0.0);
        cost
    }

    fn adopt(&mut self, wanted: Arrangement) -> (Time, u64) {
        let node = self.scenario.gpus_per_node as usize;
        let layer = self.scenario.layer;
        let width = layer.spec.dtype.bytes();
        let (d, h) = (layer.spec.model_dim, layer.spec.hidden_dim);
        let parameters = 2 * d * h + d + h;
        // In training the optimizer's states move along: Adam's moments, and a master copy of half precision.
        let state = match (self.scenario.phase, width) {
            (Phase::Forward, _) => 0,
            (Phase::Training, 2) => 12,
            (Phase::Training, _) => 8,
        };
        let moves = migration::moves(&self.arrangement, &wanted, node);
        let moved = moves.iter().map(|&experts| u64::from(experts)).sum();
        let model = self.scenario.model;
        let time = migration::time(model, moves, parameters * (width + state), node);
        self.copies = match self.scenario.phase {
            Phase::Forward => Time::ZERO,
            Phase::Training => migration::ring(&wanted)
                .into_iter()
                .map(|(share, ring)| {
                    let bytes = (share * (parameters * width) as f64) as u64;
                    migration::time(model, ring, bytes, node)
                })
                .sum(),
        };
        self.arranged = wanted.layer(layer);
        self.arrangement = wanted;
        (time, moved)
    }
}

fn shares(loads: &[f64]) -> Vec<f64> {
    let total: f64 = loads.iter().sum();
    loads.iter().map(|load| load / total.max(1.0)).collect()
}
