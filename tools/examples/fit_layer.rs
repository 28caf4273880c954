//! Fits the three constants of `a100_layer.toml` to the paper's layer results and prints the file.
//!
//! `cargo run --release -p moeplan --example fit_layer > sim/src/hardware/fitted/a100_layer.toml`

#![expect(
    clippy::print_stdout,
    reason = "the program's purpose is to print a file"
)]

use moeplan::validate::lab::{Lab, fast_kernels, table2_layer, tutel};
use moeplan_sim::hardware::{Hardware, builtin};
use moeplan_sim::spec::{AllToAll, LayerSpec, Layout, Strategy};

/// Published: Table 2, compute at 16 GPUs, ms.
const COMPUTE_16: f64 = 371.8;
/// Published: Figure 14, fast encode/decode over the baseline at 16 GPUs.
const FAST_KERNELS_16: f64 = 3.52;
/// Published: Table 2, All-to-All at 256 GPUs, ms.
const ALL_TO_ALL_256: f64 = 491.3;
/// Published: Figure 14, 2DH over linear at 2,048 GPUs.
const TWO_DH_2048: f64 = 4.25;

fn main() -> anyhow::Result<()> {
    let mut hardware = builtin("nd-a100-v4-80gb")?;
    // Each constant moves its own figure and hardly the others', so two rounds settle them all.
    for _ in 0..2 {
        hardware.software.gemm_efficiency = minimise(0.4, 1.0, |efficiency| {
            let lab = lab(&hardware, |h| h.software.gemm_efficiency = efficiency)?;
            let compute = lab
                .step(&table2_layer(), 16, &tutel(AllToAll::Linear, 1))?
                .compute
                .as_ms_f64();
            let layer = LayerSpec::default();
            let fast = fast_kernels(AllToAll::Linear, Layout::Conventional);
            let speedup = lab.ms(&layer, 16, &Strategy::fairseq())? / lab.ms(&layer, 16, &fast)?;
            Ok((compute / COMPUTE_16 - 1.0)
                .abs()
                .max((speedup / FAST_KERNELS_16 - 1.0).abs()))
        })?;
        hardware.network.congestion.half_nodes = minimise(20.0, 400.0, |half| {
            let lab = lab(&hardware, |h| h.network.congestion.half_nodes = half)?;
            let time = lab
                .step(&table2_layer(), 256, &tutel(AllToAll::Linear, 1))?
                .all_to_all
                .as_ms_f64();
            Ok((time / ALL_TO_ALL_256 - 1.0).powi(2))
        })?;
        hardware.network.congestion.peer_penalty = minimise(0.0, 40.0, |penalty| {
            let lab = lab(&hardware, |h| h.network.congestion.peer_penalty = penalty)?;
            let ms = |a2a| {
                lab.ms(
                    &LayerSpec::default(),
                    2_048,
                    &fast_kernels(a2a, Layout::Conventional),
                )
            };
            Ok((ms(AllToAll::Linear)? / ms(AllToAll::TwoDh)? / TWO_DH_2048 - 1.0).powi(2))
        })?;
    }
    println!(
        "# Fitted to the paper's layer results: three constants, no more. Written by
#   cargo run --release -p moeplan --example fit_layer
# Cases they were fitted to (never counted as predictions):
#   gemm-efficiency: table2/16/compute and fig14/16/fast-kernels, the larger of both errors made least
#   half-nodes:      table2/256/all-to-all
#   peer-penalty:    fig14/2048/2dh
[software]
gemm-efficiency = {:.3}

[network.congestion]
half-nodes = {:.1}
peer-penalty = {:.2}",
        hardware.software.gemm_efficiency,
        hardware.network.congestion.half_nodes,
        hardware.network.congestion.peer_penalty
    );
    Ok(())
}

fn lab(base: &Hardware, change: impl FnOnce(&mut Hardware)) -> anyhow::Result<Lab> {
    let mut hardware = base.clone();
    change(&mut hardware);
    Ok(Lab::new(hardware)?)
}

/// Golden-section search for the least of a function with one valley.
fn minimise(low: f64, high: f64, f: impl Fn(f64) -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let (mut low, mut high) = (low, high);
    let (mut left, mut right) = (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
    let (mut at_left, mut at_right) = (f(left)?, f(right)?);
    while high - low > 1e-4 * high {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - GOLDEN * (high - low);
            at_left = f(left)?;
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + GOLDEN * (high - low);
            at_right = f(right)?;
        }
    }
    Ok((low + high) / 2.0)
}
