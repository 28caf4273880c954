//! The keys, from the table that decides them.

use super::draw::Pane;
use crate::dash::keymap::KEYS;
use crate::dash::state::{State, View};

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let shown: Vec<_> = KEYS
        .iter()
        .filter(|binding| !binding.shown.is_empty())
        .collect();
    let (width, height) = (60, shown.len() + 5);
    let x = pane.width().saturating_sub(width) / 2;
    let y = pane.height().saturating_sub(height) / 2;
    let mut over = pane.part(x, y, width, height);
    for row in 0..over.height() {
        over.put(0, row, &" ".repeat(width), ratatui::style::Style::reset());
    }
    let mut inside = over.framed("keys");
    for (row, binding) in shown.iter().enumerate() {
        inside.put(2, row, binding.shown, state.theme.strong());
        inside.put(18, row, binding.does, ratatui::style::Style::new());
    }
    let questions = [
        (View::Overview, "how long does a step take, and why"),
        (View::Experts, "which experts are hot, where do they sit"),
        (View::Timeline, "what ran when, and what decided"),
        (View::Network, "which wires are busy"),
        (View::Cluster, "which GPUs stand out"),
        (View::Compare, "which strategy wins, and by what"),
        (View::Sweep, "which plans are worth their price"),
        (View::WhatIf, "what other settings would do"),
    ];
    let row = shown.len() + 1;
    let question = questions.iter().find(|(view, _)| *view == state.view);
    if let Some((view, asks)) = question {
        inside.put(2, row, view.name(), state.theme.strong());
        inside.put(18, row, &format!("{asks}?"), state.theme.dim());
    }
    inside.put(2, row + 1, "mouse", state.theme.strong());
    inside.put(
        18,
        row + 1,
        "tabs, GPUs; the wheel moves, or zooms",
        ratatui::style::Style::new(),
    );
}
