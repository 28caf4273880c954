//! The fit of the dense GEMM model.

use crate::descent::{minimise, rounded};
use crate::report::{loss, summary};
use moeplan_sim::cost::gemm::{GemmParams, GemmShape};
use moeplan_sim::spec::DType;
use serde::Deserialize;
use std::error::Error;
use std::path::Path;

#[derive(Deserialize)]
struct Row {
    m: u64,
    n: u64,
    k: u64,
    latency_ms: f64,
}

/// One extent of a shape.
type Axis = fn(&GemmShape) -> u64;

type Sample = (GemmShape, f64);

fn free(params: &mut GemmParams) -> Vec<&mut f64> {
    let mut free = vec![
        &mut params.tensor_tflops,
        &mut params.launch_us,
        &mut params.fill_us,
        &mut params.fill_depth,
        &mut params.k_step_us,
        &mut params.lone_cta,
        &mut params.hbm_gbps,
        &mut params.store_gbps,
        &mut params.sm_store_gbps,
        &mut params.l2_gbps,
        &mut params.split_us,
        &mut params.split_gbps,
        &mut params.gemv_launch_us,
        &mut params.gemv_gbps,
        &mut params.gemv_depth_us,
    ];
    // The first tile defines what efficiency 1 is.
    free.extend(params.tiles.iter_mut().skip(1).map(|t| &mut t.efficiency));
    free
}

fn with(base: &GemmParams, values: &[f64]) -> GemmParams {
    let mut params = base.clone();
    for (slot, value) in free(&mut params).into_iter().zip(values) {
        *slot = *value;
    }
    // No tile is perfect: the fit may not claim more than the datasheet.
    params.tensor_tflops = params.tensor_tflops.min(312.0);
    // Tensor cores do TF32 at half the 16-bit rate (datasheet; superbench measured 127 : 261).
    params.tf32_tflops = params.tensor_tflops / 2.0;
    params
}

fn ratio(params: &GemmParams, (shape, measured): &Sample) -> f64 {
    params.estimate(shape).time.as_secs_f64() / measured
}

fn fit(base: &GemmParams, rows: &[Sample], most: usize) -> GemmParams {
    let stride = rows.len().div_ceil(most).max(1);
    // A stride prime to the table's own order, so that the part is as mixed as the whole.
    let part: Vec<Sample> = (0..rows.len() / stride)
        .map(|i| rows[i * 4099 % rows.len()])
        .collect();
    let start: Vec<f64> = free(&mut base.clone()).into_iter().map(|x| *x).collect();
    let best = minimise(&start, 40, |values| {
        let params = with(base, values);
        loss(part.iter().map(|sample| ratio(&params, sample)))
    });
    let digits: Vec<f64> = best.into_iter().map(rounded).collect();
    with(base, &digits)
}

/// Ratios of the rows for which `fold` is true after fitting on the others.
fn held_out(base: &GemmParams, rows: &[Sample], fold: impl Fn(usize) -> bool) -> Vec<(u64, f64)> {
    let train: Vec<Sample> = (0..rows.len())
        .filter(|i| !fold(*i))
        .map(|i| rows[i])
        .collect();
    let params = fit(base, &train, 1500);
    (0..rows.len())
        .filter(|i| fold(*i))
        .map(|i| (rows[i].0.m, ratio(&params, &rows[i])))
        .collect()
}

fn print(title: &str, ratios: &[(u64, f64)]) {
    println!("# {title}");
    for (name, low, high) in [
        ("all", 0, u64::MAX),
        ("m <= 16", 0, 16),
        ("m 17..128", 17, 128),
        ("m > 128", 129, u64::MAX),
    ] {
        let class: Vec<f64> = ratios
            .iter()
            .filter(|(m, _)| (low..=high).contains(m))
            .map(|(_, ratio)| *ratio)
            .collect();
        println!("#   {name:<10} {}", summary(&class));
    }
}

fn read(path: &Path) -> Result<Vec<Sample>, Box<dyn Error>> {
    let mut rows = Vec::new();
    for row in csv::Reader::from_path(path)?.deserialize() {
        let row: Row = row?;
        let shape = GemmShape::dense(row.m, row.n, row.k, DType::Bf16);
        rows.push((shape, row.latency_ms * 1e-3));
    }
    rows.sort_by_key(|(shape, _)| *shape);
    Ok(rows)
}

/// Cross-validates and fits the model; prints the errors and the TOML section.
pub(crate) fn run(
    folder: &Path,
    start: &GemmParams,
    fast: bool,
) -> Result<GemmParams, Box<dyn Error>> {
    let rows = read(&folder.join("a100_gemm_bf16.csv"))?;
    // Folds start from rough constants, not from the fitted ones: those have seen every row.
    let mut rough = start.clone();
    for value in free(&mut rough) {
        let decade = 10f64.powf(value.log10().floor());
        *value = (*value / decade).round() * decade;
    }

    // A row's fold is a hash of its number.
    let fold_of = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let folds = (0..5).flat_map(|f| held_out(&rough, &rows, |i| fold_of(i) % 5 == f));
    print("5-fold cross-validation", &folds.collect::<Vec<_>>());
    if !fast {
        let axes: [(&str, Axis); 3] = [("m", |s| s.m), ("n", |s| s.n), ("k", |s| s.k)];
        for (name, axis) in axes {
            let mut values: Vec<u64> = rows.iter().map(|row| axis(&row.0)).collect();
            values.sort_unstable();
            values.dedup();
            let left_out = values
                .iter()
                .flat_map(|value| held_out(&rough, &rows, |i| axis(&rows[i].0) == *value));
            print(
                &format!("leaving out one {name}"),
                &left_out.collect::<Vec<_>>(),
            );
        }
    }
    let params = fit(start, &rows, 4000);
    let ratios: Vec<_> = rows.iter().map(|r| (r.0.m, ratio(&params, r))).collect();
    print("fitted and tested on all rows", &ratios);
    Ok(params)
}
