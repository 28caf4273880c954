//! What a message does to the state. Pure: no clock, file, thread or terminal.

use super::keymap::{Action, action};
use super::state::{Effect, Level, MOST_SIMULATED, Msg, State, Status, View, Window};
use super::view::{cluster, sweep};
use super::whatif;
use crate::run_file::Block;
use ratatui::crossterm::event::{
    KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use std::time::Duration;

/// Applies `msg` to `state`; returns what the loop is to do.
pub fn update(state: &mut State, msg: Msg) -> Option<Effect> {
    let effect = match msg {
        Msg::Key(key) if key.kind == KeyEventKind::Release => None,
        Msg::Key(key) => press(state, key),
        Msg::Mouse(mouse) => click(state, mouse),
        Msg::Resize(columns, rows) => {
            state.size = (columns, rows);
            None
        }
        Msg::Tick(elapsed) => {
            play(state, elapsed);
            None
        }
        Msg::Blocks(blocks) => {
            take(state, blocks);
            None
        }
        Msg::Restart => {
            restart(state);
            None
        }
        Msg::Detail(step, strategy, found) => {
            state.pending = None;
            match found {
                Ok(detail) => keep(state, (step, strategy), detail),
                Err(why) => state.refused = Some(why),
            }
            None
        }
        Msg::WhatIf(answer) => {
            state.whatif.pending = false;
            state.whatif.answer = Some(answer);
            None
        }
        Msg::Points(points) => {
            if state.points.is_none() && state.run.header.is_none() {
                state.view = View::Sweep;
            }
            if points.is_complete() {
                state.status = Status::Complete;
            }
            state.points = Some(points);
            None
        }
        Msg::Saved(Ok(paths)) => {
            let names: Vec<String> = paths
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            state.message = Some(format!("saved {}", names.join(" and ")));
            None
        }
        Msg::Saved(Err(why)) => {
            state.message = Some(format!("not saved: {why}"));
            None
        }
        Msg::Failed(why) => {
            state.status = Status::Failed(why);
            None
        }
    };
    effect.or_else(|| wanted(state))
}

/// The step to simulate again, where the view needs one that was not recorded in full.
fn wanted(state: &mut State) -> Option<Effect> {
    let idle = state.can_simulate
        && state.pending.is_none()
        && state.refused.is_none()
        && !state.playing
        && state.view.needs_detail();
    if !idle {
        return None;
    }
    let (step, strategy) = (state.step()?.index, state.strategy as u16);
    let ranks = node_wanted(state).unwrap_or(0..0);
    let there = state
        .exact_detail(step, strategy)
        .is_some_and(|detail| ranks.clone().all(|rank| detail.lane(rank).is_some()));
    if there {
        return None;
    }
    state.pending = Some((step, strategy));
    Some(Effect::Detail {
        step,
        strategy,
        ranks,
    })
}

/// The node whose timelines the cluster view shows.
fn node_wanted(state: &State) -> Option<std::ops::Range<usize>> {
    let header = state.run.header.as_ref()?;
    let node = header.gpus_per_node as usize;
    let shown = state.view == View::Cluster && state.level >= Level::Node;
    shown.then(|| {
        let first = state.gpu / node * node;
        first..first + node
    })
}

fn keep(state: &mut State, key: (u32, u16), detail: std::sync::Arc<crate::run_file::Detail>) {
    state.simulated_order.retain(|known| *known != key);
    state.simulated_order.push(key);
    state.simulated.insert(key, detail);
    if state.simulated_order.len() > MOST_SIMULATED {
        let oldest = state.simulated_order.remove(0);
        state.simulated.remove(&oldest);
    }
}

fn take(state: &mut State, blocks: Vec<Block>) {
    for block in blocks {
        let first = matches!(block, Block::Header(_));
        if let Err(why) = state.run.push(block) {
            state.status = Status::Failed(format!("{}: {why}", state.source));
            return;
        }
        if first {
            // What adapts is what is looked at.
            state.strategy = state.run.strategies().min(2).saturating_sub(1);
            let measured = state
                .run
                .header
                .as_ref()
                .is_none_or(|header| header.measured);
            state.can_simulate = state.has_laboratory && !measured;
        }
    }
    if state.run.end.is_some() {
        state.status = Status::Complete;
    }
    if state.at_end {
        state.cursor = state.run.steps.len().saturating_sub(1);
    }
}

/// Forgets the run, but not what the user chose.
fn restart(state: &mut State) {
    let mut fresh = State::new(state.source.clone(), state.theme, state.size);
    fresh.view = state.view;
    fresh.has_laboratory = state.has_laboratory;
    fresh.speed = state.speed;
    *state = fresh;
}

/// Plays steps for `elapsed`.
fn play(state: &mut State, elapsed: Duration) {
    if !state.playing {
        return;
    }
    state.played += elapsed.as_secs_f64().min(1.0) * state.speed;
    let steps = state.played.floor();
    state.played -= steps;
    let last = state.run.steps.len().saturating_sub(1);
    state.cursor = (state.cursor + steps as usize).min(last);
    if state.cursor == last && state.status != Status::Running {
        state.playing = false;
        state.at_end = true;
    }
}

fn press(state: &mut State, key: KeyEvent) -> Option<Effect> {
    state.message = None;
    if state.filtering {
        return type_filter(state, key);
    }
    let action = action(key)?;
    if state.help && !matches!(action, Action::Quit | Action::Save) {
        state.help = false;
        return None;
    }
    act(state, action)
}

fn type_filter(state: &mut State, key: KeyEvent) -> Option<Effect> {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => {
            return Some(Effect::Quit);
        }
        KeyCode::Enter => state.filtering = false,
        KeyCode::Esc => {
            state.filtering = false;
            state.filter.clear();
        }
        KeyCode::Backspace => {
            state.filter.pop();
        }
        KeyCode::Char(typed) if !typed.is_control() && state.filter.chars().count() < 40 => {
            state.filter.push(typed);
        }
        _ => {}
    }
    state.row[state.view.index()] = 0;
    None
}

