//! `goodput`: a step under stragglers and bad links, and a month under failures.

use super::compare::{settings, to_json};
use crate::error::{Error, Exit};
use crate::output::Answer;
use crate::output::comparison;
use crate::output::numbers::{percent, three, time, times};
use crate::output::table::{Grid, paragraph};
use crate::play::{refused, scenario};
use crate::resolve::{Given, Resolved};
use crate::session::Session;
use moeplan_sim::compile::Routing;
use moeplan_sim::cost::CostModel;
use moeplan_sim::cost::model_of;
use moeplan_sim::policy::Runner;
use moeplan_sim::world::{
    Disturbances, Failures, Goodput, GoodputError, Interval, Percentiles, WorldStep, goodput, study,
};
use serde_json::{Map, Value, json};

/// Meta, The Llama 3 Herd of Models (arXiv 2407.21783, Section 3.3.4): 419 unexpected interruptions in 54 days on
/// 16,384 GPUs, 2,048 nodes of 8.
const NODE_MTBF_HOURS: f64 = 54.0 * 24.0 * 2_048.0 / 419.0;
const MAX_DRAWS: usize = 1_000_000;

/// Runs both studies.
///
/// # Errors
/// Settings that cannot be used.
pub fn run(
    given: &Given,
    resolved: &Resolved,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let wanted = given.flags.world.over(&given.file.world);
    let place = |field: &str| given.place(&["world"], None, field);
    let draws = wanted.draws.unwrap_or(1_000);
    if !(1..=MAX_DRAWS).contains(&draws) {
        let message = format!("expected 1 to {MAX_DRAWS}, found {draws}");
        return Err(Error::input(place("draws"), message));
    }
    let disturbances = Disturbances {
        slow_gpu: wanted.slow_gpu.unwrap_or(0.0),
        slow_gpu_factor: wanted.slow_gpu_factor.unwrap_or(1.5),
        degraded_nic: wanted.degraded_nic.unwrap_or(0.0),
        degraded_nic_factor: wanted.degraded_nic_factor.unwrap_or(2.0),
        flapping_nic: wanted.flapping_nic.unwrap_or(0.0),
        flap_ms: wanted.flap_ms.unwrap_or(1_000.0),
        background: wanted.background.unwrap_or(0.0),
    };
    disturbances.check().map_err(|error| {
        let message = format!("expected {}, found {}", error.expected, error.found);
        Error::input(place(error.field), message)
    })?;
    let mut hardware = resolved.hardware.clone();
    if let Some(oversubscription) = wanted.oversubscription {
        if !(1.0..=1e3).contains(&oversubscription) {
            let message = format!("expected 1 (non-blocking) to 1000, found {oversubscription}");
            return Err(Error::input(place("oversubscription"), message));
        }
        hardware.network.oversubscription = oversubscription;
    }
    let layer = resolved.layer(0);
    let failures = Failures {
        nodes: layer.world_size / resolved.gpus_per_node,
        node_mtbf_hours: wanted.node_mtbf_hours.unwrap_or(NODE_MTBF_HOURS),
        checkpoint_s: wanted.checkpoint_s.unwrap_or(60.0),
        restart_s: wanted.restart_s.unwrap_or(600.0),
        interval_s: wanted.interval_s,
        days: wanted.days.unwrap_or(30.0),
    };
    let month = session.on_threads(|| goodput(&failures, draws, resolved.seed))?;
    let month = month.map_err(|error: GoodputError| {
        let message = format!("expected {}, found {}", error.expected, error.found);
        Error::input(place(error.field), message)
    })?;
    let model = match resolved.study.prices.gemm_table {
        Some(_) => resolved.model()?,
        None => model_of(&hardware, layer.world_size)?,
    };
    let step = session.on_threads(|| disturbed(resolved, &*model, &disturbances, draws))??;
    let effective = month.share.mean * step.calm.as_ms_f64() / step.time_ms.mean;
    let mut body = Map::new();
    body.insert("step".into(), step_json(&step));
    body.insert("failures".into(), to_json(&failures)?);
    body.insert("goodput".into(), month_json(&month));
    body.insert("effective_share".into(), json!(effective));
    let csv = json!({
        "gpus": layer.world_size,
        "step_time_ns": step.calm.as_ns(),
        "step_p50_ms": step.time_ms.p50.value,
        "step_p95_ms": step.time_ms.p95.value,
        "step_p99_ms": step.time_ms.p99.value,
        "interval_s": month.interval_s,
        "goodput_mean": month.share.mean,
        "goodput_expected": month.expected,
        "effective_share": effective,
    });
    body.insert("runs".into(), json!([csv]));
    let mut shown = settings(resolved)?;
    if let Value::Object(map) = &mut shown {
        map.insert("world".into(), to_json(&disturbances)?);
        map.insert(
            "oversubscription".into(),
            json!(hardware.network.oversubscription),
        );
        map.insert("draws".into(), json!(draws));
    }
    let answer = Answer {
        command: "goodput",
        settings: shown,
        seed: resolved.seed,
        body,
        rows: "runs",
        text: text(resolved, &step, &month, &failures, effective),
    };
    Ok((answer, Exit::Done))
}

