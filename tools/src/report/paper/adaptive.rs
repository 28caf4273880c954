//! What is adapted: parallelism and pipelining.

use super::{FACTORS, Refused, curve, found};
use crate::error::Error;
use crate::output::chart::{Bars, Lines};
use crate::report::{Figure, bars, lines};
use crate::validate::Outcome;
use crate::validate::lab::{
    Lab, adaptive_pipelining, square_layer, table6_layers, table6_times, tutel,
};
use moeplan_sim::spec::{AllToAll, Choice, Experts, LayerSpec, SpecError, Strategy};
use rayon::prelude::*;

pub(super) fn figure3(lab: &Lab) -> Result<Figure, Refused> {
    let ms = |top_k: u32, factor: f64, adaptive_r: u64| {
        let layer = LayerSpec {
            tokens_per_step: 4_096,
            hidden_dim: 16_384,
            experts: Experts::Total(16),
            top_k,
            capacity_factor: factor,
            ..LayerSpec::default()
        };
        let strategy = Strategy {
            adaptive_r: Choice::Fixed(adaptive_r),
            ..tutel(AllToAll::Linear, 1)
        };
        lab.ms(&layer, 64, &strategy)
    };
    let mut curves = Vec::new();
    for top_k in [1, 2] {
        for (name, r) in [("EP+DP", 1), ("EP+MP", 4)] {
            curves.push(curve(format!("{name} (r={r}), k={top_k}"), FACTORS, |f| {
                ms(top_k, f, r)
            })?);
        }
    }
    Ok(lines(
        "figure-3",
        &Lines {
            title: "Step time of EP+DP and EP+MP",
            x: "capacity factor",
            y: "ms",
            curves: &curves,
            ..Lines::default()
        },
    )?)
}

/// For how many models of Table 6 each static choice is the fastest; of equals the first.
pub(super) fn figure5(lab: &Lab) -> Result<Figure, Refused> {
    let layers = table6_layers();
    let scales = [16, 64, 256];
    let groups = scales.map(|gpus| format!("{gpus} GPUs"));
    let mut series: Vec<(String, Vec<f64>)> = ["linear", "2DH"]
        .into_iter()
        .flat_map(|name| [1, 2, 4, 8].map(|degree| (format!("{name}, degree {degree}"), vec![])))
        .collect();
    for gpus in scales {
        let best = layers.par_iter().map(|layer| {
            let times = table6_times(lab, layer, gpus)?;
            Ok((0..times.len()).min_by_key(|&choice| times[choice]))
        });
        let best: Vec<Option<usize>> = best.collect::<Result<_, SpecError>>()?;
        for (choice, (_, heights)) in series.iter_mut().enumerate() {
            let models = best.iter().filter(|&&best| best == Some(choice));
            heights.push(models.count() as f64);
        }
    }
    Ok(bars(
        "figure-5",
        &Bars {
            title: "Models for which a static choice is the fastest",
            y: "models",
            groups: &groups,
            series: &series,
            ..Bars::default()
        },
    )?)
}

/// Average gains, a figure a scale.
pub(super) fn table6(outcomes: &[Outcome]) -> Result<Vec<Figure>, Error> {
    let groups = [1, 2, 4, 8].map(|degree| format!("degree {degree}"));
    let figure = |gpus: u64| {
        let mut series = Vec::new();
        let mut crosses = Vec::new();
        for (index, name) in ["linear", "2dh"].into_iter().enumerate() {
            let mut heights = Vec::new();
            for (group, degree) in [1, 2, 4, 8].into_iter().enumerate() {
                let id = format!("table6/{gpus}/{name}-{degree}/average");
                let case = found(outcomes, &id);
                heights.push(case.map_or(0.0, |(simulated, _)| simulated));
                crosses.extend(case.map(|(_, published)| (index, group, published)));
            }
            series.push((format!("over {name}"), heights));
        }
        bars(
            &format!("table-6-{gpus}"),
            &Bars {
                title: &format!("Average gain of adaptive pipelining, {gpus} GPUs"),
                y: "%",
                groups: &groups,
                series: &series,
                published: &crosses,
                ..Bars::default()
            },
        )
    };
    [16, 64, 256].into_iter().map(figure).collect()
}

pub(super) fn figure12(
    lab: &Lab,
    title: &str,
    layer: fn(f64) -> LayerSpec,
    id: &str,
) -> Result<Figure, Refused> {
    let mut curves = Vec::new();
    for r in [0, 1, 2, 4] {
        curves.push(curve(format!("r = {r}"), FACTORS, |factor| {
            let strategy = Strategy {
                adaptive_r: Choice::Fixed(r),
                ..adaptive_pipelining()
            };
            lab.ms(&layer(factor), 64, &strategy)
        })?);
    }
    Ok(lines(
        id,
        &Lines {
            title,
            x: "capacity factor",
            y: "ms",
            curves: &curves,
            ..Lines::default()
        },
    )?)
}

pub(super) fn figure13(lab: &Lab) -> Result<Figure, Refused> {
    let mut curves = Vec::new();
    for gpus in [16, 64, 256] {
        curves.push(curve(format!("{gpus} GPUs"), FACTORS, |factor| {
            let layer = square_layer(4_096, factor);
            let adaptive = lab.ms(&layer, gpus, &adaptive_pipelining())?;
            let fixed = lab.ms(&layer, gpus, &tutel(AllToAll::Linear, 1))?;
            Ok::<_, SpecError>(100.0 * (fixed / adaptive - 1.0))
        })?);
    }
    Ok(lines(
        "figure-13",
        &Lines {
            title: "Gain of adaptive pipelining over linear at degree 1",
            x: "capacity factor",
            y: "%",
            curves: &curves,
            published: &[(4.0, 39.0), (8.0, 57.0)],
            ..Lines::default()
        },
    )?)
}
