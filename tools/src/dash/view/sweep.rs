//! Which plans of a sweep are worth their price?

use super::draw::Pane;
use crate::dash::points::Points;
use crate::dash::state::{State, View};
use crate::output::numbers::{bytes, count, percent, three, time};
use ratatui::style::Style;

/// Columns that a planner looks at first, of those there are.
const ACROSS: [&str; 4] = [
    "cost_per_billion_tokens",
    "gpus",
    "memory_bytes_per_gpu",
    "dropped_fraction",
];
const UP: [&str; 3] = [
    "step_time_ns",
    "joules_per_token",
    "exposed_communication_ns",
];

/// Columns to choose among: the known ones first, then all other numbers.
fn choices(points: &Points, first: &[&str]) -> Vec<usize> {
    let numeric = points.numeric();
    let mut found: Vec<usize> = first
        .iter()
        .filter_map(|name| points.column(name))
        .filter(|column| numeric.contains(column))
        .collect();
    let rest = numeric
        .into_iter()
        .filter(|column| points.columns[*column] != "scenario");
    for column in rest {
        if !found.contains(&column) {
            found.push(column);
        }
    }
    found
}

/// The points that are listed, best first.
fn listed(state: &State, points: &Points, up: usize) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..points.rows.len())
        .filter(|&row| state.filter.is_empty() || state.keeps(&points.rows[row].join(" ")))
        .collect();
    let key = |row: usize| points.number(row, up).filter(|_| points.is_feasible(row));
    rows.sort_by(|&a, &b| {
        let (a_key, b_key) = (
            key(a).unwrap_or(f64::INFINITY),
            key(b).unwrap_or(f64::INFINITY),
        );
        a_key.total_cmp(&b_key).then(a.cmp(&b))
    });
    rows
}

/// How many points are listed.
pub(crate) fn rows(state: &State) -> usize {
    let Some(points) = &state.points else {
        return 0;
    };
    listed(state, points, 0).len()
}

/// A cell for people, by what its column holds.
fn shown(points: &Points, row: usize, column: usize) -> String {
    let Some(value) = points.number(row, column) else {
        return points.rows[row].get(column).cloned().unwrap_or_default();
    };
    shown_as(&points.columns[column], value)
}

fn shown_as(name: &str, value: f64) -> String {
    let whole = value.max(0.0).round() as u64;
    match name {
        name if name.ends_with("_ns") => time(whole),
        name if name.ends_with("bytes") || name.contains("_bytes_") => bytes(whole),
        name if name.ends_with("fraction") => percent(value),
        _ if value.fract() == 0.0 && value.abs() < 1e15 => count(whole),
        _ => three(value),
    }
}

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let (width, height) = (pane.width(), pane.height());
    let Some(points) = &state.points else {
        let mut inside = pane.framed("no sweep");
        inside.put(
            1,
            1,
            "moeplan dash FILE shows a sweep: its CSV, or its journal while it runs (--follow)",
            state.theme.dim(),
        );
        return;
    };
    let (across, up) = (choices(points, &ACROSS), choices(points, &UP));
    let x = across
        .get(state.metric_of(View::Sweep, across.len()))
        .copied();
    let y = up.get(state.sort_of(View::Sweep, up.len())).copied();
    let (Some(x), Some(y)) = (x, y) else {
        pane.framed("no figures yet").put(
            1,
            1,
            "waiting for the first scenario",
            state.theme.dim(),
        );
        return;
    };
    let list = listed(state, points, y);
    let front = points.pareto(x, y);
    let selected = list
        .get(state.row[View::Sweep.index()].min(list.len().saturating_sub(1)))
        .copied();
    let table_rows = (height / 2).saturating_sub(1);
    scatter(
        state,
        points,
        (x, y),
        &front,
        selected,
        &mut pane.part(0, 0, width, height - table_rows),
    );
    table(
        state,
        points,
        (x, y),
        &front,
        &list,
        &mut pane.part(0, height - table_rows, width, table_rows),
    );
}

