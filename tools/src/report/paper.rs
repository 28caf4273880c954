//! The paper's figures and tables, simulated anew, with what was published marked.

use super::page::{Figure, Page, Section};
use super::{bars, lines, trust};
use crate::command::collective::all_to_all_time;
use crate::error::Error;
use crate::output::chart::{Bars, Curve, Lines};
use crate::play::refused;
use crate::session::Session;
use crate::validate::lab::{
    Lab, adaptive_pipelining, fast_kernels, square_layer, table2_layer, tutel,
};
use crate::validate::{Outcome, published};
use moeplan_sim::spec::{AllToAll, Choice, Experts, LayerSpec, Layout, SpecError, Strategy};
use moeplan_sim::units::Time;
use moeplan_traces::{TraceStats, shipped};

const SCALES: [u64; 8] = [16, 32, 64, 128, 256, 512, 1_024, 2_048];
const FACTORS: [f64; 8] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
const MIB: u64 = 1 << 20;

/// What makes a report again.
pub(super) fn facts(seed: u64, command: &str) -> Vec<(String, String)> {
    let version = env!("CARGO_PKG_VERSION");
    [
        ("moeplan", version.to_owned()),
        ("seed", seed.to_string()),
        ("command", command.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Simulates everything in `lab` and reports it.
///
/// # Errors
/// None of the user's.
pub fn paper(lab: &Lab, session: &mut Session<'_>) -> Result<Page, Error> {
    let outcomes = session
        .on_threads(|| published::outcomes(lab))?
        .map_err(|error| refused(&error))?;
    let of = |source: &str| -> Vec<Outcome> {
        let found = outcomes.iter().filter(|outcome| outcome.source == source);
        found.cloned().collect()
    };
    let section = |title: &str, text: &str, figures: Vec<Figure>, sources: &[&str]| Section {
        title: title.to_owned(),
        text: vec![text.to_owned()],
        figures,
        tables: sources
            .iter()
            .map(|source| {
                let id = source.to_lowercase().replace(' ', "-");
                trust::table(&id, source, &of(source))
            })
            .filter(|table| !table.rows.is_empty())
            .collect(),
    };
    let spec = |figure: Result<Figure, Refused>| figure.map_err(Error::from);
    let sections = vec![
        section(
            "Figure 1: needed capacity over training",
            "The paper trains SwinV2 and sees the workload change up to 4.38x within a run, unlike in each \
             layer. Its recording is not public: these are three layers of the trace `digits`, which this \
             project recorded while training.",
            vec![figure1()?],
            &[],
        ),
        section(
            "Figure 3: EP+MP against EP+DP",
            "H = 16K, D = 2048. Published: the two differ by 7.39 % to 27.76 %, by top-k and f. GPUs, experts \
             and tokens are not stated: 64 GPUs, 16 experts, 4,096 tokens a GPU here.",
            vec![spec(figure3(lab))?],
            &["Figure 3"],
        ),
        section(
            "Table 2: compute and All-to-All of one step",
            "H = D = 4K, two experts a GPU, 64K tokens a step.",
            vec![spec(table2(lab, &of("Table 2")))?],
            &["Table 2"],
        ),
        section(
            "Table 5: memory of one layer",
            "",
            vec![table5(&of("Table 5"))?],
            &["Table 5"],
        ),
        section(
            "Table 6: gain of adaptive pipelining over static choices",
            "81 models a scale.",
            table6(&of("Table 6"))?,
            &["Table 6"],
        ),
        section(
            "Figure 12: adaptive parallelism",
            "16 experts on 64 GPUs, D = 2K. Published in words: DP wins at high capacity, then r = 1, then \
             r > 1 as capacity falls.",
            vec![
                spec(figure12(
                    lab,
                    "Base: 4K tokens, H = 2K",
                    4_096,
                    2_048,
                    "fig12-base",
                ))?,
                spec(figure12(
                    lab,
                    "Large: 1K tokens, H = 32K",
                    1_024,
                    32_768,
                    "fig12-large",
                ))?,
            ],
            &["Figure 12"],
        ),
        section(
            "Figure 13: adaptive pipelining by capacity",
            "D = H = 4096, two experts a GPU, 4,096 tokens a step; against linear at degree 1. Published: up \
             to 39 % at f = 4, up to 57 % at f = 8.",
            vec![spec(figure13(lab))?],
            &["Figure 13"],
        ),
        section(
            "Figure 14: the feature ladder over scale",
            "16,384 tokens a step, f = 1, D = H = 2048, two experts a GPU, k = 2, r = 1.",
            vec![spec(figure14(lab))?],
            &["Figure 14"],
        ),
        section(
            "Figure 15: where the time goes over scale",
            "The same layer with all of Tutel's features: time on the compute stream and time of All-to-Alls; \
             the step is shorter than both together where they overlap.",
            vec![spec(figure15(lab))?],
            &[],
        ),
        section(
            "Figure 16b: bus bandwidth of the linear All-to-All",
            "Sizes as nccl-tests counts them. The paper gives no digits of this plot.",
            vec![figure16b(lab)?],
            &[],
        ),
        section(
            "Figure 18: linear against 2DH All-to-All",
            "Published in the first version of the paper: 2DH up to 20.7x over linear at 2,048 GPUs.",
            figure18(lab)?,
            &["First version of the paper"],
        ),
        section(
            "Table 7: SwinV2-MoE",
            "Images a second and GPU; `moeplan model swinv2-moe-b` tells more where it is built.",
            Vec::new(),
            &["Table 7", "Table 8"],
        ),
        trust::section(&outcomes),
    ];
    let sections = sections
        .into_iter()
        .filter(|section| !(section.figures.is_empty() && section.tables.is_empty()))
        .collect();
    Ok(Page {
        title: "Tutel's evaluation, simulated anew".into(),
        about: vec![
            format!("Cluster: {}", lab.hardware.description),
            "Crosses are published figures, where the paper's text gives any. Figures 5 and 16a are not here: \
             the text gives neither their setting nor their numbers."
                .into(),
        ],
        facts: facts(0, "moeplan report paper --output paper.html"),
        sections,
        settings: toml::to_string(&lab.hardware).unwrap_or_default(),
    })
}

/// What simulating a figure fails with.
enum Refused {
    Spec(SpecError),
    Plot(Error),
}

impl From<SpecError> for Refused {
    fn from(error: SpecError) -> Refused {
        Refused::Spec(error)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Plot(error)
    }
}

impl From<Refused> for Error {
    fn from(error: Refused) -> Error {
        match error {
            Refused::Spec(error) => refused(&error),
            Refused::Plot(error) => error,
        }
    }
}

/// A curve of `of` at every one of `places`.
fn curve<E>(
    name: impl Into<String>,
    places: impl IntoIterator<Item = f64>,
    of: impl Fn(f64) -> Result<f64, E>,
) -> Result<Curve, E> {
    let points = places.into_iter().map(|x| Ok((x, of(x)?)));
    Ok(Curve {
        name: name.into(),
        points: points.collect::<Result<_, E>>()?,
    })
}

fn over_scales() -> impl Iterator<Item = f64> {
    SCALES.into_iter().map(|gpus| gpus as f64)
}

fn figure1() -> Result<Figure, Error> {
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
            log_x: false,
            log_y: false,
            published: &[],
        },
    )
}

fn figure3(lab: &Lab) -> Result<Figure, Refused> {
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
            log_x: false,
            log_y: false,
            published: &[],
        },
    )?)
}

