//! The plots of the study.

use super::{Findings, Mode};
use crate::error::Error;
use crate::output::chart::{Curve, Lines};
use moeplan_traces::{SHIPPED, TraceStats, shipped};

/// Every plot with its file name.
///
/// # Errors
/// None of the user's.
pub fn all(findings: &Findings) -> Result<Vec<(String, String)>, Error> {
    let mut plots = Vec::new();
    for (mode, file) in Mode::ALL
        .into_iter()
        .zip(["factor-one", "covering", "dropless"])
    {
        let title = format!("Static over adaptive step time, {}", mode.title());
        let svg = Lines {
            title: &title,
            x: "GPUs",
            y: "gain",
            curves: &gains(findings, mode),
            log_x: true,
            ..Lines::default()
        }
        .render()?;
        plots.push((format!("gain-{file}.svg"), svg));
    }
    let mut needed = Vec::new();
    for name in SHIPPED {
        let trace = shipped(name)?;
        let stats = TraceStats::of(&trace.steps, &[], &[]);
        let unevenest = stats.layers.iter().max_by(|a, b| {
            let most = |of: &moeplan_traces::LayerStats| of.needed_capacity_factor.max;
            most(a).total_cmp(&most(b))
        });
        if let Some(layer) = unevenest {
            let steps = layer.per_step.iter();
            needed.push(Curve {
                name: format!("{name}, layer {}", layer.layer),
                points: steps
                    .map(|step| (step.step as f64, step.needed_capacity_factor))
                    .collect(),
            });
        }
    }
    let svg = Lines {
        title: "Needed capacity of the shipped traces, layer that needs most",
        x: "training step",
        y: "needed capacity factor",
        curves: &needed,
        ..Lines::default()
    }
    .render()?;
    plots.push(("needed-capacity.svg".into(), svg));
    Ok(plots)
}

/// The median gain of every family by scale, and of balanced routing.
fn gains(findings: &Findings, mode: Mode) -> Vec<Curve> {
    let even = findings.gpus.iter().map(|&gpus| {
        let points = findings.balanced.iter();
        let gains: Vec<f64> = points
            .filter(|p| p.gpus == gpus && p.mode == mode)
            .map(|p| p.gain)
            .collect();
        (gpus as f64, super::report::median(&gains))
    });
    let mut curves = vec![Curve {
        name: "balanced".into(),
        points: even.collect(),
    }];
    for family in findings.families() {
        let points = findings.gpus.iter().map(|&gpus| {
            let gains = findings.at(mode, gpus, Some(family));
            let gains: Vec<f64> = gains.iter().map(|point| point.gain).collect();
            (gpus as f64, super::report::median(&gains))
        });
        curves.push(Curve {
            name: family.to_owned(),
            points: points.collect(),
        });
    }
    curves
}