fn disturbed(
    resolved: &Resolved,
    model: &dyn CostModel,
    disturbances: &Disturbances,
    draws: usize,
) -> Result<WorldStep, Error> {
    let scenario = scenario(resolved, model);
    let strategy = resolved.strategies[0].strategy.clone();
    let routing = resolved.routing.step(0)?;
    let routing = Routing::of(routing.as_deref());
    let refused = |error: moeplan_sim::spec::SpecError| refused(&error);
    let mut runner = Runner::new(scenario, strategy, false).map_err(refused)?;
    let plan = runner.step(&routing).map_err(refused)?.step.plan;
    let trace = runner.trace(&routing, plan).map_err(refused)?;
    study(
        &trace.program,
        &trace.priced,
        model.concurrency(),
        disturbances,
        draws,
        resolved.seed,
    )
    .map_err(refused)
}

fn interval(interval: &Interval) -> Value {
    json!({ "value": interval.value, "low": interval.low, "high": interval.high })
}

fn percentiles(found: &Percentiles) -> Value {
    json!({
        "draws": found.draws,
        "mean": found.mean,
        "p50": interval(&found.p50),
        "p95": interval(&found.p95),
        "p99": interval(&found.p99),
    })
}

fn step_json(step: &WorldStep) -> Value {
    json!({
        "undisturbed_ns": step.calm.as_ns(),
        "time_ms": percentiles(&step.time_ms),
        "undisturbed_share": step.calm_share,
    })
}

fn month_json(month: &Goodput) -> Value {
    json!({
        "mtbf_s": month.mtbf_s,
        "interval_s": month.interval_s,
        "young_s": month.young_s,
        "daly_s": month.daly_s,
        "expected": month.expected,
        "share": percentiles(&month.share),
        "checkpoints": month.lost[0],
        "lost_work": month.lost[1],
        "restarts": month.lost[2],
        "failures": month.failures,
    })
}

fn text(
    resolved: &Resolved,
    step: &WorldStep,
    month: &Goodput,
    failures: &Failures,
    effective: f64,
) -> String {
    let mut text = comparison::heading(resolved);
    text.push('\n');
    let ms = |value: f64| time((value * 1e6).round() as u64);
    let mut grid = Grid::new(["", "p50", "p95", "p99", "mean"]);
    let mut line = |title: &str, found: &Percentiles, show: &dyn Fn(f64) -> String| {
        let cell = |interval: &Interval| {
            format!(
                "{} ({} to {})",
                show(interval.value),
                show(interval.low),
                show(interval.high)
            )
        };
        grid.row([
            title.to_owned(),
            cell(&found.p50),
            cell(&found.p95),
            cell(&found.p99),
            show(found.mean),
        ]);
    };
    line("step of the layer", &step.time_ms, &ms);
    line("kept work of the time", &month.share, &percent);
    text += &grid.render(40);
    text.push('\n');
    text += &paragraph(
        &format!(
            "in brackets: 95 % confidence by order statistics of {} draws; a step undisturbed takes {} ({} of the draws), \
             on average {} that",
            step.time_ms.draws,
            time(step.calm.as_ns()),
            percent(step.calm_share),
            times(step.time_ms.mean / step.calm.as_ms_f64()),
        ),
        2,
    );
    text += &paragraph(
        &format!(
            "{} nodes fail once in {} hours, {} times in {} days; a checkpoint of {} s every {} s of work (Young {} s, Daly {} s); \
             closed form {}; lost to checkpoints {}, to work done again {}, to restarts {}",
            failures.nodes,
            three(month.mtbf_s / 3600.0),
            three(month.failures),
            failures.days,
            failures.checkpoint_s,
            three(month.interval_s),
            three(month.young_s),
            three(month.daly_s),
            percent(month.expected),
            percent(month.lost[0]),
            percent(month.lost[1]),
            percent(month.lost[2]),
        ),
        2,
    );
    text += &paragraph(
        &format!(
            "both together: {} of an undisturbed cluster's work",
            percent(effective)
        ),
        2,
    );
    text
}
