//! Many draws of one step.

use super::{Disturbances, Percentiles};
use crate::engine::{Concurrency, PricedOp, step_time};
use crate::ir::Program;
use crate::spec::SpecError;
use crate::units::Time;
use rayon::prelude::*;

/// A step in the real world.
#[derive(Debug, Clone, PartialEq)]
pub struct WorldStep {
    /// Undisturbed.
    pub calm: Time,
    /// Over all draws, milliseconds.
    pub time_ms: Percentiles,
    /// Share of draws that disturbed nothing.
    pub calm_share: f64,
    /// Every draw, milliseconds, in order.
    pub draws_ms: Vec<f64>,
}

/// Plays `program` under `draws` draws of `disturbances`. The same for any number of threads: a draw
/// depends on the seed and its index alone.
///
/// # Errors
/// Disturbances out of range, or no draws.
pub fn study(
    program: &Program,
    priced: &[PricedOp],
    concurrency: Concurrency<'_>,
    disturbances: &Disturbances,
    draws: usize,
    seed: u64,
) -> Result<WorldStep, SpecError> {
    disturbances.check()?;
    let calm = step_time(program, priced, concurrency);
    let played: Vec<(f64, bool)> = (0..draws)
        .into_par_iter()
        .map(|index| {
            let draw = disturbances.draw(seed, index as u64, program.world_size);
            if draw.is_calm() {
                return (calm.as_ms_f64(), true);
            }
            let priced = draw.apply(program, priced);
            let time = step_time(program, &priced, concurrency);
            (time.as_ms_f64(), false)
        })
        .collect();
    let draws_ms: Vec<f64> = played.iter().map(|(time, _)| *time).collect();
    let Some(time_ms) = Percentiles::of(&draws_ms) else {
        return Err(SpecError::new("draws", "at least 1", draws));
    };
    let calm_draws = played.iter().filter(|(_, calm)| *calm).count();
    Ok(WorldStep {
        calm,
        time_ms,
        calm_share: calm_draws as f64 / draws as f64,
        draws_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{Load, Plan, Routing};
    use crate::cost::CostModel;
    use crate::cost::analytic::Analytic;
    use crate::engine::run;
    use crate::hardware::builtin;
    use crate::simulate::{Scenario, Trace, simulate_step};
    use crate::spec::{AllToAll, LayerSpec, Padding, Phase};
    use proptest::prelude::*;

    fn step(model: &Analytic) -> Trace {
        step_of(model, 16, Plan::PLAIN)
    }

    fn step_of(model: &Analytic, gpus: u64, plan: Plan) -> Trace {
        let spec = LayerSpec {
            tokens_per_step: 4_096,
            ..LayerSpec::default()
        };
        let layer = spec.resolve(gpus).unwrap();
        let scenario = Scenario {
            layer: &layer,
            gpus_per_node: 8,
            memory_bytes: u64::MAX,
            reserved_bytes: 0,
            model,
            phase: Phase::Training,
        };
        let load = Load::new(&layer, 1.0, Padding::Capacity, &Routing::Balanced);
        simulate_step(&scenario, plan, &load).unwrap()
    }

    fn check(disturbances: &Disturbances, draws: usize) -> WorldStep {
        let model = Analytic::new(&builtin("nd-a100-v4-80gb").unwrap()).unwrap();
        let trace = step(&model);
        let contention = model.concurrency();
        study(
            &trace.program,
            &trace.priced,
            contention,
            disturbances,
            draws,
            7,
        )
        .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Ranks that nothing tells apart are played once, whatever the program and the trouble.
        #[test]
        fn playing_ranks_together_changes_no_time(
            seed in 0u64..1000,
            all_to_all in prop::sample::select(vec![AllToAll::Linear, AllToAll::TwoDh, AllToAll::ThreeDh]),
            degree in prop::sample::select(vec![1u64, 4]),
            r in prop::sample::select(vec![0u64, 1]),
            chances in prop::array::uniform3(prop::sample::select(vec![0.0, 0.02, 0.3])),
        ) {
            let model = Analytic::new(&builtin("nd-a100-v4-80gb").unwrap()).unwrap();
            let plan = Plan { all_to_all, adaptive_r: r, forward_degree: degree, backward_degree: degree, ..Plan::PLAIN };
            let trace = step_of(&model, 64, plan);
            let [slow_gpu, degraded_nic, flapping_nic] = chances;
            let disturbances = Disturbances {
                slow_gpu, slow_gpu_factor: 1.5, degraded_nic, degraded_nic_factor: 3.0, flapping_nic, flap_ms: 20.0,
                background: 0.1,
            };
            let draw = disturbances.draw(seed, 0, 64);
            let priced = draw.apply(&trace.program, &trace.priced);
            let (all, _) = run(&trace.program, &priced, model.concurrency());
            let together = step_time(&trace.program, &priced, model.concurrency());
            prop_assert_eq!(all.step_time(), together);
        }
    }

    #[test]
    fn nothing_disturbs_by_default() {
        let found = check(&Disturbances::default(), 20);
        assert_eq!(found.calm_share, 1.0);
        assert_eq!(found.time_ms.p99.value, found.calm.as_ms_f64());
    }

    #[test]
    fn one_slow_gpu_of_all_slows_every_step_alike() {
        let found = check(
            &Disturbances {
                slow_gpu: 1.0,
                slow_gpu_factor: 2.0,
                ..Disturbances::default()
            },
            5,
        );
        assert_eq!(found.time_ms.p50.value, found.time_ms.p99.value);
        let ratio = found.time_ms.p50.value / found.calm.as_ms_f64();
        assert!((1.2..=2.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn an_outage_costs_what_it_lasts_on_average() {
        let found = check(
            &Disturbances {
                flapping_nic: 1.0 / 16.0,
                flap_ms: 50.0,
                ..Disturbances::default()
            },
            400,
        );
        // No NIC flaps in (15/16)^16 = 36 % of the steps.
        assert!(
            (found.calm_share - 0.36).abs() < 0.08,
            "{}",
            found.calm_share
        );
        assert!(found.time_ms.p95.value > found.calm.as_ms_f64() + 50.0);
    }

    #[test]
    fn percentiles_do_not_depend_on_threads() {
        let disturbances = Disturbances {
            slow_gpu: 0.05,
            slow_gpu_factor: 1.5,
            degraded_nic: 0.02,
            degraded_nic_factor: 4.0,
            background: 0.1,
            ..Disturbances::default()
        };
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| check(&disturbances, 40))
        };
        assert_eq!(on(1), on(4));
    }
}
