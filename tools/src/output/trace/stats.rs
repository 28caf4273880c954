//! One trace: unevenness, movement, small plots.

use crate::output::numbers::{count, percent, three};
use crate::output::plot::sparkline;
use crate::output::table::{Grid, paragraph};
use moeplan_traces::{LayerStats, Range, TraceMeta, TraceStats};

/// Bars of a plot.
const PLOT: usize = 64;

/// What the trace is, in a few lines.
pub fn heading(name: &str, meta: &TraceMeta, stats: &TraceStats) -> String {
    let steps = stats.layers.iter().map(|layer| layer.steps).max();
    let tokens = match meta.tokens_per_rank {
        Some(tokens) => format!("{} tokens a rank and step", count(tokens.into())),
        None => "tokens a rank vary".into(),
    };
    let mut text = paragraph(
        &format!(
            "{name}: {} ranks x {} experts, top-{}, {tokens}; {} recorded steps of {} layers",
            count(meta.source_ranks as u64),
            count(meta.experts as u64),
            meta.top_k,
            count(steps.unwrap_or(0) as u64),
            stats.layers.len(),
        ),
        2,
    );
    for (key, value) in [
        ("model", &meta.model),
        ("origin", &meta.origin),
        ("licence", &meta.licence),
    ] {
        if !value.is_empty() {
            text += "  ";
            text += &paragraph(&format!("{key}: {value}"), 4);
        }
    }
    for note in &meta.notes {
        text += "  ";
        text += &paragraph(&format!("note: {note}"), 4);
    }
    text
}

fn span(range: &Range) -> String {
    format!("{} to {}", three(range.min), three(range.max))
}

/// One row a layer: how uneven, and how it moves.
pub fn summary(stats: &TraceStats, capacity_factors: &[f64]) -> String {
    let dropped = capacity_factors.iter().map(|f| format!("dropped at {f}"));
    let titles = [
        "layer",
        "needed f, mean",
        "least to most",
        "max/mean load",
        "coeff. of variation",
        "Gini",
        "entropy, bits",
        "top 1",
        "top 10 %",
    ];
    let titles = titles.into_iter().map(String::from).chain(dropped);
    let mut uneven = Grid::new(titles);
    for layer in &stats.layers {
        let f = &layer.needed_capacity_factor;
        let cells = [
            layer.layer.to_string(),
            three(f.mean),
            span(f),
            three(layer.max_over_mean.mean),
            three(layer.coefficient_of_variation.mean),
            three(layer.gini.mean),
            three(layer.entropy_bits.mean),
            percent(layer.top_share.mean),
            percent(layer.top_tenth_share.mean),
        ];
        let dropped = layer.dropped.iter().map(|&share| percent(share));
        uneven.row(cells.into_iter().chain(dropped));
    }
    let mut text = uneven.render(9);
    let movement = movement(stats);
    if !movement.is_empty() {
        text.push('\n');
        text += &movement;
    }
    text
}

/// How loads move; empty where every layer has one step.
fn movement(stats: &TraceStats) -> String {
    let lags = stats
        .layers
        .first()
        .map_or(&[][..], |layer| &layer.autocorrelation);
    let lags = lags.iter().map(|a| format!("autocorr. lag {}", a.lag));
    let titles = ["layer", "ranks apart"]
        .map(String::from)
        .into_iter()
        .chain(lags);
    let titles = titles.chain(
        [
            "foreseen by last step, off",
            "by last 8, off",
            "by mean, off",
            "layer coupling",
            "changes",
        ]
        .map(String::from),
    );
    let mut grid = Grid::new(titles);
    let mut moves = false;
    for layer in &stats.layers {
        let Some(forecast) = layer.forecast else {
            continue;
        };
        moves = true;
        let or_none = |value: Option<f64>| value.map_or_else(|| "-".into(), three);
        let cells = [
            layer.layer.to_string(),
            percent(layer.source_divergence.mean),
        ];
        let lags = layer.autocorrelation.iter().map(|a| or_none(a.value));
        let rest = [
            percent(forecast.last_value),
            percent(forecast.moving_average),
            percent(forecast.mean),
            or_none(layer.coupling_to_previous),
            layer.change_points.len().to_string(),
        ];
        grid.row(cells.into_iter().chain(lags).chain(rest));
    }
    if !moves {
        return String::new();
    }
    grid.render(9)
        + "ranks apart: copies a rank sends elsewhere than the mean rank; off: copies forecast for the \
           wrong expert\n"
}

/// Needed capacity over the steps, mean load of every expert, and where loads change.
pub fn plots(stats: &TraceStats) -> String {
    let mut text = String::new();
    let widest = |of: &dyn Fn(&LayerStats) -> usize| stats.layers.iter().map(of).max().unwrap_or(0);
    let wide = widest(&|layer| layer.layer.to_string().len());
    for layer in &stats.layers {
        let factors: Vec<f64> = layer
            .per_step
            .iter()
            .map(|s| s.needed_capacity_factor)
            .collect();
        let f = &layer.needed_capacity_factor;
        let loads: Vec<f64> = layer
            .mean_shares
            .iter()
            .map(|share| share * layer.mean_shares.len() as f64)
            .collect();
        let most = loads.iter().copied().fold(0.0, f64::max);
        text += &format!("layer {:>wide$}  ", layer.layer);
        let indent = " ".repeat(wide + 8);
        if factors.len() > 1 {
            let plot = sparkline(&factors, PLOT, f.min, f.max);
            text += &format!(
                "{plot}  needed f, {} at first, {} at last\n{indent}",
                three(f.first),
                three(f.last)
            );
        }
        let plot = sparkline(&loads, PLOT, 0.0, most);
        text += &format!(
            "{plot}  loads by expert, up to {} of the mean\n",
            three(most)
        );
        if !layer.change_points.is_empty() {
            let changes: Vec<String> = layer
                .change_points
                .iter()
                .map(|change| format!("{} ({})", change.step, percent(change.distance)))
                .collect();
            let line = format!("loads change at step {}", changes.join(", "));
            text += &indent;
            text += &paragraph(&line, indent.len());
        }
    }
    text
}

/// Every step of every layer.
pub fn per_step(stats: &TraceStats, capacity_factors: &[f64]) -> String {
    let dropped = capacity_factors.iter().map(|f| format!("dropped at {f}"));
    let titles = [
        "step",
        "layer",
        "copies",
        "needed f",
        "max/mean load",
        "coeff. of variation",
        "Gini",
        "entropy, bits",
        "top 1",
        "top 10 %",
        "ranks apart",
    ];
    let mut grid = Grid::new(titles.into_iter().map(String::from).chain(dropped));
    let mut steps: Vec<_> = stats
        .layers
        .iter()
        .flat_map(|layer| &layer.per_step)
        .collect();
    steps.sort_by_key(|step| (step.step, step.layer));
    for step in steps {
        let cells = [
            step.step.to_string(),
            step.layer.to_string(),
            count(step.copies),
            three(step.needed_capacity_factor),
            three(step.max_over_mean),
            three(step.coefficient_of_variation),
            three(step.gini),
            three(step.entropy_bits),
            percent(step.top_share),
            percent(step.top_tenth_share),
            percent(step.source_divergence),
        ];
        let dropped = step.dropped.iter().map(|&share| percent(share));
        grid.row(cells.into_iter().chain(dropped));
    }
    grid.render(9)
}
