//! What a plan amounts to over its steps.

use super::space::World;
use crate::compile::Plan;
use crate::cost::provenance::Provenance;
use crate::economy::{Activity, Cost, PowerModel};
use crate::simulate::Step;
use crate::units::Time;
use serde::Serialize;

/// A step as it was played.
#[derive(Debug, Clone)]
pub(super) struct Played {
    /// The plans of its groups of layers.
    pub(super) plans: Vec<Plan>,
    /// What came of them.
    pub(super) step: Step,
}

/// Figures of a plan, means over its steps where nothing else is said.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Time of a step.
    pub step_time: Time,
    /// Time of the slowest step but a twentieth.
    pub step_time_p95: Time,
    /// Time in which communication ran and nothing computed.
    pub exposed_communication: Time,
    /// Time of matrix products.
    pub matrix_products: Time,
    /// Time of memory-bound kernels.
    pub memory_bound: Time,
    /// Most memory a GPU needs in any step.
    pub memory_bytes: u64,
    /// Share of token copies dropped.
    pub dropped_fraction: f64,
    /// Capacity factor f.
    pub capacity_factor: f64,
    /// The plans of the slowest step, one a group of layers: all alike where nothing adapts.
    pub plans: Vec<Plan>,
    /// The least trustworthy price in it.
    pub provenance: Provenance,
    /// Money and energy.
    pub cost: Cost,
}

/// What plans are held against each other by; less is better.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
pub struct Objectives {
    /// Seconds for a token that passes the layer, over all GPUs.
    pub seconds_per_token: f64,
    /// W.
    pub gpus: u64,
    /// Money for 10^9 tokens.
    pub cost: f64,
    /// Memory of the fullest GPU.
    pub memory_bytes: u64,
    /// Share of token copies dropped.
    pub dropped_fraction: f64,
}

impl Objectives {
    /// The objectives of steps of `step_time` in `world`.
    pub(super) fn new(
        world: &World,
        per_gpu_hour: f64,
        step_time: Time,
        memory_bytes: u64,
        dropped_fraction: f64,
    ) -> Objectives {
        let tokens = (world.gpus * world.tokens) as f64;
        let seconds_per_token = step_time.as_secs_f64() / tokens;
        Objectives {
            seconds_per_token,
            gpus: world.gpus,
            // Increasing in the step time, rounding and all: a bound on one bounds the other.
            cost: seconds_per_token * (world.gpus as f64 * per_gpu_hour / 3600.0) * 1e9,
            memory_bytes,
            dropped_fraction,
        }
    }

    /// Whether this is nowhere worse than `other` and somewhere better.
    pub fn dominates(&self, other: &Objectives) -> bool {
        let no_worse = self.seconds_per_token <= other.seconds_per_token
            && self.gpus <= other.gpus
            && self.cost <= other.cost
            && self.memory_bytes <= other.memory_bytes
            && self.dropped_fraction <= other.dropped_fraction;
        no_worse && self != other
    }
}

impl Figures {
    /// Sums up `steps`, of which there is one at least.
    pub(super) fn new(
        world: &World,
        per_gpu_hour: f64,
        power: &PowerModel,
        played: &[Played],
    ) -> Option<Figures> {
        let slowest = played.iter().reduce(|slowest, other| {
            if other.step.time > slowest.step.time {
                other
            } else {
                slowest
            }
        })?;
        let steps: Vec<&Step> = played.iter().map(|played| &played.step).collect();
        let mean = |of: fn(&Step) -> Time| Time::mean(steps.iter().map(|step| of(step)));
        let count = steps.len() as f64;
        let step_time = mean(|step| step.time);
        let provenance = steps
            .iter()
            .flat_map(|step| step.stages.iter().map(|stage| stage.provenance))
            .fold(Provenance::Measured, Provenance::worse);
        let activity = Activity {
            step: step_time.as_secs_f64(),
            ..Activity::mean(steps.iter().copied())
        };
        let tokens = world.tokens;
        Some(Figures {
            step_time,
            step_time_p95: Time::p95(steps.iter().map(|step| step.time)),
            exposed_communication: mean(|step| step.exposed_communication),
            matrix_products: mean(|step| step.matrix_products),
            memory_bound: mean(|step| step.compute.saturating_sub(step.matrix_products)),
            memory_bytes: steps.iter().map(|step| step.memory_bytes).max()?,
            dropped_fraction: steps.iter().map(|step| step.dropped_fraction).sum::<f64>() / count,
            capacity_factor: steps.iter().map(|step| step.capacity_factor).sum::<f64>() / count,
            plans: slowest.plans.clone(),
            provenance,
            cost: Cost::new(world.gpus, tokens, &activity, per_gpu_hour, power),
        })
    }

    /// What these figures are held against others by.
    pub fn objectives(&self, world: &World, per_gpu_hour: f64) -> Objectives {
        Objectives::new(
            world,
            per_gpu_hour,
            self.step_time,
            self.memory_bytes,
            self.dropped_fraction,
        )
    }

    /// Time in which nothing ran on the slowest GPU: it waited for its host, or for others.
    pub fn waiting(&self) -> Time {
        self.step_time
            .saturating_sub(self.matrix_products)
            .saturating_sub(self.memory_bound)
            .saturating_sub(self.exposed_communication)
    }
}
