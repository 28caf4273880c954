//! What ran when, and what decided how long the step takes?

use super::draw::{Pane, stage_letter, stage_name};
use super::{no_detail, stand_in};
use crate::dash::state::{State, View, Window};
use crate::output::numbers::{percent, time};
use crate::run_file::Detail;
use crate::run_file::model::{Lane, STAGES};
use ratatui::style::{Modifier, Style};

/// Columns before the bars.
const LABEL: usize = 15;

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let Some(detail) = state.detail() else {
        return no_detail(state, pane);
    };
    let (width, height) = (pane.width(), pane.height());
    let below = 5;
    let mut main = pane.part(0, 0, width, height - below);
    let mut inside = main.framed("streams of ranks: solid on the critical path, hatched off it");
    let top = usize::from(stand_in(state, &mut inside, 0));
    let (inner, rows) = (inside.width(), inside.height());
    axis(state, detail, &mut inside.part(0, top, inner, 1));
    lanes(
        state,
        detail,
        &mut inside.part(0, top + 1, inner, rows.saturating_sub(top + 1)),
    );
    summary(
        state,
        detail,
        &mut pane.part(0, height - below, width, below),
    );
}

/// Times at the ends and between.
fn axis(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let width = pane.width().saturating_sub(LABEL);
    let window = state.window;
    let ticks = (width / 14).max(1);
    for tick in 0..=ticks {
        let share = tick as f64 / ticks as f64;
        let at = (window.start + window.length * share) * detail.time as f64;
        let text = format!("{}{}", if tick < ticks { "╷" } else { "" }, time(at as u64));
        let x = LABEL + (share * width as f64) as usize;
        match tick == ticks {
            true => pane.put_right(LABEL + width, 0, &format!("{text}╷"), state.theme.dim()),
            false => {
                pane.put(x, 0, &text, state.theme.dim());
            }
        }
    }
    pane.put(0, 0, "rank stream", state.theme.dim());
}

/// Lanes that are shown: those the filter keeps.
fn shown<'a>(state: &State, detail: &'a Detail) -> Vec<&'a Lane> {
    let keeps = |lane: &&Lane| state.filter.is_empty() || lane.rank.to_string() == state.filter;
    let kept: Vec<&Lane> = detail.lanes.iter().filter(keeps).collect();
    match kept.is_empty() {
        true => detail.lanes.iter().collect(),
        false => kept,
    }
}

fn lanes(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let lanes = shown(state, detail);
    // Two lines a rank, and one between where there is room.
    let each = if lanes.len() * 3 <= pane.height() + 1 {
        3
    } else {
        2
    };
    let rows = (pane.height() / each).max(1);
    let selected = state.row[View::Timeline.index()].min(lanes.len().saturating_sub(1));
    let first = selected
        .saturating_sub(rows / 2)
        .min(lanes.len().saturating_sub(rows));
    for (row, lane) in lanes.iter().enumerate().skip(first).take(rows) {
        let y = (row - first) * each;
        let name = match detail.is_alike() {
            true => "all".to_owned(),
            false => lane.rank.to_string(),
        };
        let style = if row == selected {
            state.theme.selected()
        } else {
            state.theme.strong()
        };
        pane.put(0, y, &format!("{name:>6}"), style);
        pane.put(7, y, "compute", state.theme.dim());
        pane.put(7, y + 1, "comm.", state.theme.dim());
        let width = pane.width().saturating_sub(LABEL);
        bars(
            state,
            detail,
            lane,
            false,
            &mut pane.part(LABEL, y, width, 1),
        );
        bars(
            state,
            detail,
            lane,
            true,
            &mut pane.part(LABEL, y + 1, width, 1),
        );
    }
    let used = lanes.len().min(rows) * each + 1;
    if used + 4 <= pane.height() {
        let (width, height) = (pane.width(), pane.height());
        path(state, detail, &mut pane.part(0, used, width, height - used));
    }
    let hidden = lanes.len().saturating_sub(rows);
    if hidden > 0 {
        let end = pane.width();
        let y = pane.height().saturating_sub(1);
        pane.put_right(
            end,
            y,
            &format!(" {hidden} ranks more ↑↓ "),
            state.theme.selected(),
        );
    }
}