fn table2(lab: &Lab, outcomes: &[Outcome]) -> Result<Figure, Refused> {
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
            let id = format!("table2/{gpus}/{name}");
            let found = outcomes.iter().find(|outcome| outcome.id == id);
            crosses.extend(found.map(|outcome| (index, group, outcome.published)));
        }
    }
    Ok(bars(
        "table-2",
        &Bars {
            title: "Compute and All-to-All of one step",
            y: "ms",
            groups: &groups,
            series: &series,
            stacked: false,
            level: None,
            published: &crosses,
        },
    )?)
}

fn table5(outcomes: &[Outcome]) -> Result<Figure, Error> {
    let tokens = [4_096, 16_384, 32_768];
    let groups = tokens.map(|tokens| format!("{tokens} tokens"));
    let find = |tokens: u64, who: &str| {
        let id = format!("table5/{tokens}/{who}");
        outcomes.iter().find(move |outcome| outcome.id == id)
    };
    let mut crosses = Vec::new();
    let mut series = Vec::new();
    for (index, who) in ["fairseq", "tutel"].into_iter().enumerate() {
        let mut heights = Vec::new();
        for (group, tokens) in tokens.into_iter().enumerate() {
            let found = find(tokens, who);
            heights.push(found.and_then(|outcome| outcome.simulated).unwrap_or(0.0));
            crosses.extend(found.map(|outcome| (index, group, outcome.published)));
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
            stacked: false,
            level: None,
            published: &crosses,
        },
    )
}

