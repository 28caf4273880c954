//! Which experts are hot, and where do they sit?

use super::draw::{Pane, column_of, heat_key, share_of};
use super::{no_detail, stand_in};
use crate::dash::state::{State, View};
use crate::output::numbers::{count, percent, times};
use crate::run_file::Header;
use crate::run_file::model::MEAN_LOAD;
use moeplan_sim::ir::Homes;

/// What can be shown.
const WHAT: [&str; 3] = [
    "experts over the steps: load against the mean",
    "experts of all MoE layers of the trace: load against the mean",
    "experts by load",
];

pub(super) fn draw(state: &State, pane: &mut Pane<'_>) {
    let (width, height) = (pane.width(), pane.height());
    let side = 30;
    let what = state.metric_of(View::Experts, WHAT.len());
    let what = if what == 1 && state.run.layers.is_none() {
        2
    } else {
        what
    };
    let mut main = pane.part(0, 0, width - side, height);
    let mut inside = main.framed(WHAT[what]);
    match what {
        0 => over_steps(state, &mut inside),
        1 => layers(state, &mut inside),
        _ => by_load(state, &mut inside),
    }
    statistics(state, &mut pane.part(width - side, 0, side, height));
}

/// The load against the mean at the hot end of the colours: that of the busiest expert of any step,
/// so that steps can be compared.
fn hot(state: &State) -> f64 {
    let steps = state.run.steps.iter();
    let most = steps
        .map(|step| step.routing.max_over_mean)
        .fold(2.0, f64::max);
    most.ceil().min(16.0)
}

fn legend(state: &State, pane: &mut Pane<'_>) {
    let y = pane.height().saturating_sub(1);
    let high = format!("{}x the mean (one colour in all steps)", hot(state));
    heat_key(pane, 1, y, "0x", &high);
}

/// A row a step, a column a group of experts; the step at hand is marked.
fn over_steps(state: &State, pane: &mut Pane<'_>) {
    let hot = hot(state);
    let steps = &state.run.steps;
    let rows = pane.height().saturating_sub(2);
    let width = pane.width().saturating_sub(8);
    let experts = state.run.header.as_ref().map_or(0, |header| header.experts);
    pane.put(0, 0, "  step", state.theme.dim());
    pane.put(8, 0, "expert 0", state.theme.dim());
    pane.put_right(
        8 + width,
        0,
        &format!("{}", experts.saturating_sub(1)),
        state.theme.dim(),
    );
    let marked = column_of(steps.len(), rows, state.cursor);
    for row in 0..rows.min(steps.len().max(1)) {
        let shown = share_of(steps.len(), rows.min(steps.len()), row);
        let here = shown.contains(&state.cursor) || (steps.len() > rows && row == marked);
        let index = if here { state.cursor } else { shown.start };
        let Some(step) = steps.get(index) else { break };
        let label = format!("{:>6}", step.index + 1);
        let style = if here {
            state.theme.selected()
        } else {
            state.theme.dim()
        };
        pane.put(0, row + 1, &label, style);
        if here {
            pane.glyph(6, row + 1, '▶', state.theme.strong());
        }
        let bins = &step.routing.bins;
        for column in 0..width {
            let bins = &bins[share_of(bins.len(), width, column)];
            let most = bins.iter().copied().max().unwrap_or(0);
            let (glyph, style) = state.theme.heat(f64::from(most) / MEAN_LOAD / hot);
            pane.glyph(8 + column, row + 1, glyph, style);
        }
    }
    legend(state, pane);
}

/// A row a layer of the trace, at the step at hand.
fn layers(state: &State, pane: &mut Pane<'_>) {
    let (Some(layers), Some(step)) = (&state.run.layers, state.step()) else {
        return;
    };
    let near = layers
        .steps
        .iter()
        .min_by_key(|known| known.label.abs_diff(step.label));
    let Some(recorded) = near else { return };
    let hot = hot(state);
    let bins = layers.bins as usize;
    let width = pane.width().saturating_sub(18);
    pane.put(0, 0, "   layer", state.theme.dim());
    pane.put(10, 0, "expert 0", state.theme.dim());
    pane.put_right(
        10 + width,
        0,
        &format!("{}", layers.experts.saturating_sub(1)),
        state.theme.dim(),
    );
    pane.put(11 + width, 0, "needed", state.theme.dim());
    let rows = pane.height().saturating_sub(3);
    let first = state.row[View::Experts.index()].min(layers.layers.len().saturating_sub(rows));
    for (row, place) in (first..layers.layers.len()).take(rows).enumerate() {
        pane.put(
            0,
            row + 1,
            &format!("{:>8}", layers.layers[place]),
            state.theme.strong(),
        );
        let loads = &recorded.loads[place * bins..][..bins];
        for column in 0..width {
            let most = loads[share_of(bins, width, column)].iter().copied().max();
            let load = f64::from(most.unwrap_or(0)) / MEAN_LOAD;
            let (glyph, style) = state.theme.heat(load / hot);
            pane.glyph(10 + column, row + 1, glyph, style);
        }
        let needed = times(recorded.needed_factor[place]);
        pane.put(11 + width, row + 1, &needed, state.theme.strong());
    }
    let y = pane.height().saturating_sub(2);
    let text = format!(
        "recorded step {}, {} experts as recorded",
        recorded.label, layers.experts
    );
    pane.put(1, y, &text, state.theme.dim());
    legend(state, pane);
}

