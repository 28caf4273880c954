//! How far figures can be believed: published ones beside ours.

use super::page::{Cell, Section, Table};
use crate::output::MARKS;
use crate::output::numbers::three;
use crate::validate::{Outcome, Status};

/// Published figures beside ours, misses included.
pub(super) fn section(outcomes: &[Outcome]) -> Section {
    let counted: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| outcome.status == Status::Predicted && outcome.goal.is_some())
        .collect();
    let missed = counted.iter().filter(|outcome| outcome.misses()).count();
    let marks = MARKS.map(|(name, _, meaning)| format!("{name}: {meaning}"));
    Section {
        title: "How far this can be believed".into(),
        text: vec![
            format!(
                "The same models, asked for what others published: of {} predicted figures with a goal {} meet \
                 it. What is marked fitted contains a constant that was fitted to it and proves nothing.",
                counted.len(),
                counted.len() - missed
            ),
            format!("Trust of a figure: {}.", marks.join("; ")),
        ],
        figures: Vec::new(),
        tables: vec![table(
            "validation",
            "Published figures beside ours",
            outcomes,
        )],
    }
}

/// Published figures beside ours.
pub(super) fn table<'a>(
    id: &str,
    caption: &str,
    outcomes: impl IntoIterator<Item = &'a Outcome>,
) -> Table {
    let columns = [
        "source",
        "quantity",
        "unit",
        "published",
        "ours",
        "error",
        "status",
        "meets its goal",
        "note",
    ];
    let number = |value: Option<f64>, text: fn(f64) -> String| {
        value.map_or_else(|| Cell::from("-"), |value| Cell::number(value, text(value)))
    };
    let rows = outcomes.into_iter().map(|outcome| {
        let goal = match (outcome.goal, outcome.misses()) {
            (None, _) => "no goal",
            (Some(_), true) => "MISSED",
            (Some(_), false) => "yes",
        };
        vec![
            outcome.source.as_str().into(),
            outcome.quantity.as_str().into(),
            outcome.unit.into(),
            number(Some(outcome.published), three),
            number(outcome.simulated, three),
            number(outcome.relative_error, |error| {
                format!("{:+.1} %", 100.0 * error)
            }),
            outcome.status.name().into(),
            goal.into(),
            outcome.note.as_str().into(),
        ]
    });
    Table {
        id: id.to_owned(),
        caption: caption.to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}