fn scatter(
    state: &State,
    points: &Points,
    (x, y): (usize, usize),
    front: &[usize],
    selected: Option<usize>,
    pane: &mut Pane<'_>,
) {
    let theme = state.theme;
    let title = format!(
        "{} (up) against {} (across)",
        points.columns[y], points.columns[x]
    );
    let mut inside = pane.framed(&title);
    progress(state, points, &mut inside);
    let (label, rows) = (12, inside.height().saturating_sub(3));
    let width = inside.width().saturating_sub(label + 2);
    let placed: Vec<(usize, f64, f64)> = (0..points.rows.len())
        .filter_map(|row| Some((row, points.number(row, x)?, points.number(row, y)?)))
        .collect();
    if placed.is_empty() || rows < 2 || width < 10 {
        return;
    }
    let scale = |of: &dyn Fn(&(usize, f64, f64)) -> f64| {
        let low = placed.iter().map(of).fold(f64::INFINITY, f64::min);
        let high = placed.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        let log = low > 0.0 && high / low > 8.0;
        (low, high, log)
    };
    let share = |value: f64, (low, high, log): (f64, f64, bool)| match (log, high > low) {
        (_, false) => 0.5,
        (true, _) => (value / low).ln() / (high / low).ln(),
        (false, _) => (value - low) / (high - low),
    };
    let (across, up) = (scale(&|point| point.1), scale(&|point| point.2));
    for row in 0..rows {
        inside.glyph(label, row + 1, '│', theme.dim());
    }
    for column in 0..width {
        inside.glyph(label + 1 + column, rows + 1, '─', theme.dim());
    }
    inside.glyph(label, rows + 1, '└', theme.dim());
    inside.put_right(
        label - 1,
        1,
        &shown_as(&points.columns[y], up.1),
        theme.dim(),
    );
    inside.put_right(
        label - 1,
        rows,
        &shown_as(&points.columns[y], up.0),
        theme.dim(),
    );
    inside.put(
        label + 1,
        rows + 2,
        &shown_as(&points.columns[x], across.0),
        theme.dim(),
    );
    inside.put_right(
        label + 1 + width,
        rows + 2,
        &shown_as(&points.columns[x], across.1),
        theme.dim(),
    );
    let log = match (across.2, up.2) {
        (true, true) => "both log",
        (true, false) => "across log",
        (false, true) => "up log",
        (false, false) => "",
    };
    inside.put(label + 1 + width / 2, rows + 2, log, theme.dim());
    // The front over the rest, the selected over all.
    let rank = |row: usize| (front.contains(&row), Some(row) == selected);
    let mut order = placed.clone();
    order.sort_by_key(|(row, _, _)| rank(*row));
    for (row, at_x, at_y) in order {
        let column = (share(at_x, across) * (width - 1) as f64).round() as usize;
        let line = ((1.0 - share(at_y, up)) * (rows - 1) as f64).round() as usize;
        let (glyph, style) = match (
            Some(row) == selected,
            front.contains(&row),
            points.is_feasible(row),
        ) {
            (true, _, _) => ('◆', theme.selected()),
            (_, true, _) => ('●', theme.hue(0).patch(theme.strong())),
            (_, _, true) => ('·', theme.hue(1)),
            (_, _, false) => ('x', theme.dim()),
        };
        inside.glyph(label + 1 + column, line + 1, glyph, style);
    }
}

/// How far the sweep is, and what the glyphs mean.
fn progress(state: &State, points: &Points, pane: &mut Pane<'_>) {
    let x = match points.of {
        Some(of) => {
            let share = points.done as f64 / of.max(1) as f64;
            let x = pane.put(
                1,
                0,
                &format!(
                    "{} of {} scenarios ",
                    count(points.done as u64),
                    count(of as u64)
                ),
                state.theme.strong(),
            );
            pane.bar(x, 0, 20, share, state.theme.good());
            x + 22
        }
        None => pane.put(
            1,
            0,
            &format!("{} points   ", count(points.rows.len() as u64)),
            state.theme.strong(),
        ),
    };
    pane.put(
        x,
        0,
        "● on the Pareto front  · off it  x does not run  ◆ selected",
        state.theme.dim(),
    );
}

fn table(
    state: &State,
    points: &Points,
    (x, y): (usize, usize),
    front: &[usize],
    list: &[usize],
    pane: &mut Pane<'_>,
) {
    let theme = state.theme;
    let mut inside = pane.framed(&format!("best first by {}", points.columns[y]));
    let mut columns: Vec<usize> = points.varying().collect();
    columns.extend(points.column("strategy"));
    columns.extend([y, x]);
    columns.extend(points.column("reason"));
    let mut seen = Vec::new();
    columns.retain(|column| {
        !seen.contains(column) && {
            seen.push(*column);
            true
        }
    });
    let rows = inside.height().saturating_sub(1);
    let selected = state.row[View::Sweep.index()].min(list.len().saturating_sub(1));
    let first = selected
        .saturating_sub(rows / 2)
        .min(list.len().saturating_sub(rows));
    let visible: Vec<usize> = list.iter().copied().skip(first).take(rows).collect();
    let mut at = 3;
    for column in columns {
        let name = points.columns[column].trim_end_matches("_ns");
        let name = name.rsplit('.').next().unwrap_or(name);
        let cells: Vec<String> = visible
            .iter()
            .map(|&row| shown(points, row, column))
            .collect();
        let width = cells
            .iter()
            .map(|cell| cell.chars().count())
            .chain([name.chars().count()])
            .max()
            .unwrap_or(0)
            .min(40);
        if at + width > inside.width() {
            break;
        }
        inside.put(at, 0, name, theme.dim());
        for (row, cell) in cells.iter().enumerate() {
            let cell: String = cell.chars().take(width).collect();
            let style = if column == y {
                theme.strong()
            } else {
                Style::new()
            };
            inside.put(at, row + 1, &cell, style);
        }
        at += width + 2;
    }
    for (row, point) in visible.iter().enumerate() {
        if front.contains(point) {
            inside.glyph(1, row + 1, '●', theme.hue(0));
        } else if !points.is_feasible(*point) {
            inside.glyph(1, row + 1, 'x', theme.dim());
        }
        if first + row == selected {
            let end = inside.width();
            inside.restyle(0, row + 1, end, theme.selected());
        }
    }
}
