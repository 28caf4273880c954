//! `docs/VALIDATION.md`, written from the outcomes.

use super::record::Entry;
use super::{Outcome, Status};
use std::fmt::Write;

const HEAD: &str = "\
# Validation

Written by `cargo run --release -- validate --markdown docs/VALIDATION.md`; do not edit. The same
command without a flag prints the cases and exits with 5 if any figure is worse than recorded.

How to read it. **Predicted**: no constant was fitted to the figure. **Fitted**: a constant was, or
the figure contains one it was fitted to; it says nothing about accuracy. **Excluded**: the setting
is not stated in full, or is not simulated; shown for orientation, never counted. Errors are ours over
theirs, less one; for gains in percent they are the error of the ratio of times behind the gain.
A figure marked **miss** is outside the goal set for it.
";

const FINDINGS: &str = include_str!("findings.md");

/// The whole document.
pub fn markdown(outcomes: &[Outcome], tables: &[Entry]) -> String {
    let mut text = String::from(HEAD);
    summary(&mut text, outcomes);
    text.push_str("\n## Published figures of the paper\n");
    let mut source = "";
    for outcome in outcomes {
        if outcome.source != source {
            source = &outcome.source;
            let _ = write!(
                text,
                "\n### {source}\n\n| case | what | unit | published | ours | error | goal | status |\n|---|---|---|---:|---:|---:|---:|---|\n"
            );
        }
        row(&mut text, outcome);
    }
    text.push_str("\n## Measured tables\n\n");
    text.push_str(
        "Errors of the built-in models over every row of the tables of `../shared/data`, in sample; what \
         the same models reach on rows left out of the fit is in the head of each file under \
         `sim/src/hardware/fitted/`. Reproduce with `cargo run --release -- validate --data DIR`.\n\n\
         | table and class | rows | MAPE | p95 | bias |\n|---|---:|---:|---:|---:|\n",
    );
    for entry in tables {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            entry.id.trim_start_matches("table/"),
            entry.rows,
            percent(entry.error, false),
            percent(entry.p95, false),
            percent(entry.bias, true)
        );
    }
    text.push('\n');
    text.push_str(FINDINGS);
    text
}

fn summary(text: &mut String, outcomes: &[Outcome]) {
    let of = |status: Status| {
        outcomes
            .iter()
            .filter(move |outcome| outcome.status == status)
    };
    let with_goal: Vec<&Outcome> = of(Status::Predicted)
        .filter(|outcome| outcome.goal.is_some())
        .collect();
    let met = with_goal.iter().filter(|outcome| !outcome.misses()).count();
    let _ = write!(
        text,
        "\n{} predicted figures have a goal; {met} meet it. {} more are predicted without one, {} fitted, {} excluded.\n",
        with_goal.len(),
        of(Status::Predicted).count() - with_goal.len(),
        of(Status::Fitted).count(),
        of(Status::Excluded).count()
    );
}

fn row(text: &mut String, outcome: &Outcome) {
    let number = |value: f64| match value.abs() {
        100.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let goal = outcome
        .goal
        .map_or(String::new(), |goal| match outcome.unit {
            "%" => format!("{:.0} points", goal * 100.0),
            _ => percent(goal, false),
        });
    let mut status = outcome.status.name().to_string();
    if outcome.misses() {
        status.push_str(", **miss**");
    }
    if !outcome.note.is_empty() {
        let _ = write!(status, ": {}", outcome.note);
    }
    let _ = writeln!(
        text,
        "| `{}` | {} | {} | {} | {} | {} | {} | {} |",
        outcome.id,
        outcome.quantity,
        outcome.unit,
        number(outcome.published),
        outcome.simulated.map_or("not simulated".into(), number),
        outcome
            .relative_error
            .map_or(String::new(), |error| percent(error, true)),
        goal,
        status
    );
}

fn percent(value: f64, signed: bool) -> String {
    let value = value * 100.0;
    if signed {
        format!("{value:+.1}%")
    } else {
        format!("{value:.1}%")
    }
}
