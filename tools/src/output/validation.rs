//! Validation for people.

use super::numbers::three;
use super::table::Grid;
use crate::validate::record::Worse;
use crate::validate::tables::{Accuracy, Row, TableKind};
use crate::validate::{Outcome, Status};
use std::fmt::Write;

/// Rows of a table that are shown; JSON and CSV hold all.
const SHOWN: usize = 12;

/// Published cases, then tables, then what is worse than recorded.
pub fn published(
    outcomes: &[Outcome],
    tables: &[(TableKind, Vec<Accuracy>)],
    worse: &[Worse],
) -> String {
    let mut grid = Grid::new([
        "case",
        "published",
        "ours",
        "unit",
        "error",
        "goal",
        "status",
    ]);
    for outcome in outcomes
        .iter()
        .filter(|outcome| outcome.simulated.is_some())
    {
        let status = match outcome.misses() {
            true => format!("{}, MISS", outcome.status.name()),
            false => outcome.status.name().to_string(),
        };
        grid.row([
            outcome.id.clone(),
            three(outcome.published),
            outcome.simulated.map_or("-".into(), three),
            outcome.unit.to_string(),
            outcome.relative_error.map_or("-".into(), signed),
            goal(outcome),
            status,
        ]);
    }
    let mut text = grid.render(24);
    let apart = outcomes
        .iter()
        .filter(|outcome| outcome.simulated.is_none())
        .count();
    let predicted: Vec<&Outcome> = outcomes
        .iter()
        .filter(|o| o.status == Status::Predicted && o.goal.is_some())
        .collect();
    let met = predicted.iter().filter(|outcome| !outcome.misses()).count();
    let _ = write!(
        text,
        "\n{met} of {} predicted figures with a goal meet it. fitted: a constant was fitted to it, so it proves \
         nothing.\nexcluded: setting not stated in full. {apart} more published figures are not simulated; \
         docs/VALIDATION.md lists them.\n",
        predicted.len()
    );
    if !tables.is_empty() {
        let classes: Vec<Accuracy> = tables
            .iter()
            .flat_map(|(_, classes)| classes.clone())
            .collect();
        let _ = write!(text, "\n{}", accuracy(&classes));
    }
    for worse in worse {
        let _ = writeln!(
            text,
            "WORSE than recorded: {}: error {} was {}",
            worse.id,
            unsigned(worse.now),
            unsigned(worse.recorded)
        );
    }
    text
}

fn goal(outcome: &Outcome) -> String {
    match (outcome.goal, outcome.unit) {
        (None, _) => "-".into(),
        (Some(goal), "%") => format!("{:.0} points", goal * 100.0),
        (Some(goal), _) => format!("{:.0}%", goal * 100.0),
    }
}

/// The worst rows of a table and its accuracy by class.
pub fn table(rows: &[Row], summary: &[Accuracy]) -> String {
    let mut worst: Vec<&Row> = rows.iter().collect();
    worst.sort_by(|a, b| b.relative_error.abs().total_cmp(&a.relative_error.abs()));
    let us = |ns: f64| format!("{} us", three(ns / 1e3));
    let mut grid = Grid::new(["worst rows", "measured", "ours", "error", "port bound"]);
    for row in worst.iter().take(SHOWN) {
        grid.row([
            row.label.clone(),
            us(row.measured_ns),
            us(row.simulated_ns),
            signed(row.relative_error),
            row.port_bound_ns.map_or("-".into(), us),
        ]);
    }
    format!("{}\n{}", grid.render(24), accuracy(summary))
}

fn accuracy(classes: &[Accuracy]) -> String {
    let mut grid = Grid::new(["class", "rows", "MAPE", "p95", "bias"]);
    for class in classes {
        grid.row([
            class.class.clone(),
            class.rows.to_string(),
            unsigned(class.mape),
            unsigned(class.p95),
            signed(class.bias),
        ]);
    }
    grid.render(24)
}

fn signed(share: f64) -> String {
    format!("{:+.1}%", share * 100.0)
}

fn unsigned(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}
