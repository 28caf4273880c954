//! Cross-validation of the one-node fit.

use crate::one_node;
use moeplan_sim::cost::nccl::{CollectiveKind, Nccl};
use moeplan_sim::cost::nccl_table::NcclMeasurement;
use std::collections::BTreeSet;
use std::error::Error;

const MIB: u64 = 1 << 20;

/// A measurement and what a fit that had not seen it says: relative error.
struct Residual {
    kind: CollectiveKind,
    bytes: u64,
    error: f64,
}

fn residual(model: &Nccl, row: &NcclMeasurement) -> Residual {
    let time = model
        .estimate(row.kind, row.bytes, row.gpus, row.gpus_per_node)
        .time;
    Residual {
        kind: row.kind,
        bytes: row.bytes,
        error: time.as_secs_f64() / row.time.as_secs_f64() - 1.0,
    }
}

fn print(name: &str, residuals: &[&Residual]) {
    let n = residuals.len() as f64;
    let mut absolute: Vec<f64> = residuals.iter().map(|r| r.error.abs()).collect();
    absolute.sort_by(f64::total_cmp);
    let mean = absolute.iter().sum::<f64>() / n;
    let bias = residuals.iter().map(|r| r.error).sum::<f64>() / n;
    // The smallest value that 95% do not exceed.
    let p95 = absolute.get((absolute.len() * 95).div_ceil(100).saturating_sub(1));
    println!(
        "#   {name:<34} {:5.1}% {:5.1}% {:5.1}% {:+5.1}%",
        mean * 100.0,
        p95.unwrap_or(&f64::NAN) * 100.0,
        absolute.last().unwrap_or(&f64::NAN) * 100.0,
        bias * 100.0
    );
}

fn print_classes(name: &str, residuals: &[Residual]) {
    let small: Vec<&Residual> = residuals.iter().filter(|r| r.bytes < MIB).collect();
    let large: Vec<&Residual> = residuals.iter().filter(|r| r.bytes >= MIB).collect();
    print(&format!("{name}, below 1 MiB"), &small);
    print(&format!("{name}, from 1 MiB"), &large);
}

/// Prints the errors of `model`, which was fitted to all of `rows`, and of fits to parts of them.
pub(crate) fn report(rows: &[NcclMeasurement], model: &Nccl) -> Result<(), Box<dyn Error>> {
    let sizes: Vec<u64> = rows
        .iter()
        .map(|row| row.bytes)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let without = |held: &dyn Fn(u64) -> bool| -> Result<Vec<Residual>, Box<dyn Error>> {
        let kept: Vec<NcclMeasurement> = rows.iter().filter(|r| !held(r.bytes)).cloned().collect();
        let mut params = model.params().clone();
        params.intra = one_node::fit(&kept, &params.tuner);
        let model = Nccl::new(params, None)?;
        Ok(rows
            .iter()
            .filter(|r| held(r.bytes))
            .map(|r| residual(&model, r))
            .collect())
    };
    println!("# One node, relative error of time:       mean   p95   max   bias");
    let fitted: Vec<Residual> = rows.iter().map(|row| residual(model, row)).collect();
    print_classes("in sample", &fitted);
    let mut one_out = Vec::new();
    for &size in &sizes {
        one_out.extend(without(&|bytes| bytes == size)?);
    }
    print_classes("one size left out", &one_out);
    for kind in CollectiveKind::ALL {
        let of_kind: Vec<&Residual> = one_out.iter().filter(|r| r.kind == kind).collect();
        print(&format!("one size left out, {kind}"), &of_kind);
    }
    let index = |bytes: u64| sizes.partition_point(|&size| size < bytes);
    let mut half_out = without(&|bytes| index(bytes) % 2 == 0)?;
    half_out.extend(without(&|bytes| index(bytes) % 2 == 1)?);
    print_classes("every second size left out", &half_out);
    Ok(())
}
