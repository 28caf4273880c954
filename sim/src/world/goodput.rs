//! Failures, checkpoints and restarts: how much of a month of training is work that stays.

use super::{Percentiles, unit};
use moeplan_traces::random_stream;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How a job fails and recovers. Times in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Failures {
    /// Nodes, any of which stops the job when it fails.
    pub nodes: u64,
    /// Mean time between failures of one node, hours; exponential.
    pub node_mtbf_hours: f64,
    /// Time to write a checkpoint, during which no work is done.
    pub checkpoint_s: f64,
    /// Time from a failure to the job's running again from its last checkpoint.
    pub restart_s: f64,
    /// Work between checkpoints; `None` for Daly's optimum.
    pub interval_s: Option<f64>,
    /// How long the job runs.
    pub days: f64,
}

/// A setting of [`Failures`] out of range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{field}`: expected {expected}, found {found}")]
pub struct GoodputError {
    /// Which.
    pub field: &'static str,
    /// What would have been accepted.
    pub expected: &'static str,
    /// What was given.
    pub found: f64,
}

/// What becomes of the time.
#[derive(Debug, Clone, PartialEq)]
pub struct Goodput {
    /// Mean time between failures of the job, seconds.
    pub mtbf_s: f64,
    /// Work between checkpoints, seconds.
    pub interval_s: f64,
    /// Young's optimum (1974), `sqrt(2 C M)`, seconds.
    pub young_s: f64,
    /// Daly's optimum (2006), seconds.
    pub daly_s: f64,
    /// Share of the time that is kept work, by the closed form for a job without end.
    pub expected: f64,
    /// The same over simulated runs.
    pub share: Percentiles,
    /// Lost by what, as mean shares of the time: checkpoints, lost work, restarts.
    pub lost: [f64; 3],
    /// Failures of a run, mean.
    pub failures: f64,
}

impl Failures {
    /// Mean time between failures of the job.
    pub fn mtbf_s(&self) -> f64 {
        self.node_mtbf_hours * 3600.0 / self.nodes as f64
    }

    /// Young's optimum: `sqrt(2 C M)`.
    pub fn young_s(&self) -> f64 {
        (2.0 * self.checkpoint_s * self.mtbf_s()).sqrt()
    }

    /// Daly's optimum of higher order: `sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + C / 18M) - C`, or M where a
    /// checkpoint takes longer than 2 M (J. T. Daly, Future Generation Computer Systems 22, 2006).
    pub fn daly_s(&self) -> f64 {
        let (c, m) = (self.checkpoint_s, self.mtbf_s());
        if c >= 2.0 * m {
            return m;
        }
        let ratio = c / (2.0 * m);
        self.young_s() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - c
    }

    /// Share of kept work in a job without end, for exponential failures that also strike
    /// checkpoints and restarts: `t / (M e^(R/M) (e^((t + C)/M) - 1))` (Daly 2006, Equation 13).
    pub fn expected(&self, interval_s: f64) -> f64 {
        let m = self.mtbf_s();
        let segment = ((interval_s + self.checkpoint_s) / m).exp_m1();
        interval_s / (m * (self.restart_s / m).exp() * segment)
    }

    fn check(&self) -> Result<(), GoodputError> {
        let checks = [
            ("nodes", self.nodes as f64, 1.0, 1e6, "1 to 1000000 nodes"),
            (
                "node-mtbf-hours",
                self.node_mtbf_hours,
                1e-2,
                1e9,
                "0.01 to 1e9 hours",
            ),
            (
                "checkpoint-s",
                self.checkpoint_s,
                1e-3,
                1e6,
                "0.001 to 1e6 seconds",
            ),
            ("restart-s", self.restart_s, 0.0, 1e6, "0 to 1e6 seconds"),
            (
                "interval-s",
                self.interval_s.unwrap_or(1.0),
                1e-2,
                1e9,
                "0.01 to 1e9 seconds",
            ),
            ("days", self.days, 1e-3, 1e4, "0.001 to 10000 days"),
        ];
        for (field, found, low, high, expected) in checks {
            if !(low..=high).contains(&found) {
                return Err(GoodputError {
                    field,
                    expected,
                    found,
                });
            }
        }
        // A run of hopelessly many failures would take as many draws as it has failures.
        if self.days * 86_400.0 / self.mtbf_s() > 1e7 {
            return Err(GoodputError {
                field: "node-mtbf-hours",
                expected: "at most 10,000,000 failures of the job in all",
                found: self.node_mtbf_hours,
            });
        }
        Ok(())
    }
}

/// Shares of one run: kept work, checkpoints, lost work, restarts; and its failures.
struct Run {
    shares: [f64; 4],
    failures: u64,
}

