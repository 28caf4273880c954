//! Fits the `[collectives]` section of a hardware preset to measured tables and prints it as TOML.
//!
//! `cargo run --release -p moeplan-sim --example fit_nccl -- --data DIR > a100_nccl.toml`, where DIR
//! holds `calibration/a100_nccl_2.27.3_one_node.csv`, `ndm_a100_v4_nccl_multi_node.csv` and
//! `ndm_a100_v4_superbench.json`. Deterministic: linear least squares on relative errors with
//! non-negative coefficients, and grids for the two parameters that are not linear.
#![expect(clippy::print_stdout, reason = "a program whose result is its output")]

mod cross;
mod inter;
mod linear;
mod one_node;

use moeplan_sim::cost::nccl::{CollectiveKind, LibraryParams, Nccl, NcclParams, PerKind};
use moeplan_sim::cost::nccl_table::{NcclMeasurement, parse_nccl_table};
use serde::Serialize;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// What the printed file holds.
#[derive(Serialize)]
struct File {
    collectives: NcclParams,
}

/// The measurements of the three tables.
struct Data {
    one_node: Vec<NcclMeasurement>,
    multi_node: Vec<NcclMeasurement>,
    /// 8-GPU all-reduce of `SuperBench`: bytes, microseconds.
    all_reduce: Vec<(u64, f64)>,
    /// `ib_write`: bytes of a message, GB/s.
    ib_write: Vec<(u64, f64)>,
}

/// Four significant digits: more would pretend.
fn round(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

fn superbench(path: &Path) -> Result<serde_json::Value, Box<dyn Error>> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// The values whose key is `prefix`, a number, `suffix`; ascending.
fn series(json: &serde_json::Value, prefix: &str, suffix: &str) -> Vec<(u64, f64)> {
    let mut points: Vec<(u64, f64)> = json
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| {
            let size = key.strip_prefix(prefix)?.strip_suffix(suffix)?;
            Some((size.parse().ok()?, value.as_f64()?))
        })
        .collect();
    points.sort_by_key(|point| point.0);
    points
}

fn read(dir: &Path) -> Result<Data, Box<dyn Error>> {
    let at = |name: &str| dir.join("calibration").join(name);
    let table = |name: &str| -> Result<_, Box<dyn Error>> {
        Ok(parse_nccl_table(fs::File::open(at(name))?)?)
    };
    let json = superbench(&at("ndm_a100_v4_superbench.json"))?;
    Ok(Data {
        one_node: table("a100_nccl_2.27.3_one_node.csv")?,
        multi_node: table("ndm_a100_v4_nccl_multi_node.csv")?,
        all_reduce: series(&json, "nccl-bw/allreduce_", "_time"),
        ib_write: series(&json, "ib-loopback/ib_write_", "_ib0_bw"),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let dir = match args.as_slice() {
        [flag, dir] if flag == "--data" => PathBuf::from(dir),
        _ => return Err("usage: fit_nccl --data DIR".into()),
    };
    let data = read(&dir)?;
    let params = fit(&data)?;
    let model = Nccl::new(params.clone(), None)?;
    println!("# NCCL collectives on A100 SXM 80 GB, NVSwitch, one HDR NIC a GPU. Written by");
    println!("#   cargo run --release -p moeplan-sim --example fit_nccl -- --data ../shared/data");
    println!("# Fitted to (no table is part of this project):");
    println!("#   intra, library nccl-2.27.3: a100_sxm/comm/nccl of ai-dynamo/aiconfigurator");
    println!("#     @095f58a5, Apache-2.0: one node, 2 and 8 GPUs, 21 sizes, half and int8");
    println!("#   nic, library nccl-2.17.1: docs/performance-ndmv4.md of microsoft/mscclpp");
    println!("#     @85e664c2, MIT: 1x8, 2x1 and 2x8 GPUs of ND A100 v4, 1 KiB and 1 GiB");
    println!("#   library nccl-2.10.3, NIC by message size: v0.4.0 Azure-NDmv4-A100 of");
    println!("#     microsoft/superbench-results @5e77aa78, MIT (mean of 729 nodes)");
    println!("#   tuner: constants of src/graph/tuning.cc and src/enqueue.cc of NVIDIA/nccl");
    println!("#     v2.27.3-1, BSD-3-Clause: they choose the protocol only");
    println!("# A time is in us, a time per byte in ps; sizes follow nccl-tests.");
    cross::report(&data.one_node, &model)?;
    inter::report(&data, &params)?;
    println!("#");
    print!(
        "{}",
        toml::to_string(&File {
            collectives: params
        })?
    );
    Ok(())
}

/// All parameters from all tables.
fn fit(data: &Data) -> Result<NcclParams, Box<dyn Error>> {
    let tuner = one_node::tuner();
    let intra = one_node::fit(&data.one_node, &tuner);
    let ones = PerKind {
        all_to_all: 1.0,
        all_gather: 1.0,
        reduce_scatter: 1.0,
        all_reduce: 1.0,
    };
    let default_library = "nccl-2.27.3".to_owned();
    let fitted = LibraryParams {
        latency: ones,
        byte_time: ones,
        measured: CollectiveKind::ALL.to_vec(),
        fitted_bytes: [512, 512 << 20],
        fewest_gpus: 2,
    };
    let mut params = NcclParams {
        library: [(default_library.clone(), fitted)].into(),
        default_library,
        tuner,
        intra,
        nic: inter::start(&data.ib_write),
    };
    let newer = inter::library_2_17(data, &params)?;
    let older = inter::library_2_10(data, &params, &newer);
    params.library.insert("nccl-2.17.1".to_owned(), newer);
    params.library.insert("nccl-2.10.3".to_owned(), older);
    params.nic = inter::fit_nic(data, &params)?;
    Ok(params)
}
