//! The fitted A100 models against the tables they were fitted to, where those are at hand:
//! in `$MOEPLAN_DATA`, or `../shared/data` beside the workspace.
#![expect(clippy::print_stderr, reason = "a skipped test must say so")]

use moeplan_sim::cost::gemm::{GemmParams, GemmShape};
use moeplan_sim::cost::gemm_table::GemmTable;
use moeplan_sim::cost::moe_ffn::MoeFfnParams;
use moeplan_sim::cost::moe_table::read_moe_ffn_rows;
use moeplan_sim::cost::provenance::Provenance;
use moeplan_sim::spec::DType;
use moeplan_sim::units::Time;
use std::path::PathBuf;

/// The path of a table, or `None` after saying loudly that the test checks nothing.
fn table(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MOEPLAN_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")),
        PathBuf::from,
    );
    let path = folder.join("calibration").join(name);
    if path.is_file() {
        return Some(path);
    }
    eprintln!("SKIPPED, NOTHING CHECKED: no {}", path.display());
    None
}

fn section<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let text = include_str!("../src/hardware/fitted/a100_gemm.toml");
    let preset: toml::Table = text.parse().expect("the preset is TOML");
    preset["gpu"][name]
        .clone()
        .try_into()
        .expect("the section fits")
}

fn gemm_rows(path: &PathBuf) -> Vec<(GemmShape, f64)> {
    #[derive(serde::Deserialize)]
    struct Row {
        m: u64,
        n: u64,
        k: u64,
        latency_ms: f64,
    }
    let mut reader = csv::Reader::from_path(path).expect("the table opens");
    let rows = reader.deserialize().map(|row| {
        let row: Row = row.expect("a row of the table");
        let shape = GemmShape::dense(row.m, row.n, row.k, DType::Bf16);
        (shape, row.latency_ms * 1e-3)
    });
    rows.collect()
}

/// Checks that the mean relative error in per cent is at most `limit`.
#[track_caller]
fn check_error(ratios: &[f64], limit: f64) {
    let error = ratios.iter().map(|r| (r - 1.0).abs()).sum::<f64>() / ratios.len() as f64;
    assert!(100.0 * error <= limit, "mean error {:.2} %", 100.0 * error);
}

#[test]
fn gemm_model_keeps_its_accuracy_in_every_size_class() {
    let Some(path) = table("a100_gemm_bf16.csv") else {
        return;
    };
    let params: GemmParams = section("gemm");
    let rows = gemm_rows(&path);
    for (low, high, limit) in [(1, 16, 8.2), (17, 128, 6.2), (129, 8192, 6.4)] {
        let class = rows.iter().filter(|row| (low..=high).contains(&row.0.m));
        let ratios: Vec<f64> = class
            .map(|(shape, measured)| params.estimate(shape).time.as_secs_f64() / measured)
            .collect();
        check_error(&ratios, limit);
    }
}

#[test]
fn half_of_a_table_predicts_the_other_half() {
    let Some(path) = table("a100_gemm_bf16.csv") else {
        return;
    };
    // A fixed hash of the row number halves the table.
    let known = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63 == 0;
    let rows = gemm_rows(&path);
    let loaded = (0..rows.len()).filter(|i| known(*i)).map(|i| rows[i]);
    let loaded = loaded.map(|(shape, seconds)| (shape, Time::from_secs_f64(seconds)));
    let table = GemmTable::from_rows(loaded, &section("gemm"));
    let mut ratios = Vec::new();
    for (i, (shape, measured)) in rows.iter().enumerate() {
        let estimate = table.estimate(shape);
        if known(i) {
            assert_eq!(estimate.provenance, Provenance::Measured);
        } else {
            ratios.push(estimate.time.as_secs_f64() / measured);
        }
    }
    check_error(&ratios, 4.4);
}

#[test]
fn moe_model_keeps_its_accuracy() {
    let Some(path) = table("a100_moe_ffn_vllm_0.14.0.csv") else {
        return;
    };
    let params: MoeFfnParams = section("moe-ffn");
    let ratios: Vec<f64> = read_moe_ffn_rows(std::fs::File::open(&path).unwrap())
        .unwrap()
        .iter()
        .map(|(shape, measured)| params.estimate(shape).time.as_secs_f64() / measured.as_secs_f64())
        .collect();
    check_error(&ratios, 10.0);
}
