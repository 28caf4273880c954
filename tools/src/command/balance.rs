//! `balance`: placement and balancing policies over the steps of a trace.

use super::compare::{settings, to_json};
use crate::error::{Error, Exit, Place};
use crate::output::Answer;
use crate::output::comparison;
use crate::output::numbers::{count, three, time, times};
use crate::output::table::{Grid, paragraph};
use crate::play::{refused, scenario};
use crate::resolve::balancing::balancing;
use crate::resolve::{Given, MAX_DROPLESS_GPUS, Planned, Resolved};
use crate::routing::shape_of;
use crate::session::Session;
use moeplan_sim::balance::{BalancedRun, BalancedStep, POLICIES};
use moeplan_sim::compile::Plan;
use moeplan_sim::policy::candidates;
use moeplan_sim::spec::{Choice, Padding, Policy, SpecError, Strategy};
use moeplan_sim::units::Time;
use moeplan_traces::RoutingStep;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// A recorded trace where nothing is said: balancing made-up even routing tells nothing.
pub fn defaults(given: &mut Given) {
    let (flags, file) = (&given.flags.routing, &mut given.file.routing);
    let said = |routing: &crate::settings::RoutingSettings| {
        routing.trace.is_some() || routing.routing.is_some()
    };
    if !said(flags) && !said(file) {
        file.trace = Some("digits".into());
    }
    let gpus = &mut given.file.cluster.gpus;
    *gpus = gpus.or(Some(64));
}

/// Tutel's choices, dropless: only there does it matter where experts sit.
pub fn strategies() -> Vec<Planned> {
    vec![Planned {
        strategy: Strategy {
            padding: Padding::Dropless,
            policy: Policy::Oracle,
            ..Strategy::tutel()
        },
        cover_routing: false,
    }]
}

struct Row {
    policy: &'static str,
    adaptive: bool,
    steps: Vec<BalancedStep>,
}

/// Runs every policy, with Tutel's choices fixed and adaptive.
///
/// # Errors
/// Settings that cannot be run.
pub fn run(
    given: &Given,
    resolved: &Resolved,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let wanted = given.flags.balance.over(&given.file.balance);
    let gpus = resolved.layer(0).world_size;
    if gpus > MAX_DROPLESS_GPUS {
        let message = format!("expected at most {MAX_DROPLESS_GPUS} without padding, found {gpus}");
        return Err(Error::input(Place::flag("--gpus"), message));
    }
    if resolved.layers.len() > 1 {
        let message = "expected one top-k for all steps: loads of different ones do not compare";
        return Err(Error::input(
            given.place(&["layer"], None, "top-k"),
            message,
        ));
    }
    let names = match wanted.balance.is_empty() {
        true => POLICIES.iter().map(|name| (*name).to_owned()).collect(),
        false => wanted.balance.clone(),
    };
    let policies = balancing(given, &names, ("balance", "balance"))?;
    let model = resolved.model()?;
    let scenario = scenario(resolved, &*model);
    let strategy = &resolved.strategies[0].strategy;
    let fixed = Plan {
        padding: Padding::Dropless,
        ..Plan::PLAIN
    };
    let adaptive = Strategy {
        padding: Padding::Dropless,
        // r = 0 multiplies rows where they are: no placement of experts matters then.
        adaptive_r: Choice::Fixed(1),
        ..strategy.clone()
    };
    let adaptive = candidates(&adaptive, scenario.layer).map_err(|error| refused(&error))?;
    let routing = session.on_threads(|| all_steps(resolved))??;
    let policies: Vec<_> = policies
        .iter()
        .map(|policy| Ok((policy.balancer(&scenario)?, policy.schedule)))
        .collect::<Result<_, SpecError>>()
        .map_err(|error| refused(&error))?;
    let jobs: Vec<_> = policies
        .iter()
        .flat_map(|policy| [(policy, false), (policy, true)])
        .collect();
    let rows = session.on_threads(|| {
        jobs.par_iter()
            .map(|((policy, schedule), adapts)| {
                let plans = if *adapts {
                    adaptive.clone()
                } else {
                    vec![fixed]
                };
                let mut run = BalancedRun::new(scenario, &**policy, *schedule, plans)?;
                let steps = routing.iter().map(|step| run.step(step));
                Ok(Row {
                    policy: policy.name(),
                    adaptive: *adapts,
                    steps: steps.collect::<Result<_, _>>()?,
                })
            })
            .collect::<Result<Vec<Row>, SpecError>>()
    })?;
    let rows = rows.map_err(|error| refused(&error))?;
    let first = mean(&rows[0], BalancedStep::time);
    let mut body = Map::new();
    body.insert("routing".into(), json!(resolved.routing.describe()));
    let runs = rows.iter().map(|row| as_json(row, gpus, first));
    body.insert("runs".into(), runs.collect());
    let mut shown = settings(resolved)?;
    if let Value::Object(map) = &mut shown {
        map.insert("balance".into(), to_json(&wanted)?);
    }
    let answer = Answer {
        command: "balance",
        settings: shown,
        seed: resolved.seed,
        body,
        rows: "runs",
        text: text(resolved, &rows, first, policies[0].1.every),
    };
    Ok((answer, Exit::Done))
}