/// Average gains, a figure a scale.
fn table6(outcomes: &[Outcome]) -> Result<Vec<Figure>, Error> {
    let groups = [1, 2, 4, 8].map(|degree| format!("degree {degree}"));
    let figure = |gpus: u64| {
        let mut series = Vec::new();
        let mut crosses = Vec::new();
        for (index, name) in ["linear", "2dh"].into_iter().enumerate() {
            let mut heights = Vec::new();
            for (group, degree) in [1, 2, 4, 8].into_iter().enumerate() {
                let id = format!("table6/{gpus}/{name}-{degree}/average");
                let found = outcomes.iter().find(|outcome| outcome.id == id);
                heights.push(found.and_then(|outcome| outcome.simulated).unwrap_or(0.0));
                crosses.extend(found.map(|outcome| (index, group, outcome.published)));
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
                stacked: false,
                level: None,
                published: &crosses,
            },
        )
    };
    [16, 64, 256].into_iter().map(figure).collect()
}

fn figure12(
    lab: &Lab,
    title: &str,
    tokens: u64,
    hidden_dim: u64,
    id: &str,
) -> Result<Figure, Refused> {
    let mut curves = Vec::new();
    for r in [0, 1, 2, 4] {
        curves.push(curve(format!("r = {r}"), FACTORS, |factor| {
            let layer = LayerSpec {
                tokens_per_step: tokens,
                hidden_dim,
                experts: Experts::Total(16),
                capacity_factor: factor,
                ..LayerSpec::default()
            };
            let strategy = Strategy {
                adaptive_r: Choice::Fixed(r),
                ..adaptive_pipelining()
            };
            lab.ms(&layer, 64, &strategy)
        })?);
    }
    Ok(lines(
        id,
        &Lines {
            title,
            x: "capacity factor",
            y: "ms",
            curves: &curves,
            log_x: false,
            log_y: false,
            published: &[],
        },
    )?)
}

fn figure13(lab: &Lab) -> Result<Figure, Refused> {
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
            log_x: false,
            log_y: false,
            published: &[(4.0, 39.0), (8.0, 57.0)],
        },
    )?)
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

fn figure14(lab: &Lab) -> Result<Figure, Refused> {
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
            published: &[],
        },
    )?)
}

fn figure15(lab: &Lab) -> Result<Figure, Refused> {
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
            stacked: false,
            level: None,
            published: &[],
        },
    )?)
}

/// Bytes over time, times (n-1)/n: the convention of nccl-tests.
fn busbw(bytes: u64, gpus: f64, time: Time) -> f64 {
    bytes as f64 / time.as_secs_f64() / 1e9 * (gpus - 1.0) / gpus
}

fn figure16b(lab: &Lab) -> Result<Figure, Error> {
    let mut curves = Vec::new();
    for mib in [1, 32, 256, 1_024] {
        let scales = over_scales().filter(|&gpus| gpus >= 64.0);
        curves.push(curve(format!("{mib} MiB"), scales, |gpus| {
            let bytes = mib * MIB;
            let time = all_to_all_time(AllToAll::Linear, bytes, gpus as usize, &lab.hardware)?;
            Ok::<_, Error>(busbw(bytes, gpus, time))
        })?);
    }
    lines(
        "figure-16b",
        &Lines {
            title: "Bus bandwidth of the linear All-to-All",
            x: "GPUs",
            y: "GB/s",
            curves: &curves,
            log_x: true,
            log_y: true,
            published: &[],
        },
    )
}

fn figure18(lab: &Lab) -> Result<Vec<Figure>, Error> {
    let figure = |mib: u64| {
        let mut curves = Vec::new();
        for (name, algorithm) in [
            ("linear", AllToAll::Linear),
            ("2DH", AllToAll::TwoDh),
            ("2DH fused, LL128", AllToAll::TwoDhLl128),
        ] {
            let scales = over_scales().filter(|&gpus| gpus >= 64.0);
            curves.push(curve(name, scales, |gpus| {
                let time = all_to_all_time(algorithm, mib * MIB, gpus as usize, &lab.hardware)?;
                Ok::<_, Error>(time.as_ms_f64())
            })?);
        }
        lines(
            &format!("figure-18-{mib}"),
            &Lines {
                title: &format!("All-to-All of {mib} MiB a GPU"),
                x: "GPUs",
                y: "ms",
                curves: &curves,
                log_x: true,
                log_y: true,
                published: &[],
            },
        )
    };
    [1, 32, 256].into_iter().map(figure).collect()
}