fn act(state: &mut State, action: Action) -> Option<Effect> {
    let view = state.view.index();
    let views = View::ALL.len();
    match action {
        Action::Quit => return Some(Effect::Quit),
        Action::Save => return Some(Effect::Save),
        Action::Help => state.help = true,
        Action::NextView => show(state, View::ALL[(view + 1) % views]),
        Action::PreviousView => show(state, View::ALL[(view + views - 1) % views]),
        Action::View(index) => show(state, View::ALL[usize::from(index) % views]),
        Action::WhatIf => show(state, View::WhatIf),
        Action::Play => {
            if !state.playing && state.cursor + 1 >= state.run.steps.len() {
                state.cursor = 0;
            }
            state.playing = !state.playing && state.run.steps.len() > 1;
            state.at_end &= !state.playing;
        }
        Action::StepBack => go(state, -1),
        Action::StepOn => go(state, 1),
        Action::JumpBack => go(state, -(tenth(state))),
        Action::JumpOn => go(state, tenth(state)),
        Action::First => go(state, isize::MIN / 2),
        Action::Last => go(state, isize::MAX / 2),
        Action::NextStrategy => choose_strategy(state, 1),
        Action::PreviousStrategy => choose_strategy(state, -1),
        Action::Metric => state.metric[view] = state.metric[view].wrapping_add(1),
        Action::Sort => state.sort[view] = state.sort[view].wrapping_add(1),
        Action::Filter => state.filtering = true,
        Action::Theme => {
            use super::theme::Ground;
            state.theme.ground = match state.theme.ground {
                Ground::Dark => Ground::Light,
                Ground::Light => Ground::Dark,
            };
        }
        Action::More => zoom(state, 0.5, 2.0),
        Action::Less => zoom(state, 2.0, 0.5),
        Action::Reset => {
            state.window = Window::ALL;
            state.speed = 4.0;
        }
        Action::Left => return steer(state, -1, 0),
        Action::Right => return steer(state, 1, 0),
        Action::Up => return steer(state, 0, -1),
        Action::Down => return steer(state, 0, 1),
        Action::Enter => enter(state),
        Action::Back => back(state),
    }
    match state.view {
        View::WhatIf if state.whatif.answer.is_none() => whatif::ask(state),
        _ => None,
    }
}

