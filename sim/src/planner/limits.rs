//! What a plan must meet, and how far one is from it.

use super::figures::Objectives;
use super::space::World;
use crate::units::Time;
use serde::Serialize;

/// What is asked for; everything not said is free. Memory of the GPU is always a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limits {
    /// Longest mean time of a step.
    pub step_time: Option<Time>,
    /// Fewest tokens a second, over all GPUs.
    pub tokens_per_second: Option<f64>,
    /// Most memory a GPU, below what it has.
    pub memory_bytes: Option<u64>,
    /// Most money an hour.
    pub cost_per_hour: Option<f64>,
    /// Most money for 10^9 tokens.
    pub cost_per_billion_tokens: Option<f64>,
    /// Largest share of token copies dropped.
    pub dropped_fraction: Option<f64>,
}

/// Which of the plans that meet all limits is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Least money for 10^9 tokens.
    Cheapest,
    /// Most tokens a second.
    Fastest,
}

impl Limits {
    /// What is wanted where nothing is said: the cheapest that is fast enough, or else the fastest.
    pub fn goal(&self) -> Goal {
        if self.step_time.is_some() || self.tokens_per_second.is_some() {
            Goal::Cheapest
        } else {
            Goal::Fastest
        }
    }
}

/// A limit that a plan does not meet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Violation {
    /// The limit, as on the command line.
    pub limit: &'static str,
    /// What is allowed.
    pub allowed: f64,
    /// What the plan has.
    pub found: f64,
    /// How far off, as a share of what is allowed.
    pub excess: f64,
}

/// Everything limits are held against; a bound on each is a bound on the violation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) step_time: Time,
    pub(super) objectives: Objectives,
    pub(super) cost_per_hour: f64,
    /// Memory of the GPU.
    pub(super) memory_available: u64,
}

impl Measured {
    pub(super) fn new(
        world: &World,
        per_gpu_hour: f64,
        memory_available: u64,
        step_time: Time,
        objectives: Objectives,
    ) -> Measured {
        Measured {
            step_time,
            objectives,
            cost_per_hour: world.gpus as f64 * per_gpu_hour,
            memory_available,
        }
    }
}

impl Limits {
    /// The limits that `measured` does not meet, the worst first.
    pub(super) fn violations(&self, measured: &Measured) -> Vec<Violation> {
        let Measured {
            step_time,
            objectives,
            cost_per_hour,
            memory_available,
        } = *measured;
        let memory = self.memory_bytes.unwrap_or(u64::MAX).min(memory_available);
        let tokens_per_second = 1.0 / objectives.seconds_per_token;
        let at_most = [
            (
                "memory",
                Some(memory as f64),
                objectives.memory_bytes as f64,
            ),
            (
                "step-time",
                self.step_time.map(Time::as_secs_f64),
                step_time.as_secs_f64(),
            ),
            ("budget", self.cost_per_hour, cost_per_hour),
            ("budget", self.cost_per_billion_tokens, objectives.cost),
            (
                "max-dropped",
                self.dropped_fraction,
                objectives.dropped_fraction,
            ),
        ];
        let mut violations: Vec<Violation> = at_most
            .into_iter()
            .filter_map(|(limit, allowed, found)| {
                let allowed = allowed.filter(|allowed| found > *allowed)?;
                Some(Violation {
                    limit,
                    allowed,
                    found,
                    excess: (found - allowed) / allowed.max(f64::MIN_POSITIVE),
                })
            })
            .collect();
        if let Some(least) = self.tokens_per_second
            && tokens_per_second < least
        {
            violations.push(Violation {
                limit: "tokens-per-second",
                allowed: least,
                found: tokens_per_second,
                excess: (least - tokens_per_second) / tokens_per_second.max(f64::MIN_POSITIVE),
            });
        }
        violations.sort_by(|a, b| b.excess.total_cmp(&a.excess));
        violations
    }

    /// How far off the worst limit is; 0 where all are met.
    pub(super) fn excess(&self, measured: &Measured) -> f64 {
        self.violations(measured)
            .first()
            .map_or(0.0, |worst| worst.excess)
    }
}
