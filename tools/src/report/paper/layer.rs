//! The whole layer: needed capacity, time, memory, the ladder of features.

use super::{Refused, SCALES, curve, found, over_scales};
use crate::error::Error;
use crate::output::chart::{Bars, Curve, Lines};
use crate::report::{Figure, bars, lines};
use crate::validate::Outcome;
use crate::validate::lab::{Lab, adaptive_pipelining, fast_kernels, table2_layer, tutel};
use moeplan_sim::spec::{AllToAll, LayerSpec, Layout, Strategy};
use moeplan_traces::{TraceStats, shipped};

pub(super) fn figure1() -> Result<Figure, Error> {
    let trace = shipped("digits")?;
    let stats = TraceStats::of(&trace.steps, &[], &[]);
    let curves: Vec<Curve> = stats
        .layers
        .iter()
        .map(|layer| {
            let steps = layer.per_step.iter();
            let range = layer.needed_capacity_factor;
            Curve {
                name: format!("layer {}: {:.1}x", layer.layer, range.max / range.min),
                points: steps
                    .map(|step| (step.step as f64, step.needed_capacity_factor))
                    .collect(),
            }
        })
        .collect();
    lines(
        "figure-1",
        &Lines {
            title: "Needed capacity factor of the trace `digits`, by layer",
            x: "training step",
            y: "needed capacity factor",
            curves: &curves,
            ..Lines::default()
        },
    )
}

pub(super) fn table2(lab: &Lab, outcomes: &[Outcome]) -> Result<Figure, Refused> {
    let groups = ["16 GPUs", "256 GPUs"].map(str::to_owned);
    let mut series = vec![
        ("layer".to_owned(), Vec::new()),
        ("compute".to_owned(), Vec::new()),
        ("all-to-all".to_owned(), Vec::new()),
    ];
    let mut crosses = Vec::new();
    for (group, gpus) in [16, 256].into_iter().enumerate() {
        let step = lab.step(&table2_layer(), gpus, &tutel(AllToAll::Linear, 1))?;
        let times = [step.time, step.compute, step.all_to_all];
        for (index, ((name, heights), time)) in series.iter_mut().zip(times).enumerate() {
            heights.push(time.as_ms_f64());
            let case = found(outcomes, &format!("table2/{gpus}/{name}"));
            crosses.extend(case.map(|(_, published)| (index, group, published)));
        }
    }
    Ok(bars(
        "table-2",
        &Bars {
            title: "Compute and All-to-All of one step",
            y: "ms",
            groups: &groups,
            series: &series,
            published: &crosses,
            ..Bars::default()
        },
    )?)
}

pub(super) fn table5(outcomes: &[Outcome]) -> Result<Figure, Error> {
    let tokens = [4_096, 16_384, 32_768];
    let groups = tokens.map(|tokens| format!("{tokens} tokens"));
    let mut crosses = Vec::new();
    let mut series = Vec::new();
    for (index, who) in ["fairseq", "tutel"].into_iter().enumerate() {
        let mut heights = Vec::new();
        for (group, tokens) in tokens.into_iter().enumerate() {
            let case = found(outcomes, &format!("table5/{tokens}/{who}"));
            heights.push(case.map_or(0.0, |(simulated, _)| simulated));
            crosses.extend(case.map(|(_, published)| (index, group, published)));
        }
        series.push((who.to_owned(), heights));
    }
    bars(
        "table-5",
        &Bars {
            title: "Memory of one layer",
            y: "GiB",
            groups: &groups,
            series: &series,
            published: &crosses,
            ..Bars::default()
        },
    )
}

fn ladder() -> [(&'static str, Strategy); 5] {
    let fast = |all_to_all, layout| fast_kernels(all_to_all, layout);
    [
        ("Fairseq", Strategy::fairseq()),
        (
            "+ fast kernels",
            fast(AllToAll::Linear, Layout::Conventional),
        ),
        ("+ 2DH", fast(AllToAll::TwoDh, Layout::Conventional)),
        ("+ flexible", fast(AllToAll::TwoDh, Layout::Flexible)),
        ("+ adaptive (d, a)", adaptive_pipelining()),
    ]
}

pub(super) fn figure14(lab: &Lab) -> Result<Figure, Refused> {
    let mut curves = Vec::new();
    for (name, strategy) in ladder() {
        curves.push(curve(name, over_scales(), |gpus| {
            lab.ms(&LayerSpec::default(), gpus as u64, &strategy)
        })?);
    }
    Ok(lines(
        "figure-14",
        &Lines {
            title: "Step time as features are added",
            x: "GPUs",
            y: "ms",
            curves: &curves,
            log_x: true,
            log_y: true,
            ..Lines::default()
        },
    )?)
}

pub(super) fn figure15(lab: &Lab) -> Result<Figure, Refused> {
    let groups = SCALES.map(|gpus| gpus.to_string());
    let mut series = vec![
        ("compute".to_owned(), Vec::new()),
        ("all-to-all".to_owned(), Vec::new()),
        ("step".to_owned(), Vec::new()),
    ];
    for gpus in SCALES {
        let step = lab.step(&LayerSpec::default(), gpus, &adaptive_pipelining())?;
        let times = [step.compute, step.all_to_all, step.time];
        for ((_, heights), time) in series.iter_mut().zip(times) {
            heights.push(time.as_ms_f64());
        }
    }
    Ok(bars(
        "figure-15",
        &Bars {
            title: "Compute and All-to-All of Tutel's layer over scale",
            y: "ms",
            groups: &groups,
            series: &series,
            ..Bars::default()
        },
    )?)
}
