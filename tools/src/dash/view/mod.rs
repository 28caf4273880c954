//! What the state looks like. Pure: drawing changes nothing.

pub(super) mod cluster;
mod compare;
mod draw;
mod experts;
mod help;
mod network;
pub(super) mod overview;
pub(super) mod sweep;
pub(super) mod timeline;
mod whatif;

use super::state::{LEAST, State, Status, View};
use crate::output::numbers::{count, time};
use draw::Pane;
use ratatui::Frame;

/// Draws `state`.
pub fn view(state: &State, frame: &mut Frame<'_>) {
    let area = frame.area();
    let mut pane = Pane::new(frame.buffer_mut(), area, state.theme);
    let (width, height) = (pane.width(), pane.height());
    if width < usize::from(LEAST.0) || height < usize::from(LEAST.1) {
        let (columns, rows) = LEAST;
        pane.words(
            height / 2,
            &format!("too small: {width}x{height}, needs {columns}x{rows}"),
            state.theme.strong(),
        );
        return;
    }
    tabs(state, &mut pane.part(0, 0, width, 1));
    context(state, &mut pane.part(0, 1, width, 1));
    footer(state, &mut pane.part(0, height - 1, width, 1));
    let mut body = pane.part(0, 2, width, height - 3);
    let nothing = state.run.steps.is_empty() && state.view != View::Sweep;
    if nothing {
        waiting(state, &mut body);
    } else {
        match state.view {
            View::Overview => overview::draw(state, &mut body),
            View::Experts => experts::draw(state, &mut body),
            View::Timeline => timeline::draw(state, &mut body),
            View::Network => network::draw(state, &mut body),
            View::Cluster => cluster::draw(state, &mut body),
            View::Compare => compare::draw(state, &mut body),
            View::Sweep => sweep::draw(state, &mut body),
            View::WhatIf => whatif::draw(state, &mut body),
        }
    }
    if state.help {
        help::draw(state, &mut pane.part(0, 0, width, height));
    }
}

const BRAND: &str = " moeplan ";

/// Where each tab begins and ends, and how it reads.
fn tab_places(width: usize) -> impl Iterator<Item = (View, usize, String)> {
    // The tabs alone fill the smallest screen.
    let mut x = if width >= 90 { BRAND.len() } else { 0 };
    View::ALL.into_iter().map(move |view| {
        let text = format!("{} {}", view.index() + 1, view.name());
        let start = x;
        x += text.len() + 1;
        (view, start, text)
    })
}

/// The view whose tab is at `column`.
pub(super) fn tab_at(width: u16, column: u16) -> Option<View> {
    tab_places(usize::from(width))
        .find(|(_, start, text)| (*start..start + text.len()).contains(&usize::from(column)))
        .map(|(view, _, _)| view)
}

fn tabs(state: &State, pane: &mut Pane<'_>) {
    pane.put(0, 0, BRAND, state.theme.strong());
    let width = pane.width();
    for (view, start, text) in tab_places(width) {
        let style = match view == state.view {
            true => state.theme.selected().patch(state.theme.strong()),
            false => state.theme.dim(),
        };
        pane.put(start, 0, &text, style);
    }
    let end = pane.width();
    if end >= 110 {
        pane.put_right(end - 1, 0, &state.source, state.theme.dim());
    }
}