/// A line an expert: its load, where it sits.
fn by_load(state: &State, pane: &mut Pane<'_>) {
    let (Some(detail), Some(header)) = (state.detail(), &state.run.header) else {
        return no_detail(state, pane);
    };
    let mean = detail.loads.iter().map(|load| *load as f64).sum::<f64>()
        / detail.loads.len().max(1) as f64;
    let hot = hot(state);
    let mut experts: Vec<usize> = (0..detail.loads.len())
        .filter(|expert| state.filter.is_empty() || state.keeps(&line(header, *expert)))
        .collect();
    let by_load = state.sort_of(View::Experts, 2) == 0;
    if by_load {
        experts.sort_by_key(|&expert| (std::cmp::Reverse(detail.loads[expert]), expert));
    }
    let top = usize::from(stand_in(state, pane, 0));
    pane.put(1, top, "expert    copies   of mean", state.theme.dim());
    let end = pane.width();
    pane.put_right(
        end - 1,
        top,
        if by_load { "most first" } else { "by number" },
        state.theme.dim(),
    );
    let rows = pane.height().saturating_sub(top + 1);
    let selected = state.row[View::Experts.index()].min(experts.len().saturating_sub(1));
    let first = selected
        .saturating_sub(rows / 2)
        .min(experts.len().saturating_sub(rows));
    let most = detail.loads.iter().copied().max().unwrap_or(1).max(1);
    for (row, &expert) in experts.iter().enumerate().skip(first).take(rows) {
        let y = top + 1 + row - first;
        let load = detail.loads[expert];
        let text = format!(
            "{expert:>7} {:>9}  {:>7}",
            count(load),
            times(load as f64 / mean.max(1e-9))
        );
        pane.put(0, y, &text, ratatui::style::Style::new());
        let home = line(header, expert);
        let bar = end.saturating_sub(30 + 22);
        let (_, style) = state.theme.heat(load as f64 / mean.max(1e-9) / hot);
        pane.bar(28, y, bar, load as f64 / most as f64, style);
        pane.put_right(end - 1, y, &home, state.theme.dim());
        if row == selected {
            pane.restyle(0, y, end, state.theme.selected());
        }
    }
    if experts.is_empty() {
        pane.put(1, top + 1, "no expert holds this text", state.theme.dim());
    }
}

/// Where an expert sits.
fn line(header: &Header, expert: usize) -> String {
    let homes = Homes {
        local_experts: (header.experts / header.gpus).max(1),
        sharded_count: (header.gpus / header.experts).max(1),
        slices: 1,
    };
    let rank = homes.rank(expert as u64, 0, 0);
    let node = rank / header.gpus_per_node;
    match homes.sharded_count {
        1 => format!("GPU {rank}, node {node}"),
        several => format!("GPUs {rank}-{}", rank + several - 1),
    }
}

fn statistics(state: &State, pane: &mut Pane<'_>) {
    let theme = state.theme;
    let mut inside = pane.framed("this step");
    let (Some(step), Some(header)) = (state.step(), &state.run.header) else {
        return;
    };
    let routing = &step.routing;
    let end = inside.width().saturating_sub(1);
    let mut y = 0;
    for (label, value) in [
        ("experts", count(header.experts)),
        (
            "experts a GPU",
            format!("{}", header.experts as f64 / header.gpus as f64),
        ),
        ("busiest, of mean", times(routing.max_over_mean)),
        ("deviation, of mean", percent(routing.variation)),
        ("capacity needed", times(routing.needed_factor)),
    ] {
        inside.put(1, y, label, theme.dim());
        inside.put_right(end, y, &value, theme.strong());
        y += 1;
    }
    if let Some(run) = state.run_now() {
        inside.put(1, y, "dropped", theme.dim());
        inside.put_right(end, y, &percent(run.dropped), theme.strong());
        y += 1;
    }
    y += 1;
    inside.put(1, y, "busiest experts", theme.strong());
    y += 1;
    let mean = (header.copies_per_gpu * header.gpus) as f64 / header.experts as f64;
    for (expert, load) in &routing.hottest {
        inside.put(1, y, &format!("{expert}"), theme.strong());
        let of_mean = times(*load as f64 / mean.max(1e-9));
        inside.put(7, y, &of_mean, theme.dim());
        inside.put_right(
            end,
            y,
            line(header, *expert as usize)
                .split(',')
                .next()
                .unwrap_or_default(),
            theme.dim(),
        );
        y += 1;
    }
    y += 1;
    let height = inside.height();
    if y < height {
        let width = inside.width().saturating_sub(2);
        inside
            .part(1, y, width, height - y)
            .words(0, &header.routing, theme.dim());
    }
}