/// Runs the job `runs` times. Equal for any number of threads.
///
/// # Errors
/// A setting out of range.
pub fn goodput(failures: &Failures, runs: usize, seed: u64) -> Result<Goodput, GoodputError> {
    failures.check()?;
    if runs == 0 {
        return Err(GoodputError {
            field: "draws",
            expected: "at least 1",
            found: 0.0,
        });
    }
    let interval_s = failures
        .interval_s
        .unwrap_or_else(|| failures.daly_s().max(1e-2));
    let played: Vec<Run> = (0..runs as u64)
        .into_par_iter()
        .map(|index| play(failures, interval_s, seed, index))
        .collect();
    let shares: Vec<f64> = played.iter().map(|run| run.shares[0]).collect();
    let mean = |of: &dyn Fn(&Run) -> f64| played.iter().map(of).sum::<f64>() / runs as f64;
    let share = Percentiles::of(&shares).expect("at least one run");
    Ok(Goodput {
        mtbf_s: failures.mtbf_s(),
        interval_s,
        young_s: failures.young_s(),
        daly_s: failures.daly_s(),
        expected: failures.expected(interval_s),
        share,
        lost: [1, 2, 3].map(|kind| mean(&|run| run.shares[kind])),
        failures: mean(&|run| run.failures as f64),
    })
}

/// One run: from failure to failure, whole segments of work and checkpoint in between are kept.
fn play(failures: &Failures, interval: f64, seed: u64, index: u64) -> Run {
    let mut rng = random_stream(seed, "world/failures", index, 0, 0);
    let (end, mtbf) = (failures.days * 86_400.0, failures.mtbf_s());
    let segment = interval + failures.checkpoint_s;
    let [mut kept, mut checkpoints, mut lost, mut restarts] = [0.0; 4];
    let (mut now, mut count) = (0.0, 0);
    let mut restarting = false;
    while now < end {
        let until = -mtbf * (1.0 - unit(&mut rng)).ln();
        let fails = now + until < end;
        let span = until.min(end - now);
        now += span;
        let restart = if restarting { failures.restart_s } else { 0.0 };
        let running = (span - restart).max(0.0);
        restarts += span - running;
        let segments = (running / segment).floor();
        kept += segments * interval;
        checkpoints += segments * failures.checkpoint_s;
        let rest = running - segments * segment;
        if fails {
            lost += rest;
            count += 1;
            restarting = true;
        } else {
            // The job ends in order: its last work is kept.
            kept += rest.min(interval);
            checkpoints += (rest - interval).max(0.0);
        }
    }
    Run {
        shares: [kept, checkpoints, lost, restarts].map(|seconds| seconds / end),
        failures: count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn month(nodes: u64) -> Failures {
        Failures {
            nodes,
            node_mtbf_hours: 20_000.0,
            checkpoint_s: 60.0,
            restart_s: 600.0,
            interval_s: None,
            days: 30.0,
        }
    }

    /// Over a year the simulated mean meets the closed form.
    #[test]
    fn simulation_meets_the_closed_form() {
        for nodes in [16, 256, 2_048] {
            let year = Failures {
                days: 365.0,
                ..month(nodes)
            };
            let found = goodput(&year, 200, 1).unwrap();
            let error = found.share.mean / found.expected - 1.0;
            assert!(error.abs() < 0.005, "{nodes} nodes: {error:+.4}");
        }
    }

    /// Daly's interval is within a thousandth of the best of the closed form, found by search.
    #[test]
    fn dalys_interval_is_the_best() {
        for nodes in [16, 256, 2_048] {
            let job = month(nodes);
            let grid = (1..2_000).map(|step| job.expected(f64::from(step) * 10.0));
            let best = grid.fold(0.0, f64::max);
            assert!(job.expected(job.daly_s()) > best * 0.999);
            assert!(job.expected(job.young_s()) > best * 0.98);
        }
    }

    #[test]
    fn without_failures_only_checkpoints_cost() {
        let job = Failures {
            node_mtbf_hours: 1e9,
            interval_s: Some(940.0),
            ..month(1)
        };
        let found = goodput(&job, 3, 0).unwrap();
        assert!((found.share.mean - 0.94).abs() < 1e-3, "{:?}", found.share);
    }

    proptest! {
        #[test]
        fn shares_add_up(
            nodes in 1u64..4_096,
            mtbf in 100.0f64..1e5,
            checkpoint in 1.0f64..600.0,
            restart in 0.0f64..3_600.0,
        ) {
            let job = Failures { node_mtbf_hours: mtbf, checkpoint_s: checkpoint, restart_s: restart, days: 3.0, ..month(nodes) };
            let found = goodput(&job, 2, 5).unwrap();
            let total = found.share.mean + found.lost.iter().sum::<f64>();
            prop_assert!((total - 1.0).abs() < 1e-9, "{total}");
        }
    }

    #[test]
    fn bad_settings_are_named() {
        let bad = Failures {
            checkpoint_s: f64::NAN,
            ..month(8)
        };
        assert_eq!(goodput(&bad, 1, 0).unwrap_err().field, "checkpoint-s");
    }
}
