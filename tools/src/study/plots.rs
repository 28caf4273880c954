//! The plots of the study.

use super::{Findings, Mode};
use crate::error::Error;
use moeplan_traces::{SHIPPED, TraceStats, shipped};
use plotters::prelude::*;

/// Colours that also differ in brightness (after Okabe and Ito).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(150, 150, 150),
];

/// A curve with its name.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

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
        let svg = chart(&title, "GPUs", "gain", &gains(findings, mode), true)?;
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
    let title = "Needed capacity of the shipped traces, layer that needs most";
    let svg = chart(
        title,
        "training step",
        "needed capacity factor",
        &needed,
        false,
    )?;
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

fn chart(title: &str, x: &str, y: &str, curves: &[Curve], log: bool) -> Result<String, Error> {
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let range = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let values = all().map(of);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (left, right) = range(&|point| point.0);
    let (_, top) = range(&|point| point.1);
    let mut svg = String::new();
    let drawn = draw(
        &mut svg,
        title,
        (x, y),
        curves,
        log,
        (left, right.max(left + 1.0), top * 1.05),
    );
    drawn.map_err(|error| Error::Unexpected(format!("plot: {error}")))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    (x, y): (&str, &str),
    curves: &[Curve],
    log: bool,
    (left, right, top): (f64, f64, f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, (760, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&root);
    builder
        .caption(title, ("sans-serif", 17))
        .margin(10)
        .margin_right(210)
        .x_label_area_size(40)
        .y_label_area_size(50);
    // A scale of logarithms, without a second type of chart.
    let place = |value: f64| if log { value.log2() } else { value };
    let mut chart = builder.build_cartesian_2d(place(left)..place(right), 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_labels(if log {
            (place(right) - place(left)) as usize + 1
        } else {
            8
        })
        .x_label_formatter(&|value| match log {
            true => format!("{:.0}", value.exp2()),
            false => format!("{value:.0}"),
        })
        .light_line_style(WHITE)
        .draw()?;
    for (index, curve) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points = || curve.points.iter().map(|&(x, y)| (place(x), y));
        let line = 46 + 18 * index as i32;
        // Once the colours are used up, lines are broken.
        let key = |from: i32, to: i32| {
            PathElement::new(vec![(from, line), (to, line)], colour.stroke_width(3))
        };
        if index < COLOURS.len() {
            chart.draw_series(LineSeries::new(points(), colour.stroke_width(2)))?;
            root.draw(&key(560, 584))?;
        } else {
            let dashed = DashedLineSeries::new(points(), 6, 4, colour.stroke_width(2));
            chart.draw_series(dashed)?;
            root.draw(&key(560, 570))?;
            root.draw(&key(574, 584))?;
        }
        if log {
            let marks = points().map(|point| Circle::new(point, 3, colour.filled()));
            chart.draw_series(marks)?;
        }
        root.draw(&Text::new(
            curve.name.clone(),
            (590, line - 6),
            ("sans-serif", 12),
        ))?;
    }
    root.present()?;
    Ok(())
}
