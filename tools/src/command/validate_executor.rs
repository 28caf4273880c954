//! `validate executor`: the simulator of this machine against this machine.

use crate::calibrate::calibrate;
use crate::cli::ValidateArgs;
use crate::error::{Error, Exit, Place};
use crate::machine;
use crate::output::Answer;
use crate::output::numbers::{percent, time};
use crate::output::table::Grid;
use crate::session::Session;
use crate::settings::BackendKind;
use crate::validate::executor::{Case, Setting, Summary, cases, summarise};
use moeplan_sim::hardware::Hardware;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Goal of the mean error of step times.
const GOAL_MAPE: f64 = 0.15;
/// Goal of the share of picks within 5 % of the fastest.
const GOAL_PICKS: f64 = 0.9;
/// Rounds of a calibration made on the way.
const ROUNDS: usize = 5;

/// Runs `validate executor`; calibrates first where no hardware file of this machine is given.
///
/// # Errors
/// A missing part of the machine, a file of another kind of machine, or a run that fails.
pub fn run(
    args: &ValidateArgs,
    seed: u64,
    cluster: Option<(String, Hardware)>,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let mut backend = machine::backend(args.execute.backend.unwrap_or(BackendKind::Cpu))?;
    let (name, params) = match cluster {
        Some((name, hardware)) => match hardware.cpu {
            Some(params) => (name, params),
            None => {
                let message = format!("expected a file of `moeplan calibrate`, found `{name}`");
                return Err(Error::input(Place::flag("--cluster"), message));
            }
        },
        None => {
            session.note("no --cluster: calibrating this machine first");
            let calibration = calibrate(ROUNDS, None, session)?;
            if calibration.interrupted {
                return Err(Error::input(
                    Place::default(),
                    "interrupted while calibrating",
                ));
            }
            ("calibrated now".to_owned(), calibration.params)
        }
    };
    let setting = Setting {
        ranks: args.execute.ranks.unwrap_or(4),
        steps: args.steps.unwrap_or(5),
        repeats: args.execute.repeats.unwrap_or(5).max(1),
        seed,
    };
    if !(1..=64).contains(&setting.ranks) {
        let message = format!("expected 1 to 64, found {}", setting.ranks);
        return Err(Error::input(Place::flag("--ranks"), message));
    }
    let cases = cases(&params, setting, &mut *backend, session)?;
    let summary = summarise(&cases);
    let (backend, cores) = (backend.name(), machine::cores());
    let body: Map<String, Value> = [
        (
            "machine".to_owned(),
            json!({"processor": machine::processor(), "cores": cores, "backend": backend}),
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
            "ranks": setting.ranks,
            "steps": setting.steps,
            "repeats": setting.repeats,
        }),
        seed,
        text: text(&cases, &summary, setting),
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

fn text(cases: &[Case], summary: &Summary, setting: Setting) -> String {
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
        "\n{} ranks on this machine ({}, {} cores); {} cases, median of {} repeats, which differ by {} (median)\n\
         step time: MAPE {} (goal {}, {}), p95 {}, bias {:+.1} %\n\
         strategies: rank correlation {:.2}, regret of our pick {} on average, within 5 % of the fastest in {} of steps \
         (goal {}, {})\n\
         peak memory: at most {} off (goal 15.0 %, {})\n",
        setting.ranks,
        machine::processor(),
        machine::cores(),
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
    text.push_str("core time by stage, MAPE:");
    for (stage, error) in &summary.stage_mape {
        let _ = write!(text, " {stage} {}", percent(*error));
    }
    text.push('\n');
    text
}
