//! Which strategy wins, and by what?

use super::draw::{Pane, stage_bar, stage_name};
use super::overview::rate;
use crate::dash::recording::Totals;
use crate::dash::state::{State, View};
use crate::output::numbers::{bytes, percent, three, time, times};
use crate::run_file::RunRecord;
use crate::run_file::model::STAGES;
use ratatui::style::Style;

/// A row: its name, and what it says of a column.
type Row<'a> = (&'a str, Box<dyn Fn(&Column) -> String + 'a>);

/// A strategy in this step, or on average.
struct Column {
    time: u64,
    stages: [u64; STAGES],
    exposed: u64,
    dropped: f64,
    capacity_factor: f64,
    memory: u64,
    fits: bool,
    lost: Option<u64>,
    plan: String,
    /// Simulated time and relative difference, beside a measured one.
    predicted: Option<(u64, f64)>,
}

impl Column {
    fn of_step(run: &RunRecord) -> Column {
        Column {
            time: run.time,
            stages: run.stages,
            exposed: run.exposed,
            dropped: run.dropped,
            capacity_factor: run.capacity_factor,
            memory: run.memory_bytes,
            fits: run.fits,
            lost: run.oracle.map(|best| run.time.saturating_sub(best)),
            plan: run.plan.to_string(),
            predicted: run
                .predicted
                .map(|predicted| (predicted, predicted as f64 / run.time.max(1) as f64 - 1.0)),
        }
    }

    fn of_run(totals: &Totals, steps: usize, last: &RunRecord) -> Column {
        let count = steps.max(1) as u128;
        let mean = |sum: u128| (sum / count) as u64;
        let predicted = (totals.predicted.1 > 0).then(|| {
            let number = totals.predicted.1;
            let time = (totals.predicted.0 / u128::from(number)) as u64;
            (time, totals.error / number as f64)
        });
        Column {
            time: mean(totals.time),
            stages: totals.stages.map(mean),
            exposed: mean(totals.exposed),
            dropped: totals.dropped / count as f64,
            capacity_factor: totals.capacity_factor / count as f64,
            memory: totals.memory,
            fits: totals.too_large == 0,
            lost: (totals.with_oracle > 0)
                .then(|| (totals.regret / u128::from(totals.with_oracle)) as u64),
            plan: last.plan.to_string(),
            predicted,
        }
    }
}

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let Some(step) = state.step() else { return };
    let all = state.metric_of(View::Compare, 2) == 0;
    let steps = state.run.steps.len();
    let columns: Vec<Column> = step
        .runs
        .iter()
        .zip(&state.run.totals)
        .map(|(run, totals)| match all {
            true => Column::of_run(totals, steps, run),
            false => Column::of_step(run),
        })
        .collect();
    let (width, height) = (pane.width(), pane.height());
    let title = match all {
        true => format!("mean of {steps} steps  (m: this step)"),
        false => format!("step {}  (m: all steps)", step.index + 1),
    };
    let each = if height < 30 { 1 } else { 2 };
    let ladder_rows = (columns.len() * each + 2).min(height / 2);
    table(
        state,
        &columns,
        &mut pane.part(0, 0, width, height - ladder_rows),
        &title,
    );
    ladder(
        state,
        &columns,
        &mut pane.part(0, height - ladder_rows, width, ladder_rows),
    );
}

