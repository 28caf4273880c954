//! `validate executor`: the simulator of this machine against this machine.

use crate::calibrate::cpu::calibrate;
use crate::error::{Error, Exit, Place};
use crate::machine::{self, Gpus};
use crate::output::Answer;
use crate::output::numbers::{percent, time};
use crate::output::table::Grid;
use crate::resolve::{Given, cluster, is_default};
use crate::session::Session;
use crate::settings::BackendKind;
use crate::validate::executor::{Case, Setting, Sizes, Summary, cases, summarise};
use crate::validate::predict::Constants;
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::spec::DType;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Goal of the mean error of step times.
const GOAL_MAPE: f64 = 0.15;
/// Goal of the share of picks within 5 % of the fastest.
const GOAL_PICKS: f64 = 0.9;
/// Rounds of a calibration made on the way.
const ROUNDS: usize = 5;

/// Runs `validate executor`. On the CPU it calibrates first where no hardware file of this machine is given.
///
/// # Errors
/// A missing part of the machine, a file of another kind of machine, or a run that fails.
pub fn run(given: &Given, session: &mut Session<'_>) -> Result<(Answer, Exit), Error> {
    let execute = given.flags.execute.over(&given.file.execute);
    let validate = given.flags.validate.over(&given.file.validate);
    let kind = execute.backend.unwrap_or_default();
    let place = given.place(&["execute"], None, "devices");
    let mut backend = machine::backend(kind, Gpus::new(&execute, true, place)?)?;
    let setting = Setting {
        sizes: Sizes::of(kind).map(|sizes| Sizes {
            tokens_per_step: validate.tokens_per_step.unwrap_or(sizes.tokens_per_step),
            model_dim: validate.model_dim.unwrap_or(sizes.model_dim),
            hidden_dim: validate.hidden_dim.unwrap_or(sizes.hidden_dim),
            ..sizes
        }),
        dtype: validate.dtype.unwrap_or(match kind {
            BackendKind::Cpu => DType::Fp32,
            BackendKind::Cuda => DType::Bf16,
        }),
        ranks: execute.ranks.unwrap_or(4),
        steps: validate.steps.unwrap_or(5),
        repeats: execute.repeats.unwrap_or(5).max(1),
        seed: given.seed(),
    };
    if !(1..=64).contains(&setting.ranks) {
        let message = format!("expected 1 to 64, found {}", setting.ranks);
        let place = given.place(&["execute"], None, "ranks");
        return Err(Error::input(place, message));
    }
    let (name, constants) = constants(given, kind, session)?;
    let cases = cases(&constants, setting, &mut *backend, session)?;
    let summary = summarise(&cases);
    let place = format!(
        "{} backend, {} ({}, {} cores)",
        backend.name(),
        backend.place(),
        machine::processor(),
        machine::cores()
    );
    let body: Map<String, Value> = [
        (
            "machine".to_owned(),
            json!({
                "processor": machine::processor(),
                "cores": machine::cores(),
                "backend": backend.name(),
                "place": backend.place(),
            }),
        ),
        ("cases".to_owned(), json!(cases)),
        ("summary".to_owned(), json!(summary)),
    ]
    .into_iter()
    .collect();
    let answer = Answer {
        command: "validate executor",
        settings: json!({
            "cluster": name,
            "dtype": setting.dtype,
            "ranks": setting.ranks,
            "steps": setting.steps,
            "repeats": setting.repeats,
        }),
        seed: setting.seed,
        text: text(&cases, &summary, setting, &place),
        body,
        rows: "cases",
    };
    let exit = if session.is_interrupted() {
        Exit::Interrupted
    } else {
        Exit::Done
    };
    Ok((answer, exit))
}

/// What predictions are made with: a file of `moeplan calibrate`, measured now if there is none; or a GPU's constants.
fn constants(
    given: &Given,
    kind: BackendKind,
    session: &mut Session<'_>,
) -> Result<(String, Constants), Error> {
    let wrong = |expected: &str, found: &str| {
        let message = format!("expected {expected}, found `{found}`");
        Error::input(Place::flag("--cluster"), message)
    };
    let named = !is_default(given);
    match kind {
        BackendKind::Cuda => {
            let (name, hardware) = cluster(given)?;
            if hardware.cpu.is_some() {
                return Err(wrong("a cluster of GPUs", &name));
            }
            let model = Analytic::new(&hardware)?;
            Ok((name, Constants::Gpu(Box::new(model))))
        }
        BackendKind::Cpu if named => {
            let (name, hardware) = cluster(given)?;
            match hardware.cpu {
                Some(params) => Ok((name, Constants::Cpu(Box::new(params)))),
                None => Err(wrong("a file of `moeplan calibrate`", &name)),
            }
        }
        BackendKind::Cpu => {
            session.note("no --cluster: calibrating this machine first");
            let calibration = calibrate(ROUNDS, None, session)?;
            if calibration.interrupted {
                let message = "interrupted while calibrating";
                return Err(Error::input(Place::default(), message));
            }
            let name = "calibrated now".to_owned();
            Ok((name, Constants::Cpu(Box::new(calibration.params))))
        }
    }
}

fn text(cases: &[Case], summary: &Summary, setting: Setting, place: &str) -> String {
    let mut grid = Grid::new([
        "layer", "step", "strategy", "measured", "spread", "ours", "error",
    ]);
    for case in cases {
        grid.row([
            case.layer.clone(),
            case.step.to_string(),
            case.strategy.clone(),
            time(case.measured_ns),
            percent(case.spread),
            time(case.simulated_ns),
            format!("{:+.1} %", case.relative_error * 100.0),
        ]);
    }
    let mut text = grid.render(24);
    let verdict = |met: bool| if met { "met" } else { "MISSED" };
    let _ = write!(
        text,
        "\n{} ranks, {place}; {} cases, median of {} repeats, which differ by {} (median)\n\
         step time: MAPE {} (goal {}, {}), p95 {}, bias {:+.1} %\n\
         strategies: rank correlation {:.2}, regret of our pick {} on average, within 5 % of the fastest in {} of steps \
         (goal {}, {})\n\
         peak memory: at most {} off (goal 15.0 %, {})\n",
        setting.ranks,
        summary.cases,
        setting.repeats,
        percent(summary.spread),
        percent(summary.mape),
        percent(GOAL_MAPE),
        verdict(summary.mape <= GOAL_MAPE),
        percent(summary.p95),
        summary.bias * 100.0,
        summary.rank_correlation,
        percent(summary.mean_regret),
        percent(summary.picks_within_5_percent),
        percent(GOAL_PICKS),
        verdict(summary.picks_within_5_percent >= GOAL_PICKS),
        percent(summary.memory_error_max),
        verdict(summary.memory_error_max <= 0.15),
    );
    text.push_str("kernels by stage, MAPE:");
    for (stage, error) in &summary.stage_mape {
        let _ = write!(text, " {stage} {}", percent(*error));
    }
    text.push('\n');
    text
}
