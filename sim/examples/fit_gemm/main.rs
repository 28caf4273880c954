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
mod report;

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

fn run(folder: &Path, fast: bool) -> Result<(), Box<dyn Error>> {
    let gemm = gemm::run(folder, fast)?;
    let preset = gemm::Preset {
        gpu: gemm::Gpu { gemm },
    };
    println!("{}", toml::to_string(&preset)?);
    Ok(())
}