/// Figures by strategy; as many strategies as fit, around the one selected.
fn table(state: &State, columns: &[Column], pane: &mut Pane<'_>, title: &str) {
    let theme = state.theme;
    let mut inside = pane.framed(title);
    let label = 24;
    let each = 16;
    let room = (inside.width().saturating_sub(label) / each).max(1);
    let first = state
        .strategy
        .saturating_sub(room - 1)
        .min(columns.len().saturating_sub(room));
    let header = state.run.header.as_ref();
    let tokens = header.map_or(0, |header| header.tokens_per_gpu * header.gpus) as f64;
    let base = columns.first().map_or(1, |column| column.time.max(1));
    let fastest = columns
        .iter()
        .filter(|column| column.fits)
        .map(|column| column.time)
        .min();
    let has_predicted = columns.iter().any(|column| column.predicted.is_some());
    let mut rows: Vec<Row<'_>> = vec![
        ("step time", Box::new(|column| time(column.time))),
        (
            "speed-up over first",
            Box::new(move |column| times(base as f64 / column.time.max(1) as f64)),
        ),
        (
            "tokens a second",
            Box::new(move |column| rate(tokens / (column.time.max(1) as f64 * 1e-9))),
        ),
        (
            "exposed communication",
            Box::new(|column| percent(column.exposed as f64 / column.time.max(1) as f64)),
        ),
        ("tokens dropped", Box::new(|column| percent(column.dropped))),
        (
            "capacity factor",
            Box::new(|column| three(column.capacity_factor)),
        ),
        (
            "memory a GPU",
            Box::new(|column| {
                format!(
                    "{}{}",
                    bytes(column.memory),
                    if column.fits { "" } else { " !" }
                )
            }),
        ),
        (
            "lost to best plan",
            Box::new(|column| column.lost.map_or("-".into(), time)),
        ),
    ];
    if has_predicted {
        rows.push((
            "simulated",
            Box::new(|column| column.predicted.map_or("-".into(), |(at, _)| time(at))),
        ));
        rows.push((
            "simulated against run",
            Box::new(|column| {
                column.predicted.map_or("-".into(), |(_, error)| {
                    format!("{:.1} % off", error.abs() * 100.0)
                })
            }),
        ));
    }
    for stage in 0..STAGES {
        if columns.iter().any(|column| column.stages[stage] > 0) {
            rows.push((
                stage_name(stage),
                Box::new(move |column| time(column.stages[stage])),
            ));
        }
    }
    for (place, strategy) in (first..columns.len()).take(room).enumerate() {
        let end = label + (place + 1) * each - 1;
        let column = &columns[strategy];
        let name: String = state.run.name(strategy).chars().take(each - 2).collect();
        let selected = strategy == state.strategy;
        let style = theme.hue(strategy).patch(theme.strong());
        let style = if selected {
            style.patch(theme.selected())
        } else {
            style
        };
        inside.put_right(end, 0, &name, style);
        for (row, (name, value)) in rows.iter().enumerate() {
            inside.put(1, row + 1, name, theme.dim());
            let best = row < 2 && Some(column.time) == fastest && column.fits;
            let bad = *name == "memory a GPU" && !column.fits;
            let style = match (bad, best) {
                (true, _) => theme.bad(),
                (false, true) => theme.good().patch(theme.strong()),
                (false, false) => Style::new(),
            };
            let text = format!("{}{}", if best { "✓ " } else { "" }, value(column));
            inside.put_right(end, row + 1, &text, style);
        }
        let plan: String = column.plan.chars().take(each - 1).collect();
        inside.put(1, rows.len() + 1, "plan of this step", theme.dim());
        inside.put_right(end, rows.len() + 1, &plan, theme.dim());
    }
    if columns.iter().any(|column| !column.fits) {
        let y = inside.height().saturating_sub(1);
        inside.put(1, y, "! does not fit in memory", theme.bad());
    }
    if columns.len() > room {
        let end = inside.width();
        let y = inside.height().saturating_sub(1);
        inside.put_right(
            end - 1,
            y,
            &format!("{} more ↑↓", columns.len() - room),
            theme.dim(),
        );
    }
}

/// Step times as bars of their stages, with the speed-up over the first and over the one before.
fn ladder(state: &State, columns: &[Column], pane: &mut Pane<'_>) {
    let theme = state.theme;
    let mut inside = pane.framed("the gain: time, speed-up over the first (over the one before)");
    let slowest = columns
        .iter()
        .map(|column| column.time)
        .max()
        .unwrap_or(1)
        .max(1);
    let label = columns
        .iter()
        .enumerate()
        .map(|(strategy, _)| state.run.name(strategy).chars().count())
        .max()
        .unwrap_or(0)
        .clamp(8, 24)
        + 2;
    let right = 28;
    let width = inside.width().saturating_sub(label + right);
    let each = if columns.len() * 2 <= inside.height() + 1 {
        2
    } else {
        1
    };
    let rows = (inside.height().div_ceil(each)).max(1);
    let first = state
        .strategy
        .saturating_sub(rows - 1)
        .min(columns.len().saturating_sub(rows));
    for (place, strategy) in (first..columns.len()).take(rows).enumerate() {
        let column = &columns[strategy];
        let y = place * each;
        let name: String = state.run.name(strategy).chars().take(label - 1).collect();
        let style = match strategy == state.strategy {
            true => theme.selected(),
            false => theme.strong(),
        };
        inside.put(1, y, &name, style);
        let length = (column.time as f64 / slowest as f64 * width as f64).round() as usize;
        let busy: u64 = column.stages.iter().sum();
        stage_bar(&mut inside, label, y, length.max(1), &column.stages, busy);
        let over_first = columns[0].time as f64 / column.time.max(1) as f64;
        let before = strategy.checked_sub(1).map(|before| columns[before].time);
        let mut text = format!("{}  {}", time(column.time), times(over_first));
        if let Some(before) = before.filter(|_| strategy > 1) {
            text += &format!(" ({})", times(before as f64 / column.time.max(1) as f64));
        }
        inside.put(label + width + 2, y, &text, theme.strong());
    }
}