/// The run, strategy and step that are shown.
fn context(state: &State, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let Some(header) = &state.run.header else {
        return;
    };
    let mut x = 1;
    x = pane.put(
        x,
        0,
        &format!("{} GPUs", count(header.gpus)),
        theme.strong(),
    );
    x = pane.put(x, 0, "  strategy ", theme.dim());
    let name = state.run.name(state.strategy);
    x = pane.put(x, 0, name, theme.hue(state.strategy).patch(theme.strong()));
    if state.run.strategies() > 1 {
        let of = format!(" {}/{}", state.strategy + 1, state.run.strategies());
        x = pane.put(x, 0, &of, theme.dim());
    }
    if let (Some(step), Some(run)) = (state.step(), state.run_now()) {
        x = pane.put(x, 0, "  step ", theme.dim());
        let known = state.run.steps.len();
        let of = header.steps.max(known as u64);
        x = pane.put(x, 0, &format!("{}/{of}", step.index + 1), theme.strong());
        if step.label != u64::from(step.index) && pane.width() >= 100 {
            x = pane.put(x, 0, &format!(" (recorded as {})", step.label), theme.dim());
        }
        x = pane.put(x, 0, &format!("  {}", time(run.time)), theme.strong());
        pane.put(x, 0, &format!("  {}", run.plan), theme.dim());
    }
    let (text, style) = match &state.status {
        _ if state.playing => (format!("▶ {} steps/s", short(state.speed)), theme.good()),
        Status::Running if state.at_end => ("● live".to_owned(), theme.good()),
        Status::Running => ("○ running on".to_owned(), theme.dim()),
        Status::Complete if state.run.end.is_some_and(|end| end.interrupted) => {
            ("■ interrupted".to_owned(), theme.bad())
        }
        Status::Complete => ("■ complete".to_owned(), theme.dim()),
        Status::Failed(_) => ("! stopped".to_owned(), theme.bad()),
    };
    pane.put_right(pane.width() - 1, 0, &text, style);
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn footer(state: &State, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let end = pane.width() - 1;
    if state.filtering {
        let x = pane.put(1, 0, "/", theme.strong());
        let x = pane.put(x, 0, &state.filter, theme.strong());
        pane.put(x, 0, "▏  enter keeps it, esc drops it", theme.dim());
        return;
    }
    if let Status::Failed(why) = &state.status {
        pane.put(1, 0, &format!("stopped: {why}"), theme.bad());
        return;
    }
    if let Some(message) = &state.message {
        pane.put(1, 0, message, theme.good());
        return;
    }
    let own = match state.view {
        View::Overview => "←→ step  [ ] strategy  m chart",
        View::Experts => "m what  ↑↓ select  o order  / filter",
        View::Timeline => "←→ pan  + - zoom  ↑↓ rank  enter next on path",
        View::Network => "m what  ↑↓←→ select  o order",
        View::Cluster => "m metric  arrows select  enter in  esc out",
        View::Compare => "←→ step  ↑↓ strategy  m this step or all",
        View::Sweep => "m across  o up  ↑↓ select  / filter",
        View::WhatIf => "↑↓ setting  ←→ value",
    };
    pane.put(1, 0, own, theme.dim());
    let kept = match state.filter.is_empty() {
        true => String::new(),
        false => format!("only /{}  ", state.filter),
    };
    let all = match end < 100 {
        true => "? keys  q quit",
        false => ", . step  space play  ? keys  q quit",
    };
    pane.put_right(end, 0, &format!("{kept}{all}"), theme.dim());
}

fn waiting(state: &State, pane: &mut Pane<'_>) {
    let middle = pane.height() / 2;
    let text = match (&state.status, &state.run.header) {
        (Status::Failed(_), _) => "nothing to show",
        (_, Some(_)) => "waiting for the first step",
        (_, None) => "waiting for the run",
    };
    pane.put(2, middle.saturating_sub(1), text, state.theme.strong());
    pane.put(2, middle, &state.source, state.theme.dim());
}

/// Says where a step is not shown in full: which one stands in, and why.
fn stand_in(state: &State, pane: &mut Pane<'_>, y: usize) -> bool {
    let (Some(step), Some(detail)) = (state.step(), state.detail()) else {
        return false;
    };
    if detail.step == step.index {
        return false;
    }
    let why = match (&state.refused, state.pending) {
        (Some(why), _) => why.as_str(),
        (None, Some(_)) => "simulating the step shown above ...",
        (None, None) => "it was not recorded in full",
    };
    let text = format!(
        "showing step {}, the nearest recorded: {why}",
        detail.step + 1
    );
    pane.put(1, y, &text, state.theme.bad());
    true
}

/// Says that no step is there in full, and why.
fn no_detail(state: &State, pane: &mut Pane<'_>) {
    let text = match (&state.refused, state.pending) {
        (Some(why), _) => format!("no step of this strategy was recorded in full: {why}"),
        (None, Some(_)) => "simulating this step ...".to_owned(),
        (None, None) => "no step of this strategy was recorded in full".to_owned(),
    };
    pane.put(2, 1, &text, state.theme.dim());
}