fn all_steps(resolved: &Resolved) -> Result<Vec<RoutingStep>, Error> {
    (0..resolved.routing.len())
        .into_par_iter()
        .map(|index| match resolved.routing.step(index)? {
            Some(step) => Ok(Arc::unwrap_or_clone(step)),
            None => RoutingStep::uniform(&shape_of(resolved.layer(index))?, index as u64, 0)
                .map_err(|error| Error::Unexpected(error.to_string())),
        })
        .collect()
}

fn mean(row: &Row, of: impl Fn(&BalancedStep) -> Time) -> Time {
    let total: Time = row.steps.iter().map(of).sum();
    total.scale(1.0 / row.steps.len().max(1) as f64)
}

fn p95(row: &Row) -> Time {
    Time::p95(row.steps.iter().map(BalancedStep::time))
}

fn load(row: &Row) -> f64 {
    let total: f64 = row.steps.iter().map(|step| step.max_over_mean).sum();
    total / row.steps.len().max(1) as f64
}

fn moved(row: &Row) -> u64 {
    row.steps.iter().map(|step| step.moved).sum()
}

fn as_json(row: &Row, gpus: u64, first: Time) -> Value {
    let total = mean(row, BalancedStep::time);
    json!({
        "policy": row.policy,
        "adaptation": if row.adaptive { "tutel" } else { "none" },
        "gpus": gpus,
        "steps": row.steps.len(),
        "step_time_ns": total.as_ns(),
        "p95_step_time_ns": p95(row).as_ns(),
        "layer_time_ns": mean(row, |step| step.step).as_ns(),
        "migration_ns": mean(row, |step| step.migration).as_ns(),
        "copies_ns": mean(row, |step| step.copies).as_ns(),
        "experts_moved": moved(row),
        "max_over_mean_load": load(row),
        "speedup": first.as_secs_f64() / total.as_secs_f64(),
    })
}

fn text(resolved: &Resolved, rows: &[Row], first: Time, every: u64) -> String {
    let mut text = comparison::heading(resolved);
    text.push('\n');
    let mut grid = Grid::new([
        "placement",
        "Tutel adapts",
        "step, mean",
        "p95",
        "of it moving",
        "of it copies' gradients",
        "experts moved",
        "load, max/mean",
        "speed-up",
    ]);
    for row in rows {
        let total = mean(row, BalancedStep::time);
        grid.row([
            row.policy.to_owned(),
            if row.adaptive { "yes" } else { "no" }.into(),
            time(total.as_ns()),
            time(p95(row).as_ns()),
            time(mean(row, |step| step.migration).as_ns()),
            time(mean(row, |step| step.copies).as_ns()),
            count(moved(row)),
            three(load(row)),
            times(first.as_secs_f64() / total.as_secs_f64()),
        ]);
    }
    text += &grid.render(12);
    text.push('\n');
    text += &paragraph(
        &format!(
            "decided every {every} steps on the steps before; moving and, in training, summing the gradients of \
             copies are part of the step and hidden by nothing"
        ),
        2,
    );
    text
}
