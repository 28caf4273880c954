//! Fits the A100 kernel models to measured tables and prints their TOML sections.
//!
//! `cargo run --release -p moeplan-sim --example fit_gemm -- --data DIR [--fast]`
//!
//! `DIR` holds `calibration/a100_gemm_bf16.csv` and `calibration/a100_moe_ffn_vllm_0.14.0.csv`
//! (ai-dynamo/aiconfigator, Apache-2.0). `--fast` skips the leave-one-out groups. Deterministic:
//! the same tables give the same digits.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

mod descent;
mod gemm;
mod moe_ffn;
mod report;

use moeplan_sim::cost::gemm::GemmParams;
use moeplan_sim::cost::moe_ffn::MoeFfnParams;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut data = None;
    let mut fast = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--data" => data = arguments.next().map(PathBuf::from),
            "--fast" => fast = true,
            _ => data = None,
        }
    }
    let Some(data) = data else {
        eprintln!("usage: fit_gemm --data DIR [--fast]");
        return ExitCode::from(2);
    };
    match run(&data.join("calibration"), fast) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fit_gemm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The parts of a hardware preset that are fitted here.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Preset {
    gpu: Gpu,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Gpu {
    gemm: GemmParams,
    moe_ffn: MoeFfnParams,
}

/// Where the descent starts, and what is not fitted: tile shapes, ranges, datasheet rates.
const START: &str = include_str!("../../src/hardware/fitted/a100_gemm.toml");

fn run(folder: &Path, fast: bool) -> Result<(), Box<dyn Error>> {
    let start = toml::from_str::<Preset>(START)?.gpu;
    let gemm = gemm::run(folder, &start.gemm, fast)?;
    let moe_ffn = moe_ffn::run(folder, &start.moe_ffn)?;
    let gpu = Gpu { gemm, moe_ffn };
    println!("{}", toml::to_string(&Preset { gpu })?);
    Ok(())
}
