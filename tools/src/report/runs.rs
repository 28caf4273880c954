//! The report of a study: its strategies side by side, step by step, and at other scales.

use super::page::{Cell, Figure, Page, Section, Table};
use super::{bars, lines, trust};
use crate::error::Error;
use crate::output::chart::{Bars, Curve, Lines};
use crate::output::comparison;
use crate::output::numbers::{bytes, percent, three, time, times};
use crate::play::{Plays, play};
use crate::resolve::{Given, Planned, Resolved, cluster, resolve};
use crate::session::Session;
use crate::summary::RunSummary;
use crate::validate::lab::Lab;
use crate::validate::published;

/// Scales beside that of the study.
const SCALES: [u64; 6] = [16, 64, 256, 512, 1_024, 2_048];

const GIB: f64 = (1_u64 << 30) as f64;

/// Plays the study and reports it.
///
/// # Errors
/// Settings that cannot be run.
pub fn runs(
    given: &Given,
    resolved: &Resolved,
    strategies: &[Planned],
    session: &mut Session<'_>,
) -> Result<(Page, bool), Error> {
    let model = resolved.model()?;
    let plays = play(resolved, &*model, session, &mut ())?;
    let runs = summaries(resolved, &plays, true);
    let mut sections = vec![side_by_side(&runs)?];
    if runs.iter().any(|run| run.steps > 1) {
        sections.push(step_by_step(&runs)?);
    }
    if !plays.interrupted {
        sections.push(scale(given, resolved, strategies, session)?);
        let lab = Lab::new(cluster(&Given::default())?.1)?;
        let outcomes = session
            .on_threads(|| published::outcomes(&lab))?
            .map_err(|error| crate::play::refused(&error))?;
        sections.push(trust::section(&outcomes));
    }
    let heading = comparison::heading(resolved);
    let mut about = unwrapped(&heading);
    about.extend(unwrapped(&comparison::reading(&runs)));
    let page = Page {
        title: format!(
            "MoE layer on {} GPUs: {}",
            resolved.layer(0).world_size,
            runs.iter()
                .map(|run| run.strategy.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        ),
        about,
        facts: super::facts(resolved.seed, "moeplan report --config settings.toml"),
        sections,
        settings: settings(resolved)?,
    };
    Ok((page, plays.interrupted))
}

/// Paragraphs that were broken for a terminal.
fn unwrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match lines.last_mut() {
            Some(last) if line.starts_with(' ') => {
                last.push(' ');
                last.push_str(line.trim());
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines
}

/// The study file that the report amounts to.
fn settings(resolved: &Resolved) -> Result<String, Error> {
    let mut study = resolved.study.clone();
    study.output = crate::settings::OutputSettings::default();
    toml::to_string(&study).map_err(|error| Error::Unexpected(format!("TOML: {error}")))
}

fn summaries(resolved: &Resolved, plays: &Plays, per_step: bool) -> Vec<RunSummary> {
    let memory = resolved.hardware.memory_bytes();
    let runs = plays.runs.iter();
    runs.filter_map(|run| {
        RunSummary::new(run, resolved.layer(0), memory, &resolved.routing, per_step)
    })
    .collect()
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

fn side_by_side(runs: &[RunSummary]) -> Result<Section, Error> {
    let names: Vec<String> = runs.iter().map(|run| run.strategy.clone()).collect();
    let stages: Vec<&'static str> = runs
        .first()
        .map(|run| run.stages_ns.iter().map(|(stage, _)| *stage).collect())
        .unwrap_or_default();
    let series: Vec<(String, Vec<f64>)> = stages
        .iter()
        .enumerate()
        .map(|(index, stage)| {
            let heights = runs.iter().map(|run| ms(run.stages_ns[index].1));
            ((*stage).to_owned(), heights.collect())
        })
        .collect();
    let stages = bars(
        "stages",
        &Bars {
            title: "Time by stage (stages that overlap both count)",
            y: "ms",
            groups: &names,
            series: &series,
            stacked: true,
            ..Bars::default()
        },
    )?;
    let step: Vec<f64> = runs.iter().map(|run| ms(run.step_time_ns)).collect();
    let exposed = runs.iter().map(|run| ms(run.exposed_communication_ns));
    let times_of = [
        ("step".to_owned(), step),
        ("exposed communication".to_owned(), exposed.collect()),
    ];
    let step = bars(
        "step-time",
        &Bars {
            title: "Step time, and communication in it that nothing hides",
            y: "ms",
            groups: &names,
            series: &times_of,
            ..Bars::default()
        },
    )?;
    Ok(Section {
        title: "Strategies side by side".into(),
        text: Vec::new(),
        figures: vec![step, stages, memory(&names, runs)?],
        tables: vec![summary(runs)],
    })
}

fn memory(names: &[String], runs: &[RunSummary]) -> Result<Figure, Error> {
    let needed = runs.iter().map(|run| run.memory_bytes_per_gpu as f64 / GIB);
    let series = [("needed".to_owned(), needed.collect())];
    let available = runs.first().map_or(0, |run| run.memory_available_bytes);
    bars(
        "memory",
        &Bars {
            title: "Memory of the fullest GPU",
            y: "GiB",
            groups: names,
            series: &series,
            level: Some(("a GPU has", available as f64 / GIB)),
            ..Bars::default()
        },
    )
}

fn summary(runs: &[RunSummary]) -> Table {
    let columns = [
        "strategy",
        "step time",
        "p95",
        "speed-up",
        "exposed",
        "all-to-all",
        "dropped",
        "capacity factor",
        "memory",
        "fits",
        "plan of most steps",
        "trust",
    ];
    let first = runs.first().map_or(0, |run| run.step_time_ns);
    let rows = runs.iter().map(|run| {
        let nanoseconds = |value: u64| Cell::number(value as f64, time(value));
        let speedup = first as f64 / run.step_time_ns.max(1) as f64;
        let trust = run
            .provenance
            .iter()
            .find(|(key, _)| *key == "step_time")
            .map_or("", |(_, trust)| trust);
        vec![
            run.strategy.as_str().into(),
            nanoseconds(run.step_time_ns),
            nanoseconds(run.step_time_p95_ns),
            Cell::number(speedup, times(speedup)),
            nanoseconds(run.exposed_communication_ns),
            nanoseconds(run.all_to_all_ns),
            Cell::number(run.dropped_fraction, percent(run.dropped_fraction)),
            Cell::number(run.capacity_factor, three(run.capacity_factor)),
            Cell::number(
                run.memory_bytes_per_gpu as f64,
                bytes(run.memory_bytes_per_gpu),
            ),
            if run.fits { "yes" } else { "NO" }.into(),
            run.plans
                .first()
                .map_or_else(String::new, |plan| plan.plan.clone())
                .into(),
            trust.into(),
        ]
    });
    Table {
        id: "strategies".into(),
        caption: "Means over the steps".into(),
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }
}

fn step_by_step(runs: &[RunSummary]) -> Result<Section, Error> {
    let curves = |of: fn(&crate::summary::StepRow) -> f64| -> Vec<Curve> {
        let curve = |run: &RunSummary| Curve {
            name: run.strategy.clone(),
            points: run
                .per_step
                .iter()
                .flatten()
                .map(|row| (row.step as f64, of(row)))
                .collect(),
        };
        runs.iter().map(curve).collect()
    };
    let figure = |id: &str, title: &str, y: &str, of: fn(&crate::summary::StepRow) -> f64| {
        lines(
            id,
            &Lines {
                title,
                x: "recorded step",
                y,
                curves: &curves(of),
                ..Lines::default()
            },
        )
    };
    let figures = vec![
        figure("steps-time", "Step time over the steps", "ms", |row| {
            ms(row.step_time_ns)
        })?,
        figure(
            "steps-capacity",
            "Capacity factor over the steps",
            "f",
            |row| row.capacity_factor,
        )?,
        figure(
            "steps-dropped",
            "Token copies dropped over the steps",
            "%",
            |row| 100.0 * row.dropped_fraction,
        )?,
    ];
    let columns = [
        "strategy",
        "step",
        "time",
        "plan",
        "capacity factor",
        "dropped",
    ];
    let rows = runs.iter().flat_map(|run| {
        run.per_step.iter().flatten().map(|row| {
            vec![
                run.strategy.as_str().into(),
                Cell::number(row.step as f64, row.step.to_string()),
                Cell::number(row.step_time_ns as f64, time(row.step_time_ns)),
                row.plan.as_str().into(),
                Cell::number(row.capacity_factor, three(row.capacity_factor)),
                Cell::number(row.dropped_fraction, percent(row.dropped_fraction)),
            ]
        })
    });
    Ok(Section {
        title: "Step by step".into(),
        text: Vec::new(),
        figures,
        tables: vec![Table {
            id: "steps".into(),
            caption: "Every step".into(),
            columns: columns.map(str::to_owned).to_vec(),
            rows: rows.collect(),
        }],
    })
}

/// The first step of the study at other scales; tokens a GPU stay as they are.
fn scale(
    given: &Given,
    resolved: &Resolved,
    strategies: &[Planned],
    session: &mut Session<'_>,
) -> Result<Section, Error> {
    let own = resolved.layer(0).world_size;
    let mut scales: Vec<u64> = SCALES.into_iter().filter(|&gpus| gpus <= own).collect();
    scales.push(own);
    scales.sort_unstable();
    scales.dedup();
    let mut curves: Vec<Curve> = Vec::new();
    let mut left_out = Vec::new();
    for gpus in scales {
        let mut given = given.clone();
        given.flags.cluster.gpus = Some(gpus);
        given.flags.routing.steps = Some(1);
        let at_scale = match resolve(&given, strategies) {
            Ok(resolved) => resolved,
            Err(error) => {
                left_out.push(format!("{gpus} GPUs are left out: {error}"));
                continue;
            }
        };
        let model = at_scale.model()?;
        let plays = play(&at_scale, &*model, session, &mut ())?;
        for run in summaries(&at_scale, &plays, false) {
            let point = (gpus as f64, ms(run.step_time_ns));
            match curves.iter_mut().find(|curve| curve.name == run.strategy) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Curve {
                    name: run.strategy,
                    points: vec![point],
                }),
            }
        }
    }
    let figure = lines(
        "scale",
        &Lines {
            title: "Step time by scale, first step, tokens a GPU unchanged",
            x: "GPUs",
            y: "ms",
            curves: &curves,
            log_x: true,
            log_y: true,
            ..Lines::default()
        },
    )?;
    Ok(Section {
        title: "At other scales".into(),
        text: left_out,
        figures: vec![figure],
        tables: Vec::new(),
    })
}
