//! Fits the three constants of `a100_model.toml` to the dense SwinV2-B rows of Tutel's Table 7 and prints
//! the file. No row of an MoE model is looked at.
//!
//! `cargo run --release -p moeplan-sim --example fit_model > sim/src/hardware/fitted/a100_model.toml`

#![expect(
    clippy::print_stdout,
    reason = "the program's purpose is to print a file"
)]

use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::hardware::{Framework, Hardware, builtin};
use moeplan_sim::model::{MemorySaving, ModelRun, Variant, preset, step};
use moeplan_sim::spec::Phase;
use std::error::Error;

/// Images per second and GPU, dense SwinV2-B: GPUs, training, inference.
const DENSE: [(u64, f64, f64); 3] = [
    (8, 291.0, 1198.0),
    (32, 288.0, 1195.0),
    (128, 256.0, 1103.0),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut hardware = builtin("nd-a100-v4-80gb")?;
    hardware.software.framework = Framework::default();
    let (_, training, inference) = DENSE[0];
    let passes = |hardware: &mut Hardware, forward: f64| {
        hardware.software.framework.forward_passes = forward;
    };
    let forward = meet(&hardware, passes, Phase::Forward, inference)?;
    passes(&mut hardware, forward);
    let passes = |hardware: &mut Hardware, backward: f64| {
        hardware.software.framework.backward_passes = backward;
    };
    let backward = meet(&hardware, passes, Phase::Training, training)?;
    passes(&mut hardware, backward);
    let mut best = (f64::INFINITY, 0.0);
    for step in 0..=200 {
        let loss = f64::from(step) * 1e-4;
        hardware.software.framework.loss_per_node = loss;
        let mut worst = 0.0f64;
        for (gpus, training, inference) in &DENSE[1..] {
            for (phase, published) in [(Phase::Training, training), (Phase::Forward, inference)] {
                worst = worst.max((rate(&hardware, *gpus, phase)? / published - 1.0).abs());
            }
        }
        if worst < best.0 {
            best = (worst, loss);
        }
    }
    println!(
        "# Fitted to the dense SwinV2-B rows of Tutel's Table 7: three constants, no more. Written by
#   cargo run --release -p moeplan-sim --example fit_model
# Cases they were fitted to (never counted as predictions):
#   forward-passes:  table7/8/dense/infer
#   backward-passes: table7/8/dense/train
#   loss-per-node:   table7/32/dense and table7/128/dense, the largest error made least
[software.framework]
forward-passes = {forward:.3}
backward-passes = {backward:.3}
loss-per-node = {:.4}",
        best.1
    );
    Ok(())
}

fn rate(hardware: &Hardware, gpus: u64, phase: Phase) -> Result<f64, Box<dyn Error>> {
    let model = preset("swinv2-moe-b", 1).ok_or("no such preset")??;
    let prices = Analytic::new(hardware)?;
    let run = ModelRun {
        model: &model,
        hardware,
        prices: &prices,
        gpus,
        gpus_per_node: 8,
        batch: model.batch,
        phase,
        saving: MemorySaving::default(),
        tensor_parallel: 1,
    };
    Ok(step(&run, &Variant::Dense)?.rate_per_gpu)
}

/// The value of a constant, which slows the more the larger it is, at which 8 GPUs reach `published`.
fn meet(
    hardware: &Hardware,
    set: impl Fn(&mut Hardware, f64),
    phase: Phase,
    published: f64,
) -> Result<f64, Box<dyn Error>> {
    let (mut low, mut high) = (0.1, 10.0);
    while high - low > 1e-4 {
        let middle = (low + high) / 2.0;
        let mut tried = hardware.clone();
        set(&mut tried, middle);
        if rate(&tried, 8, phase)? > published {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok((low + high) / 2.0)
}
