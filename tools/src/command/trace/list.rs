//! `trace list`: what is shipped.

use super::body;
use crate::error::Error;
use crate::output::Answer;
use crate::output::numbers::three;
use crate::output::table::{Grid, paragraph};
use moeplan_traces::{SHIPPED, TraceStats, shipped};
use serde_json::{Value, json};

/// Lists the shipped traces.
///
/// # Errors
/// None of the user's.
pub fn run() -> Result<Answer, Error> {
    let titles = [
        "name",
        "ranks",
        "experts",
        "top-k",
        "layers",
        "steps",
        "needed f, least to most",
    ];
    let mut grid = Grid::new(titles);
    let (mut rows, mut origins) = (Vec::new(), String::new());
    for name in SHIPPED {
        let trace = shipped(name)?;
        let meta = &trace.meta;
        let stats = TraceStats::of(&trace.steps, &[], &[]);
        let factors = || {
            stats
                .layers
                .iter()
                .map(|layer| layer.needed_capacity_factor)
        };
        let least = factors().map(|f| f.min).fold(f64::INFINITY, f64::min);
        let most = factors().map(|f| f.max).fold(0.0, f64::max);
        let steps = stats.layers.first().map_or(0, |layer| layer.steps);
        grid.row([
            (*name).to_owned(),
            meta.source_ranks.to_string(),
            meta.experts.to_string(),
            meta.top_k.to_string(),
            stats.layers.len().to_string(),
            steps.to_string(),
            format!("{} to {}", three(least), three(most)),
        ]);
        origins += &paragraph(&format!("{name}: {}", meta.model), 2);
        rows.push(json!({
            "name": name,
            "meta": meta,
            "layers": stats.layers.len(),
            "steps": steps,
            "needed_capacity_factor": {"min": least, "max": most},
        }));
    }
    Ok(Answer {
        command: "trace list",
        settings: json!({}),
        seed: 0,
        body: body([("traces", Value::Array(rows))]),
        rows: "traces",
        text: format!("{}\n{origins}", grid.render(16)),
    })
}
