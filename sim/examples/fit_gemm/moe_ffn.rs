//! The fit of the fused MoE kernel.

use crate::descent::{minimise, rounded};
use crate::report::{loss, summary};
use moeplan_sim::cost::moe_ffn::{MoeFfnParams, MoeFfnShape};
use moeplan_sim::cost::moe_table::read_moe_ffn_rows;
use moeplan_sim::units::Time;
use std::error::Error;
use std::fs::File;
use std::path::Path;

/// A shape and its measured time.
type Sample = (MoeFfnShape, Time);

fn free(params: &mut MoeFfnParams) -> Vec<&mut f64> {
    vec![
        &mut params.launch_us,
        &mut params.fill_us,
        &mut params.k_step_us,
        &mut params.lone_block,
        &mut params.hbm_gbps,
        &mut params.inter_passes,
        &mut params.hidden_passes,
        &mut params.unaligned,
        &mut params.small.tflops,
        &mut params.large.tflops,
        &mut params.tuned.tflops,
        &mut params.large.exposed_gbps,
        &mut params.tuned.exposed_gbps,
    ]
}

fn with(base: &MoeFfnParams, values: &[f64]) -> MoeFfnParams {
    let mut params = base.clone();
    for (slot, value) in free(&mut params).into_iter().zip(values) {
        *slot = *value;
    }
    params.lone_block = params.lone_block.min(1.0);
    for block in [&mut params.small, &mut params.large, &mut params.tuned] {
        // Datasheet.
        block.tflops = block.tflops.min(312.0);
    }
    params
}

fn ratio(params: &MoeFfnParams, (shape, measured): &Sample) -> f64 {
    params.estimate(shape).time.as_secs_f64() / measured.as_secs_f64()
}

fn fit(base: &MoeFfnParams, rows: &[Sample]) -> MoeFfnParams {
    let start: Vec<f64> = free(&mut base.clone()).into_iter().map(|x| *x).collect();
    let best = minimise(&start, 40, |values| {
        let params = with(base, values);
        loss(rows.iter().map(|sample| ratio(&params, sample)))
    });
    with(base, &best.into_iter().map(rounded).collect::<Vec<_>>())
}

fn held_out<K: Ord + Copy>(
    base: &MoeFfnParams,
    rows: &[Sample],
    group: impl Fn(usize, &Sample) -> K,
) -> Vec<(u64, f64)> {
    let keys: Vec<K> = rows.iter().enumerate().map(|(i, s)| group(i, s)).collect();
    let mut distinct = keys.clone();
    distinct.sort_unstable();
    distinct.dedup();
    let mut ratios = Vec::new();
    for fold in distinct {
        let tested = |i: &usize| keys[*i] == fold;
        let train: Vec<Sample> = (0..rows.len())
            .filter(|i| !tested(i))
            .map(|i| rows[i])
            .collect();
        let params = fit(base, &train);
        ratios.extend(
            (0..rows.len())
                .filter(tested)
                .map(|i| (rows[i].0.tokens, ratio(&params, &rows[i]))),
        );
    }
    ratios
}

fn print(title: &str, ratios: &[(u64, f64)]) {
    println!("# {title}");
    for (name, low, high) in [
        ("all", 0, u64::MAX),
        ("tokens <= 16", 0, 16),
        ("17..1024", 17, 1024),
        ("> 1024", 1025, u64::MAX),
    ] {
        let class: Vec<f64> = ratios
            .iter()
            .filter(|(tokens, _)| (low..=high).contains(tokens))
            .map(|(_, ratio)| *ratio)
            .collect();
        println!("#   {name:<12} {}", summary(&class));
    }
}

/// Cross-validates and fits the model from `start`; prints the errors.
pub(crate) fn run(folder: &Path, start: &MoeFfnParams) -> Result<MoeFfnParams, Box<dyn Error>> {
    let rows = read_moe_ffn_rows(File::open(folder.join("a100_moe_ffn_vllm_0.14.0.csv"))?)?;
    let mut rough = start.clone();
    for value in free(&mut rough) {
        let decade = 10f64.powf(value.log10().floor());
        *value = (*value / decade).round() * decade;
    }
    let hash = |i: usize| (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let folds = held_out(&rough, &rows, |i, _| hash(i) % 5);
    print("moe-ffn, 5-fold cross-validation", &folds);
    // A model (hidden, top-k) that the fit has never seen.
    let models = held_out(&rough, &rows, |_, (s, _)| (s.hidden, s.top_k));
    print("moe-ffn, leaving out one (hidden, top-k)", &models);
    let params = fit(start, &rows);
    let ratios: Vec<_> = rows
        .iter()
        .map(|r| (r.0.tokens, ratio(&params, r)))
        .collect();
    print("moe-ffn, fitted and tested on all rows", &ratios);
    Ok(params)
}
