//! The committed fit against the tables it was fitted to, where they are at hand.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test, its helpers included, fails by panicking and says aloud what it skips"
)]

use moeplan_sim::cost::nccl::{CollectiveKind, Nccl, NcclParams};
use moeplan_sim::cost::nccl_table::{NcclMeasurement, parse_nccl_table};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct File {
    collectives: NcclParams,
}

fn model(library: &str) -> Nccl {
    let text = include_str!("../src/hardware/fitted/a100_nccl.toml");
    let file: File = toml::from_str(text).unwrap();
    Nccl::new(file.collectives, Some(library)).unwrap()
}

/// The calibration folder: `$MOEPLAN_DATA`, or `../shared/data` beside the workspace.
fn calibration() -> Option<PathBuf> {
    let dir = std::env::var_os("MOEPLAN_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
        PathBuf::from,
    );
    let dir = dir.join("calibration");
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!(
        "\n*** SKIPPED: no measured tables in {}; set MOEPLAN_DATA to check the NCCL fit ***\n",
        dir.display()
    );
    None
}

fn errors(model: &Nccl, rows: &[NcclMeasurement]) -> Vec<(u64, f64)> {
    rows.iter()
        .map(|row| {
            let time = model
                .estimate(row.kind, row.bytes, row.gpus, row.gpus_per_node)
                .time;
            (row.bytes, time.as_secs_f64() / row.time.as_secs_f64() - 1.0)
        })
        .collect()
}

/// Asserts on the mean of absolute errors, their 95th percentile and the mean error.
fn check(name: &str, mut errors: Vec<f64>, mean: f64, p95: f64, bias: f64) {
    let n = errors.len() as f64;
    let found_bias = errors.iter().sum::<f64>() / n;
    errors.iter_mut().for_each(|e| *e = e.abs());
    errors.sort_by(f64::total_cmp);
    let found_mean = errors.iter().sum::<f64>() / n;
    let found_p95 = errors[(errors.len() * 95).div_ceil(100) - 1];
    assert!(found_mean <= mean, "{name}: mean {found_mean}");
    assert!(found_p95 <= p95, "{name}: p95 {found_p95}");
    assert!(found_bias.abs() <= bias, "{name}: bias {found_bias}");
}

#[test]
fn one_node_times_are_met() {
    let Some(dir) = calibration() else { return };
    let file = std::fs::File::open(dir.join("a100_nccl_2.27.3_one_node.csv")).unwrap();
    let rows = parse_nccl_table(file).unwrap();
    let all = errors(&model("nccl-2.27.3"), &rows);
    let class = |large: bool| {
        let of_class = all.iter().filter(|e| (e.0 >= 1 << 20) == large);
        of_class.map(|e| e.1).collect::<Vec<_>>()
    };
    check("below 1 MiB", class(false), 0.04, 0.12, 0.01);
    check("from 1 MiB", class(true), 0.03, 0.09, 0.01);
}

#[test]
fn two_node_times_are_met() {
    let Some(dir) = calibration() else { return };
    let file = std::fs::File::open(dir.join("ndm_a100_v4_nccl_multi_node.csv")).unwrap();
    let rows = parse_nccl_table(file).unwrap();
    let model = model("nccl-2.17.1");
    // The fit has as many parameters as there are such rows: it meets them, or it is broken.
    let seen: Vec<NcclMeasurement> = rows
        .into_iter()
        .filter(|row| {
            let two_by_eight = row.gpus == 16 && row.kind != CollectiveKind::AllToAll;
            !two_by_eight
        })
        .collect();
    let all = errors(&model, &seen).into_iter().map(|e| e.1).collect();
    check("ND A100 v4", all, 0.002, 0.005, 0.002);
}

#[test]
fn an_older_release_is_met_by_two_factors() {
    let Some(dir) = calibration() else { return };
    let text = std::fs::read(dir.join("ndm_a100_v4_superbench.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let model = model("nccl-2.10.3");
    let mut all = Vec::new();
    for shift in 3..=33 {
        let bytes = 1_u64 << shift;
        let key = format!("nccl-bw/allreduce_{bytes}_time");
        let us = json[&key].as_f64().unwrap();
        let time = model.estimate(CollectiveKind::AllReduce, bytes, 8, 8).time;
        all.push(time.as_secs_f64() * 1e6 / us - 1.0);
    }
    check("SuperBench all-reduce", all, 0.075, 0.29, 0.03);
}

#[test]
fn the_nic_follows_rdma_write_by_message_size() {
    let Some(dir) = calibration() else { return };
    let text = std::fs::read(dir.join("ndm_a100_v4_superbench.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let model = model("nccl-2.17.1");
    let nic = &model.params().nic;
    let mut all = Vec::new();
    for shift in 9..=23 {
        let bytes = 1_u64 << shift;
        let key = format!("ib-loopback/ib_write_{bytes}_ib0_bw");
        let measured = json[&key].as_f64().unwrap();
        // What is left of `nic_rate` without NCCL's share of the wire.
        let share = nic.efficiency * 8.0 / (8.0 + nic.peer_half);
        let rate = model.nic_rate(bytes, 8, 1.0).rate.gbps() / share;
        all.push(rate / measured - 1.0);
    }
    check("ib_write", all, 0.02, 0.12, 0.02);
}
