//! A policy over the steps of one layer: where it puts experts, what that makes of routing, what moving costs.

use super::{Arrangement, Balancer, POLICIES, Past, migration, named};
use crate::cost::CostModel;
use crate::simulate::Scenario;
use crate::spec::{Phase, ResolvedLayer, SpecError};
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

/// A policy by name, and when it is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Balancing {
    /// One of [`POLICIES`].
    pub policy: String,
    /// Slots of a GPU for copies of experts.
    pub extra_slots: usize,
    /// Groups of experts that are packed onto nodes; one a node where nothing is said.
    pub expert_groups: Option<usize>,
    /// When it decides.
    pub schedule: Schedule,
}

impl Balancing {
    /// The policy on the nodes of `scenario`.
    ///
    /// # Errors
    /// A name that is none of [`POLICIES`].
    pub fn balancer(&self, scenario: &Scenario<'_>) -> Result<Box<dyn Balancer>, SpecError> {
        let nodes = (scenario.layer.world_size / scenario.gpus_per_node) as usize;
        let groups = self.expert_groups.unwrap_or(nodes);
        named(&self.policy, self.extra_slots, groups)
            .ok_or_else(|| SpecError::new("balance", POLICIES.join(", "), &self.policy))
    }
}

/// A step as a policy arranged it.
#[derive(Debug, Clone, PartialEq)]
pub struct Arranged {
    /// Its routing over slots.
    pub routing: RoutingStep,
    /// Moving experts before it.
    pub migration: Time,
    /// Summing the gradients of copies after it.
    pub copies: Time,
    /// Experts moved.
    pub moved: u64,
}

impl Arranged {
    /// What the arrangement costs beside the layer's own step.
    pub fn cost(&self) -> Time {
        self.migration + self.copies
    }
}

/// A policy at work on the steps of one layer. What it does depends on their routing alone, not on how they are run.
pub struct Arranger<'a> {
    layer: &'a ResolvedLayer,
    gpus_per_node: usize,
    prices: &'a dyn CostModel,
    phase: Phase,
    balancer: &'a dyn Balancer,
    schedule: Schedule,
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

impl<'a> Arranger<'a> {
    /// One for the layer of `scenario`, its experts contiguous at first.
    ///
    /// # Errors
    /// A layer whose experts span several GPUs.
    pub fn new(
        scenario: &Scenario<'a>,
        balancer: &'a dyn Balancer,
        schedule: Schedule,
    ) -> Result<Self, SpecError> {
        let layer = scenario.layer;
        if layer.sharded_count > 1 {
            let expected = format!("at least one expert a GPU: {}", layer.world_size);
            return Err(SpecError::new("num-experts", expected, layer.num_experts));
        }
        let slots_per_rank = layer.local_experts as usize + balancer.extra_slots();
        let arrangement = Arrangement::contiguous(layer, slots_per_rank);
        let experts = layer.num_experts as usize;
        let nodes = (layer.world_size / scenario.gpus_per_node) as usize;
        Ok(Arranger {
            layer,
            gpus_per_node: scenario.gpus_per_node as usize,
            prices: scenario.model,
            phase: scenario.phase,
            balancer,
            schedule,
            slots_per_rank,
            arranged: arrangement.layer(layer),
            arrangement,
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

    /// The layer on its slots: of the same shape under every arrangement.
    pub fn layer(&self) -> &ResolvedLayer {
        &self.arranged
    }

    /// Arranges the next step: the policy decides on the steps before it, then sees it.
    ///
    /// # Errors
    /// A step of another shape.
    pub fn next(&mut self, step: &RoutingStep) -> Result<Arranged, SpecError> {
        let (migration, moved) = self.decide();
        let routing = self.arrangement.apply(step)?;
        self.observe(step);
        Ok(Arranged {
            routing,
            migration,
            copies: self.copies,
            moved,
        })
    }

    fn observe(&mut self, step: &RoutingStep) {
        let experts = self.loads.len();
        let node = self.gpus_per_node;
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
            layer: self.layer,
            gpus_per_node: self.gpus_per_node,
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
        let (node, layer) = (self.gpus_per_node, self.layer);
        let width = layer.spec.dtype.bytes();
        let (d, h) = (layer.spec.model_dim, layer.spec.hidden_dim);
        let parameters = 2 * d * h + d + h;
        // In training the optimizer's states move along: Adam's moments, and a master copy of half precision.
        let state = match (self.phase, width) {
            (Phase::Forward, _) => 0,
            (Phase::Training, 2) => 12,
            (Phase::Training, _) => 8,
        };
        let moves = migration::moves(&self.arrangement, &wanted, node);
        let moved = moves.iter().map(|&experts| u64::from(experts)).sum();
        let model = self.prices;
        let time = migration::time(model, moves, parameters * (width + state), node);
        self.copies = match self.phase {
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
