//! What would other settings do?

use super::draw::{Pane, stage_bar, stage_name};
use super::overview::rate;
use crate::dash::state::{State, Status};
use crate::dash::whatif::{Answer, Brief, FIELDS};
use crate::output::numbers::{bytes, count, percent, three, time, times};
use ratatui::style::Style;

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let (width, height) = (pane.width(), pane.height());
    let left = 36;
    settings(state, &mut pane.part(0, 0, left, height));
    let mut right = pane.part(left, 0, width - left, height);
    let mut inside = right.framed("this step, each side under its best plan");
    match &state.whatif.answer {
        _ if !state.can_simulate => {
            let why = match &state.status {
                Status::Running | Status::Complete | Status::Failed(_) => {
                    "this run cannot be simulated here: it was measured, or its settings are not known"
                }
            };
            inside.words(1, why, state.theme.dim());
        }
        Some(Ok(answer)) => effect(state, answer, &mut inside),
        Some(Err(why)) => {
            inside.words(1, why, state.theme.bad());
        }
        None if state.whatif.pending => {
            inside.put(1, 1, "simulating ...", state.theme.dim());
        }
        None => {
            inside.put(
                1,
                1,
                "← → change the setting at the left",
                state.theme.dim(),
            );
        }
    }
}

fn settings(state: &State, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let mut inside = pane.framed("what if");
    let end = inside.width();
    for (row, field) in FIELDS.iter().enumerate() {
        let y = row * 2 + 1;
        inside.put(1, y, field.name, theme.strong());
        let value = match (row, state.whatif.change.value(row)) {
            (0, Some(value)) => {
                let gpus = state.run.header.as_ref().map_or(0, |header| header.gpus) as f64;
                format!("{value} = {}", gpus * state.whatif.change.factor(0))
            }
            (_, Some(value)) => value.to_owned(),
            (_, None) => "as is".to_owned(),
        };
        let style = if state.whatif.change.value(row).is_some() {
            theme.strong()
        } else {
            theme.dim()
        };
        inside.put_right(end - 1, y, &format!("‹ {value} ›"), style);
        if row == state.whatif.field {
            inside.restyle(0, y, end, theme.selected());
        }
    }
    let y = FIELDS.len() * 2 + 2;
    let height = inside.height();
    let text = "Both sides are simulated with the routing of this step, drawn anew for another number of GPUs; \
                what is auto is the best plan, not what the policy had learned by then.";
    if y < height {
        inside
            .part(1, y, end.saturating_sub(2), height - y)
            .words(0, text, theme.dim());
    }
}

fn effect(state: &State, answer: &Answer, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let (before, after) = (&answer.before, &answer.after);
    let columns = [20, 31, 42].map(|at| at.min(pane.width()));
    for (at, head) in columns.into_iter().zip(["this run", "what if", ""]) {
        pane.put_right(at, 0, head, theme.dim());
    }
    let per_second = |brief: &Brief| brief.tokens as f64 / (brief.time.max(1) as f64 * 1e-9);
    let per_gpu = |brief: &Brief| per_second(brief) / brief.gpus.max(1) as f64;
    let ratio = |of: &dyn Fn(&Brief) -> f64| {
        let (a, b) = (of(before), of(after));
        if a > 0.0 && (a - b).abs() > a * 1e-9 {
            times(b / a)
        } else {
            "=".to_owned()
        }
    };
    let mut y = 1;
    let mut row = |label: &str, show: &dyn Fn(&Brief) -> String, change: String, bad: bool| {
        pane.put(1, y, label, theme.dim());
        pane.put_right(columns[0], y, &show(before), Style::new());
        let style = if bad { theme.bad() } else { theme.strong() };
        pane.put_right(columns[1], y, &show(after), style);
        pane.put_right(columns[2], y, &change, theme.strong());
        y += 1;
    };
    row(
        "GPUs",
        &|brief| count(brief.gpus),
        ratio(&|brief| brief.gpus as f64),
        false,
    );
    row(
        "step time",
        &|brief| time(brief.time),
        ratio(&|brief| brief.time as f64),
        false,
    );
    row(
        "tokens/s",
        &|brief| rate(per_second(brief)),
        ratio(&per_second),
        false,
    );
    row(
        "  a GPU",
        &|brief| rate(per_gpu(brief)),
        ratio(&per_gpu),
        false,
    );
    row(
        "exposed",
        &|brief| percent(brief.exposed as f64 / brief.time.max(1) as f64),
        String::new(),
        false,
    );
    row(
        "capacity",
        &|brief| three(brief.capacity_factor),
        ratio(&|brief| brief.capacity_factor),
        false,
    );
    row(
        "dropped",
        &|brief| percent(brief.dropped),
        String::new(),
        after.dropped > before.dropped + 0.01,
    );
    let over = after.memory_bytes > after.memory_available;
    row(
        "memory",
        &|brief| bytes(brief.memory_bytes),
        if over {
            "DOES NOT FIT".into()
        } else {
            ratio(&|brief| brief.memory_bytes as f64)
        },
        over,
    );
    for stage in 0..before.stages.len() {
        if before.stages[stage] + after.stages[stage] > 0 {
            let of = move |brief: &Brief| brief.stages[stage] as f64;
            row(
                &format!("  {}", stage_name(stage)),
                &|brief| time(brief.stages[stage]),
                ratio(&of),
                false,
            );
        }
    }
    pane.put(1, y, "plan", theme.dim());
    pane.put_right(columns[0], y, &before.plan, theme.dim());
    pane.put(columns[0] + 2, y, &after.plan, theme.strong());
    y += 1;
    if y + 3 < pane.height() {
        let width = pane.width().saturating_sub(12);
        let slower = before.time.max(after.time).max(1) as f64;
        for (label, brief) in [("this run", before), ("what if", after)] {
            y += 1;
            pane.put(1, y, label, theme.dim());
            let length = (brief.time as f64 / slower * width as f64).round() as usize;
            stage_bar(
                pane,
                10,
                y,
                length.max(1),
                &brief.stages,
                brief.stages.iter().sum(),
            );
        }
    }
}
