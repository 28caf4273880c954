//! A CPU whose threads are ranks: constants of every product and pass, of time around operations, and of cores shared.

use super::cases::{self, Purpose};
use super::{Calibration, Measured, Spread, fit, measured};
use crate::error::{Error, Place};
use crate::machine;
use crate::play::refused;
use crate::session::Session;
use moeplan_executor::cpu::{Cpu, overlap};
use moeplan_sim::cost::cpu::{CpuModel, Demand, Order};
use moeplan_sim::cost::price::price;
use moeplan_sim::engine::run;
use moeplan_sim::hardware::{CpuGemm, CpuParams, Curve};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Measures `rounds` rounds of all cases on this machine's cores. Runs are kept in `partial`, and those already there are
/// not repeated.
///
/// # Errors
/// A machine that refuses, or a file that cannot be read or written.
pub fn calibrate(
    rounds: usize,
    partial: Option<&Path>,
    session: &mut Session<'_>,
) -> Result<Calibration<CpuParams>, Error> {
    let cores = machine::cores();
    let cases = cases::cpu(cores).map_err(|error| refused(&error))?;
    let measured = measured(&cases, rounds, partial, &mut Cpu::new(), session)?;
    let beside = overlap(20)?;
    Ok(measured.calibration(params(cores, &measured.cases, beside)?))
}

fn of(measured: &[Measured], purpose: Purpose) -> impl Iterator<Item = &Measured> {
    measured.iter().filter(move |case| case.purpose == purpose)
}

fn params(cores: u64, measured: &[Measured], beside: (f64, f64)) -> Result<CpuParams, Error> {
    let lacking = |what: &str| {
        let message = format!("expected measurements of {what}, found none: run it again to go on");
        Error::input(Place::default(), message)
    };
    let mut products: BTreeMap<Order, Vec<([f64; 3], f64)>> = BTreeMap::new();
    let mut passes: BTreeMap<&'static str, Vec<(f64, f64)>> = BTreeMap::new();
    let operations = || of(measured, Purpose::Operations).flat_map(Measured::demands);
    for (demand, us) in operations() {
        match (&demand.products[..], demand.pass) {
            ([], Some((name, bytes))) => passes.entry(name).or_default().push((bytes, us)),
            ([only], None) => {
                let of_order = products.entry(only.order).or_default();
                of_order.push((only.shape, us / only.count));
            }
            (_, _) => {}
        }
    }
    let terms = |order| match products.get(&order) {
        Some(samples) => Ok(fit::gemm(samples)),
        None => Err(lacking("matrix products")),
    };
    let mut params = CpuParams {
        cores,
        launch_us: Curve(vec![[1.0, 1.0]]),
        meeting_us: Curve(vec![[1.0, 1.0]]),
        sharing: Curve(Vec::new()),
        gemm: CpuGemm {
            plain: terms(Order::Plain)?,
            right_transposed: terms(Order::RightTransposed)?,
            left_transposed: terms(Order::LeftTransposed)?,
        },
        passes: BTreeMap::new(),
        gemm_beside_copy: fit::rounded(beside.0),
        copy_beside_gemm: fit::rounded(beside.1),
    };
    // Where products and a pass come together, the pass is what the products leave.
    let model = CpuModel::new(&params, 1);
    for (demand, us) in operations().filter(|(demand, _)| !demand.products.is_empty()) {
        if let Some((name, bytes)) = demand.pass {
            let products = Demand {
                pass: None,
                ..demand
            };
            let left = (us - model.core_us(&products)).max(0.02 * us);
            passes.entry(name).or_default().push((bytes, left));
        }
    }
    for (name, samples) in passes {
        params
            .passes
            .extend(fit::curve(&samples).map(|curve| (name.to_owned(), curve)));
    }
    overheads(&mut params, measured);
    sharing(&mut params, measured);
    if params.sharing.0.is_empty() {
        return Err(lacking("ranks that share cores"));
    }
    Ok(params)
}

