//! The CUDA backend on a real GPU, against the oracle. Where there is none, every test says SKIPPED.
//!
//! What the stand-in driver cannot show is what these are for: NVIDIA's compiler, driver and cuBLAS, kernels that really run
//! at once, and sizes beyond the oracle, which are held against the CPU backend.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic, and says what it skips"
)]

#[path = "../fixture/any.rs"]
mod any;
#[path = "../fixture/mod.rs"]
mod fixture;

use any::any_step;
use fixture::cases::{CASES, bits, case, off_the_kink};
use fixture::{layer, relative, run, wide};
use moeplan_executor::cpu::Cpu;
use moeplan_executor::cuda::{Cuda, Settings};
use moeplan_executor::{Executed, Inputs, RankOutputs, Routing};
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{AllToAll, DType, Padding, ResolvedLayer};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;

/// Ways to run the same step on one GPU.
fn settings() -> [Settings; 3] {
    let base = Settings::default();
    [
        Settings {
            without_blas: true,
            buffers_apart: true,
            ..base.clone()
        },
        Settings {
            ranks_apart: true,
            ..base.clone()
        },
        base,
    ]
}

/// The backend on this machine's GPU.
fn gpu(settings: Settings) -> Option<Cuda> {
    match Cuda::probe(settings) {
        Ok(cuda) => Some(cuda),
        Err(why) => {
            println!("SKIPPED: {why}");
            None
        }
    }
}

#[test]
fn every_case_is_the_oracle_in_every_number_type() {
    for settings in settings() {
        let Some(mut gpu) = gpu(settings) else { return };
        println!("{gpu:?}, cuBLAS: {}", gpu.has_blas());
        for dtype in DType::ALL {
            for name in CASES {
                println!("{name} in {dtype}");
                case(name).of(dtype).hold(&mut gpu).unwrap();
            }
        }
    }
}

#[test]
fn every_plan_is_the_layer() {
    for settings in settings() {
        let Some(gpu) = gpu(settings).map(RefCell::new) else {
            return;
        };
        let config = ProptestConfig {
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let held = TestRunner::new(config).run(&any_step(), |case| {
            case.hold(&mut *gpu.borrow_mut()).unwrap();
            Ok(())
        });
        held.unwrap_or_else(|why| panic!("{why}"));
    }
}

/// Kernels of eight ranks on twenty-four streams at once: a wait that is missing shows as bits that change.
#[test]
fn runs_repeat_bit_for_bit() {
    for settings in settings() {
        let Some(mut gpu) = gpu(settings) else { return };
        for padding in Padding::ALL {
            let (layer, plan) = large(*padding);
            let inputs = Inputs::random(&layer, 12, Routing::Gate);
            let digests: Vec<u64> = (0..8)
                .map(|_| bits(&run(&layer, 4, plan, &inputs, &mut gpu).unwrap().ran.ranks))
                .collect();
            assert!(
                digests.windows(2).all(|pair| pair[0] == pair[1]),
                "{padding}: {digests:?}"
            );
        }
    }
}

#[test]
fn a_large_step_is_that_of_the_cpu() {
    for settings in settings() {
        let Some(mut gpu) = gpu(settings) else { return };
        for padding in Padding::ALL {
            let (layer, plan) = large(*padding);
            let mut inputs = Inputs::random(&layer, 3, Routing::Gate);
            off_the_kink(&mut inputs);
            let ours = run(&layer, 4, plan, &inputs, &mut gpu).unwrap();
            // Scores that differ by less than rounding may be chosen either way.
            let inputs = Inputs {
                routing: Routing::Forced(ours.tokens.clone()),
                ..inputs
            };
            let theirs = run(&layer, 4, plan, &inputs, &mut Cpu::new()).unwrap();
            let difference = difference(&ours.ran, &theirs.ran);
            println!("{padding}: off by {difference:e}");
            assert!(difference <= 1e-5, "{padding}: off by {difference:e}");
        }
    }
}

/// Eight ranks on two nodes, pipelined.
fn large(padding: Padding) -> (ResolvedLayer, Plan) {
    let plan = Plan {
        forward_degree: 4,
        backward_degree: 2,
        all_to_all: AllToAll::TwoDh,
        padding,
        ..Plan::PLAIN
    };
    (layer(8, 700, (328, 520), 16, 2, 1.0), plan)
}

/// The largest difference of a tensor over all ranks, relative to its norm.
fn difference(a: &Executed, b: &Executed) -> f64 {
    let tensors: [fn(&RankOutputs) -> &Vec<f32>; 4] = [
        |rank| &rank.output,
        |rank| &rank.token_gradient,
        |rank| &rank.gate_gradient,
        |rank| &rank.expert_gradient,
    ];
    let of = |tensor: fn(&RankOutputs) -> &Vec<f32>| {
        let all = |ran: &Executed| -> Vec<f64> {
            let ranks = ran.ranks.iter();
            ranks.flat_map(|rank| wide(tensor(rank))).collect()
        };
        relative(all(a), all(b))
    };
    tensors.into_iter().map(of).fold(0.0, f64::max)
}
