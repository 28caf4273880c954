//! Two traces side by side.

use crate::output::numbers::{percent, three};
use crate::output::table::Grid;
use moeplan_traces::{LayerStats, TraceDistance, TraceStats};

/// Statistics of both, a pair of rows a layer that both have.
pub fn side_by_side(names: [&str; 2], both: [&TraceStats; 2]) -> String {
    let titles = [
        "layer",
        "",
        "needed f, mean",
        "least to most",
        "max/mean load",
        "coeff. of variation",
        "dropped at 1",
        "ranks apart",
        "autocorr. lag 1",
        "foreseen by last step, off",
        "layer coupling",
    ];
    let mut grid = Grid::new(titles);
    for first in &both[0].layers {
        let Some(second) = both[1].layer(first.layer) else {
            continue;
        };
        for (index, layer) in [first, second].into_iter().enumerate() {
            let label = if index == 0 {
                layer.layer.to_string()
            } else {
                String::new()
            };
            let cells = [label, names[index].to_owned()];
            grid.row(cells.into_iter().chain(row(layer)));
        }
    }
    grid.render(9)
}

fn row(layer: &LayerStats) -> Vec<String> {
    let f = &layer.needed_capacity_factor;
    let lag_1 = layer.autocorrelation.iter().find(|a| a.lag == 1);
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    vec![
        three(f.mean),
        format!("{} to {}", three(f.min), three(f.max)),
        three(layer.max_over_mean.mean),
        three(layer.coefficient_of_variation.mean),
        or_none(layer.dropped.first().map(|&share| percent(share))),
        percent(layer.source_divergence.mean),
        or_none(lag_1.and_then(|a| a.value).map(three)),
        or_none(layer.forecast.map(|f| percent(f.last_value))),
        or_none(layer.coupling_to_previous.map(three)),
    ]
}

/// How far the two are apart, a row a layer.
pub fn distances(distance: &TraceDistance) -> String {
    let mut grid = Grid::new([
        "layer",
        "total variation",
        "Jensen-Shannon, bits",
        "correlation of loads",
        "total variation, sorted loads",
        "total variation, step by step",
    ]);
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for layer in &distance.layers {
        grid.row([
            layer.layer.to_string(),
            or_none(layer.total_variation.map(percent)),
            or_none(layer.jensen_shannon_bits.map(three)),
            or_none(layer.correlation.map(three)),
            or_none(layer.sorted_total_variation.map(percent)),
            or_none(layer.per_step_total_variation.map(percent)),
        ]);
    }
    let mut text = grid.render(16);
    for (layers, which) in [
        (&distance.only_in_first, "first"),
        (&distance.only_in_second, "second"),
    ] {
        if !layers.is_empty() {
            let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
            text += &format!("only in the {which}: layers {}\n", layers.join(", "));
        }
    }
    text
}