fn show(state: &mut State, view: View) {
    state.view = view;
}

fn tenth(state: &State) -> isize {
    (state.run.steps.len() / 10).max(1) as isize
}

/// Moves the cursor by `steps`; on the last step it stays on the last.
fn go(state: &mut State, steps: isize) {
    let last = state.run.steps.len().saturating_sub(1);
    state.cursor = state.cursor.saturating_add_signed(steps).min(last);
    state.at_end = state.cursor == last && steps > 0;
    state.refused = None;
    state.whatif.answer = None;
}

fn choose_strategy(state: &mut State, by: isize) {
    let count = state.run.strategies().max(1) as isize;
    state.strategy = (state.strategy as isize + by).rem_euclid(count) as usize;
    state.refused = None;
    state.whatif.answer = None;
}

fn zoom(state: &mut State, window: f64, speed: f64) {
    match state.view {
        View::Timeline => state.window = state.window.zoomed(window),
        _ => state.speed = (state.speed * speed).clamp(0.25, 1024.0),
    }
}

/// Arrows: what they move depends on the view.
fn steer(state: &mut State, right: isize, down: isize) -> Option<Effect> {
    let view = state.view.index();
    match state.view {
        View::Overview => {
            go(state, right);
            if down != 0 {
                choose_strategy(state, down);
            }
        }
        View::Timeline => {
            if right != 0 {
                state.window = state.window.panned(right as f64 * 0.2);
            }
            move_row(state, down);
        }
        View::Cluster => cluster::steer(state, right, down),
        View::WhatIf => return whatif::steer(state, right, down),
        View::Compare => {
            if right != 0 {
                go(state, right);
            }
            if down != 0 {
                choose_strategy(state, down);
            }
        }
        View::Experts | View::Network | View::Sweep => {
            move_row(state, down);
            let column = &mut state.column[view];
            *column = column.saturating_add_signed(right).min(1 << 20);
        }
    }
    None
}

fn move_row(state: &mut State, down: isize) {
    let most = match state.view {
        View::Timeline => state.detail().map_or(0, |detail| detail.lanes.len()),
        View::Sweep => sweep::rows(state),
        _ => 1 << 20,
    };
    let row = &mut state.row[state.view.index()];
    *row = row.saturating_add_signed(down).min(most.saturating_sub(1));
}

fn enter(state: &mut State) {
    match state.view {
        View::Cluster => {
            state.level = match state.level {
                Level::World => Level::Pod,
                Level::Pod => Level::Node,
                Level::Node | Level::Gpu => Level::Gpu,
            }
        }
        View::Timeline => super::view::timeline::next_on_path(state),
        _ => {}
    }
}

fn back(state: &mut State) {
    if !state.filter.is_empty() {
        state.filter.clear();
        return;
    }
    match state.view {
        View::Cluster if state.level > Level::World => {
            state.level = match state.level {
                Level::Gpu => Level::Node,
                Level::Node => Level::Pod,
                Level::Pod | Level::World => Level::World,
            }
        }
        View::Timeline => state.window = Window::ALL,
        _ => {}
    }
}

/// The wheel moves rows, or zooms the timeline; a click on a tab shows its view.
fn click(state: &mut State, mouse: MouseEvent) -> Option<Effect> {
    match mouse.kind {
        MouseEventKind::ScrollDown if state.view == View::Timeline => {
            zoom(state, 1.25, 1.0);
        }
        MouseEventKind::ScrollUp if state.view == View::Timeline => zoom(state, 0.8, 1.0),
        MouseEventKind::ScrollDown => return steer(state, 0, 1),
        MouseEventKind::ScrollUp => return steer(state, 0, -1),
        MouseEventKind::Down(MouseButton::Left) => {
            state.message = None;
            if state.help {
                state.help = false;
            } else if mouse.row == 0 {
                if let Some(view) = super::view::tab_at(state.size.0, mouse.column) {
                    show(state, view);
                }
            } else if state.view == View::Cluster {
                cluster::click(state, mouse.column, mouse.row);
            } else if state.view == View::Overview {
                super::view::overview::click(state, mouse.column, mouse.row);
            }
        }
        _ => {}
    }
    None
}