/// The critical path as a list, around the middle of the window.
fn path(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let dim = state.theme.dim();
    let head = "     start      waited         ran  of step  operation           stage     pass";
    pane.put(1, 0, head, dim);
    let at = centred(state, detail);
    let rows = pane.height().saturating_sub(1);
    let first = at
        .saturating_sub(rows / 2)
        .min(detail.path.len().saturating_sub(rows));
    let known = detail.path.iter().enumerate().skip(first).take(rows);
    for (row, (place, on)) in known.enumerate() {
        let y = row + 1;
        let op = &detail.ops[on.op as usize];
        let stage = usize::from(op.stage);
        pane.put_right(11, y, &time(on.start), dim);
        pane.put_right(23, y, &time(on.waited), dim);
        pane.put_right(35, y, &time(on.ran), state.theme.strong());
        let share = percent(on.ran as f64 / detail.time.max(1) as f64);
        pane.put_right(44, y, &share, Style::new());
        pane.put(46, y, &op.label, Style::new());
        pane.put(66, y, stage_name(stage), state.theme.hue(stage));
        let pass = if op.backward { "backward" } else { "forward" };
        pane.put(
            76,
            y,
            &format!("{pass}, chunk {}, rank {}", op.chunk, on.rank),
            dim,
        );
        if place == at {
            let width = pane.width();
            pane.restyle(1, y, width, state.theme.selected());
        }
    }
}

/// The place on the path of the operation in the middle of the window.
fn centred(state: &State, detail: &Detail) -> usize {
    let middle = (state.window.start + state.window.length / 2.0) * detail.time as f64;
    let mut path = detail.path.iter();
    let found = path.position(|on| on.ran > 0 && (on.start + on.ran) as f64 >= middle);
    found.unwrap_or(detail.path.len().saturating_sub(1))
}

/// Whether `op` of `rank` is on the critical path.
fn is_on_path(detail: &Detail, rank: u32, op: usize) -> bool {
    let mut path = detail.path.iter();
    path.any(|on| on.op as usize == op && (on.rank == rank || detail.is_alike()))
}

fn bars(state: &State, detail: &Detail, lane: &Lane, communication: bool, pane: &mut Pane<'_>) {
    let width = pane.width() as f64;
    let Window { start, length } = state.window;
    let whole = detail.time.max(1) as f64;
    let place = |at: u64| (at as f64 / whole - start) / length * width;
    for x in 0..pane.width() {
        pane.glyph(x, 0, '─', state.theme.dim());
    }
    for (op, (info, span)) in detail.ops.iter().zip(&lane.spans).enumerate() {
        let (from, to) = (place(span.0), place(span.1));
        if info.communication != communication || span.1 == span.0 || to < 0.0 || from >= width {
            continue;
        }
        let from = from.max(0.0).round() as usize;
        // What ran is seen, however short.
        let to = (to.min(width).round() as usize).max(from + 1);
        let stage = usize::from(info.stage);
        let on_path = is_on_path(detail, lane.rank, op);
        let room = to - from;
        let label = match &*info.label {
            "exchange" => stage_name(stage),
            other => other,
        };
        let text = match room {
            room if room >= label.chars().count() + 4 && info.chunk > 0 => {
                format!(" {label} {}", info.chunk)
            }
            room if room >= label.chars().count() + 2 => format!(" {label}"),
            room if room >= 3 => format!(" {}", stage_letter(stage)),
            _ => String::new(),
        };
        if on_path {
            let style = state
                .theme
                .block(stage)
                .patch(Style::new().add_modifier(Modifier::BOLD));
            let text = match room {
                room if room < 3 => stage_letter(stage).to_string().repeat(room),
                _ => format!("{text:<room$}"),
            };
            pane.put(from, 0, &text, style);
        } else {
            let style = state.theme.hue(stage);
            pane.put(from, 0, &"▒".repeat(room), style);
            let inner = text.trim_start();
            if !inner.is_empty() {
                pane.put(from + 1, 0, inner, style);
            }
        }
    }
}

