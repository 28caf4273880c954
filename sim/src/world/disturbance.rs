//! What disturbs a step, and one draw of it.

use super::unit;
use crate::engine::{PricedOp, Resource};
use crate::ir::{PerRank, Program, Stream};
use crate::spec::SpecError;
use crate::units::Time;
use moeplan_traces::random_stream;
use serde::{Deserialize, Serialize};

/// What may go wrong in a step, each with its distribution. The default disturbs nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Disturbances {
    /// Chance that a GPU is slow in a step.
    pub slow_gpu: f64,
    /// How many times longer the kernels of a slow GPU take.
    pub slow_gpu_factor: f64,
    /// Chance that a NIC runs at a reduced rate.
    pub degraded_nic: f64,
    /// How many times longer its exchanges take.
    pub degraded_nic_factor: f64,
    /// Chance that a NIC's link goes down during a step.
    pub flapping_nic: f64,
    /// Mean time it is down, milliseconds; exponential.
    pub flap_ms: f64,
    /// Mean share of every NIC's rate that others take, 0 to below 1; a step sees from none to twice
    /// that, evenly.
    pub background: f64,
}

impl Default for Disturbances {
    fn default() -> Self {
        Disturbances {
            slow_gpu: 0.0,
            slow_gpu_factor: 1.0,
            degraded_nic: 0.0,
            degraded_nic_factor: 1.0,
            flapping_nic: 0.0,
            flap_ms: 0.0,
            background: 0.0,
        }
    }
}

impl Disturbances {
    /// Checks every field.
    ///
    /// # Errors
    /// The first out of range.
    pub fn check(&self) -> Result<(), SpecError> {
        for (field, value) in [
            ("slow-gpu", self.slow_gpu),
            ("degraded-nic", self.degraded_nic),
            ("flapping-nic", self.flapping_nic),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(SpecError::new(field, "a chance from 0 to 1", value));
            }
        }
        for (field, value) in [
            ("slow-gpu-factor", self.slow_gpu_factor),
            ("degraded-nic-factor", self.degraded_nic_factor),
        ] {
            if !(1.0..=1e3).contains(&value) {
                return Err(SpecError::new(field, "a factor from 1 to 1000", value));
            }
        }
        if !(0.0..=1e6).contains(&self.flap_ms) {
            return Err(SpecError::new(
                "flap-ms",
                "0 to 1000000 milliseconds",
                self.flap_ms,
            ));
        }
        if !(0.0..0.5).contains(&self.background) {
            let expected = "a mean share from 0 to below 0.5 (a step may see twice as much)";
            return Err(SpecError::new("background", expected, self.background));
        }
        Ok(())
    }

    /// What disturbs step `index` of `world_size` GPUs. Every kind of trouble draws from a stream of its
    /// own, so that switching one on moves no other.
    pub fn draw(&self, seed: u64, index: u64, world_size: usize) -> Draw {
        let hit = |purpose: &str, chance: f64| -> Vec<usize> {
            if chance <= 0.0 {
                return Vec::new();
            }
            let mut rng = random_stream(seed, purpose, index, 0, 0);
            (0..world_size)
                .filter(|_| unit(&mut rng) < chance)
                .collect()
        };
        let mut outages = random_stream(seed, "world/outage", index, 0, 0);
        let mut background = random_stream(seed, "world/background", index, 0, 0);
        Draw {
            slow_gpus: hit("world/slow-gpu", self.slow_gpu),
            slow_gpu_factor: self.slow_gpu_factor,
            degraded_nics: hit("world/degraded-nic", self.degraded_nic),
            degraded_nic_factor: self.degraded_nic_factor,
            outages: hit("world/flapping-nic", self.flapping_nic)
                .into_iter()
                .map(|rank| {
                    let milliseconds = -self.flap_ms * (1.0 - unit(&mut outages)).ln();
                    (rank, Time::from_secs_f64(milliseconds * 1e-3))
                })
                .collect(),
            background_factor: 1.0 / (1.0 - 2.0 * self.background * unit(&mut background)),
        }
    }
}

/// What disturbs one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// Ranks whose kernels take longer.
    pub slow_gpus: Vec<usize>,
    /// By how much.
    pub slow_gpu_factor: f64,
    /// Ranks whose exchanges over the NIC take longer.
    pub degraded_nics: Vec<usize>,
    /// By how much.
    pub degraded_nic_factor: f64,
    /// Ranks whose first exchange over the NIC waits for the link.
    pub outages: Vec<(usize, Time)>,
    /// How much longer everything over NICs takes.
    pub background_factor: f64,
}

impl Draw {
    /// Whether nothing disturbs the step.
    pub fn is_calm(&self) -> bool {
        self.slow_gpus.is_empty()
            && self.degraded_nics.is_empty()
            && self.outages.is_empty()
            && self.background_factor <= 1.0
    }

    /// The prices of `program` under this draw. Who waits for whom is the engine's.
    pub fn apply(&self, program: &Program, priced: &[PricedOp]) -> Vec<PricedOp> {
        let mut priced = priced.to_vec();
        let mut outages = self.outages.clone();
        for (op, price) in program.ops.iter().zip(&mut priced) {
            let kernel = matches!(price.resource, Resource::Gemm | Resource::Memory);
            if kernel {
                slow(price, program, &self.slow_gpus, self.slow_gpu_factor);
                continue;
            }
            let over_nics = price.resource == Resource::Nic
                && op.stream == Stream::Communication
                && program.world_size > program.gpus_per_node;
            if !over_nics {
                continue;
            }
            if self.background_factor > 1.0 {
                price.alone = price.alone.map(|time| time.scale(self.background_factor));
            }
            slow(
                price,
                program,
                &self.degraded_nics,
                self.degraded_nic_factor,
            );
            for (rank, wait) in outages.drain(..) {
                let times = each(price, program);
                times[rank] += wait;
            }
        }
        priced
    }
}

fn slow(price: &mut PricedOp, program: &Program, ranks: &[usize], factor: f64) {
    if ranks.is_empty() || factor <= 1.0 {
        return;
    }
    let times = each(price, program);
    for &rank in ranks {
        times[rank] = times[rank].scale(factor);
    }
}

/// The times of every rank of its own.
fn each<'a>(price: &'a mut PricedOp, program: &Program) -> &'a mut Vec<Time> {
    if let PerRank::Same(time) = price.alone {
        price.alone = PerRank::Each(vec![time; program.world_size]);
    }
    match &mut price.alone {
        PerRank::Each(times) => times,
        PerRank::Same(_) => unreachable!("made one a rank above"),
    }
}