/// Time around operations and of meetings, from steps that hold nothing else.
fn overheads(params: &mut CpuParams, measured: &[Measured]) {
    let mut by_ranks: BTreeMap<usize, Vec<([f64; 2], f64)>> = BTreeMap::new();
    for case in of(measured, Purpose::Overheads) {
        let row = (case.overheads(), case.step_us);
        by_ranks
            .entry(case.program.world_size)
            .or_default()
            .push(row);
    }
    let (mut launch, mut meeting) = (Vec::new(), Vec::new());
    for (ranks, rows) in by_ranks {
        let [around, meet] = fit::non_negative(&rows);
        let positive = |us: f64| fit::rounded(us.max(0.01));
        launch.push([ranks as f64, positive(around)]);
        meeting.push([ranks as f64, positive(meet)]);
    }
    if !launch.is_empty() {
        (params.launch_us, params.meeting_us) = (Curve(launch), Curve(meeting));
    }
}

/// Measured steps over what the other constants make of them, by number of ranks.
fn sharing(params: &mut CpuParams, measured: &[Measured]) {
    params.sharing = Curve((0..=10).map(|power| [f64::from(1 << power), 1.0]).collect());
    let mut by_ranks: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for case in of(measured, Purpose::Sharing) {
        let ranks = case.program.world_size;
        let model = CpuModel::new(params, ranks as u64);
        let priced = price(&case.program, &model);
        let concurrency = moeplan_sim::cost::CostModel::concurrency(&model);
        let (timeline, _) = run(&case.program, &priced, concurrency);
        let ours = timeline.step_time().as_secs_f64() * 1e6;
        by_ranks
            .entry(ranks)
            .or_default()
            .push((case.step_us / ours).ln());
    }
    let mut points: Vec<[f64; 2]> = by_ranks
        .into_iter()
        .map(|(ranks, logs)| {
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            [ranks as f64, fit::rounded(mean.exp())]
        })
        .collect();
    // Beyond the ranks that were measured nothing is known: the last factor stays.
    if let Some(&[ranks, factor]) = points.last() {
        points.extend((1..=10).map(|power| [ranks * f64::from(1 << power), factor]));
    }
    params.sharing = Curve(points);
}

/// The hardware file.
///
/// # Errors
/// None of the user's.
pub fn to_toml(calibration: &Calibration<CpuParams>) -> Result<String, Error> {
    let failed = |error: toml::ser::Error| Error::Unexpected(format!("TOML: {error}"));
    #[derive(Serialize)]
    struct Document<'a> {
        cpu: &'a CpuParams,
    }
    let params = toml::to_string(&Document {
        cpu: &calibration.params,
    })
    .map_err(failed)?;
    let Spread {
        cases,
        rounds,
        step_time,
    } = calibration.spread;
    let (processor, cores) = (machine::processor(), calibration.params.cores);
    let memory = machine::memory_bytes(&Cpu::new()) as f64 / (1u64 << 30) as f64;
    Ok(format!(
        "# Measured by `moeplan calibrate` through the CPU executor: {cases} steps, medians of {rounds} rounds, \
         which differ by {:.0} % of the step time (median over the steps).\n\
         extends = \"cpu-base\"\nname = \"this-machine\"\n\
         description = \"{processor}, {cores} cores: ranks as threads\"\n\n\
         [gpu]\nname = \"core of {processor}\"\nmemory-gib = {memory:.1}\n\n\
         [node]\ngpus = 1024\n\n[software]\nname = \"moeplan executor, CPU backend, FP32\"\nreserved-gib = 0.0\n\n\
         {params}\n[sources]\n\"cpu\" = \"measured on this machine by moeplan {} calibrate\"\n\
         \"gpu.memory-gib\" = \"this machine, shared by all ranks\"\n\
         \"node.gpus\" = \"all ranks share one memory; nodes are simulated\"\n",
        step_time * 100.0,
        env!("CARGO_PKG_VERSION"),
    ))
}