/// The path by stage, and the operation of it that is in the middle of the window.
fn summary(state: &State, detail: &Detail, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let mut inside = pane.framed("critical path");
    let mut shares = [0u64; STAGES];
    let mut waited = 0u64;
    for on in &detail.path {
        let share = &mut shares[usize::from(detail.ops[on.op as usize].stage)];
        *share = share.saturating_add(on.ran);
        waited = waited.saturating_add(on.waited);
    }
    let whole = detail.time.max(1) as f64;
    let mut parts: Vec<(String, u64, usize)> = shares
        .iter()
        .enumerate()
        .filter(|(_, share)| **share > 0)
        .map(|(stage, share)| (stage_name(stage).to_owned(), *share, stage))
        .collect();
    parts.sort_by_key(|(_, share, _)| std::cmp::Reverse(*share));
    if waited > 0 {
        parts.push(("host".into(), waited, STAGES - 1));
    }
    let mut x = 1;
    for (name, share, stage) in parts {
        x = inside.put(
            x,
            0,
            &format!("{name} "),
            theme.hue(stage).patch(theme.strong()),
        );
        let text = format!("{} {}   ", percent(share as f64 / whole), time(share));
        x = inside.put(x, 0, &text, theme.dim());
    }
    let mut ranks: Vec<u32> = detail.path.iter().map(|on| on.rank).collect();
    ranks.dedup();
    let crossing = match (detail.is_alike(), ranks.len()) {
        (true, _) => "all ranks are alike: one stands for all".to_owned(),
        (false, 0 | 1) => format!(
            "{} operations, all of rank {}",
            detail.path.len(),
            ranks.first().copied().unwrap_or(0)
        ),
        (false, parts) => format!(
            "{} operations, {} changes of rank; it ends on rank {}; {} of {} ranks have timelines",
            detail.path.len(),
            parts - 1,
            ranks.last().copied().unwrap_or(0),
            detail.lanes.len(),
            detail.gpus
        ),
    };
    inside.put(1, 1, &crossing, theme.dim());
    let centred = detail.path.get(centred(state, detail));
    if let Some(on) = centred {
        let op = &detail.ops[on.op as usize];
        let pass = if op.backward { "backward" } else { "forward" };
        let text = format!(
            "in the middle: {} ({}, {pass}, chunk {}) on rank {}, {} from {}",
            op.label,
            stage_name(usize::from(op.stage)),
            op.chunk,
            on.rank,
            time(on.ran),
            time(on.start)
        );
        inside.put(1, 2, &text, ratatui::style::Style::new());
    }
}

/// Centres the window on the next operation of the critical path.
pub(crate) fn next_on_path(state: &mut State) {
    let Some(detail) = state.detail() else { return };
    let whole = detail.time.max(1) as f64;
    let middle = (state.window.start + state.window.length / 2.0) * whole;
    let centre = |on: &crate::run_file::model::OnPath| on.start as f64 + on.ran as f64 / 2.0;
    let next = detail
        .path
        .iter()
        .filter(|on| on.ran > 0)
        .find(|on| centre(on) > middle * (1.0 + 1e-9) + 1.0)
        .or(detail.path.first());
    let Some(next) = next else { return };
    let rank = next.rank;
    let length = (next.ran as f64 * 3.0 / whole)
        .clamp(1e-6, 1.0)
        .min(state.window.length.max(1e-6));
    let start = (centre(next) / whole - length / 2.0).clamp(0.0, 1.0 - length);
    let row = shown(state, detail)
        .iter()
        .position(|lane| lane.rank == rank);
    state.window = Window { start, length };
    if let Some(row) = row {
        state.row[View::Timeline.index()] = row;
    }
}
