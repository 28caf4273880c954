//! How much of the gain of adaptive execution is left under real skew.

pub mod plots;
pub mod report;

use crate::error::{Error, Exit, Place};
use crate::play::play;
use crate::resolve::{Given, Planned, resolve};
use crate::routing;
use crate::session::Session;
use crate::settings::{RoutingSettings, TopK};
use crate::summary::RunSummary;
use moeplan_sim::spec::{Padding, Strategy};
use moeplan_traces::{ImportOptions, LAGS, SHIPPED, Trace, TraceStats};
use serde::Serialize;
use std::fs;
use std::path::Path;

/// How capacity is handled, by static and by adaptive execution alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Capacity factor 1; what exceeds it is dropped.
    FactorOne,
    /// Nothing dropped: static has one capacity that covers all steps, adaptive what each needs.
    Covering,
    /// Nothing dropped, nothing padded: only routed tokens travel.
    Dropless,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 3] = [Mode::FactorOne, Mode::Covering, Mode::Dropless];

    /// For people.
    pub const fn title(self) -> &'static str {
        match self {
            Mode::FactorOne => "padded at f = 1",
            Mode::Covering => "padded, covering",
            Mode::Dropless => "dropless",
        }
    }

    /// Static and adaptive execution.
    fn strategies(self) -> [Planned; 2] {
        let planned = |strategy, cover_routing| Planned {
            strategy,
            cover_routing,
        };
        let with = |base: Strategy, padding, capacity| Strategy {
            name: format!("{} {}", base.name, self.title()),
            padding,
            capacity_factor: capacity,
            ..base
        };
        let (fairseq, tutel) = (Strategy::fairseq, Strategy::tutel);
        match self {
            Mode::FactorOne => [
                planned(with(fairseq(), Padding::Capacity, Some(1.0)), false),
                planned(with(tutel(), Padding::Capacity, Some(1.0)), false),
            ],
            Mode::Covering => [
                planned(with(fairseq(), Padding::Capacity, Some(1.0)), true),
                planned(with(tutel(), Padding::Capacity, Some(0.0)), false),
            ],
            Mode::Dropless => [
                planned(with(fairseq(), Padding::Dropless, None), false),
                planned(with(tutel(), Padding::Dropless, None), false),
            ],
        }
    }
}

/// One layer of a trace.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// The model and data it was recorded on.
    pub family: String,
    /// Shipped name or file.
    pub trace: String,
    /// Recorded MoE layer.
    pub layer: u32,
    /// Experts a token goes to.
    pub top_k: u32,
    /// Ranks and experts as recorded.
    pub ranks: usize,
    /// Experts as recorded.
    pub experts: usize,
    /// Recorded steps.
    pub steps: usize,
    /// Least and most needed capacity factor as recorded.
    pub needed_capacity_factor: [f64; 2],
    /// Mean load of the busiest expert over the mean, as recorded.
    pub max_over_mean: f64,
    /// What the file does not say.
    #[serde(skip)]
    options: ImportOptions,
}

/// Static against adaptive execution of one source at one scale.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The family of the source; `balanced` where nothing is skewed.
    pub family: String,
    /// The source.
    pub trace: String,
    /// Its layer.
    pub layer: u32,
    /// Experts a token goes to.
    pub top_k: u32,
    /// W.
    pub gpus: u64,
    /// How capacity is handled.
    pub mode: Mode,
    /// Mean step time of the static baseline.
    pub static_ns: u64,
    /// Mean step time of adaptive execution.
    pub adaptive_ns: u64,
    /// `static_ns / adaptive_ns`.
    pub gain: f64,
    /// The gain over that of balanced routing at the same scale, mode and top-k.
    pub left: f64,
    /// Adaptive time over that of balanced routing.
    pub slowdown: f64,
    /// Share of copies dropped by adaptive execution.
    pub dropped_fraction: f64,
    /// Capacity factor of the static baseline.
    pub static_capacity_factor: f64,
    /// Mean capacity factor of adaptive execution.
    pub adaptive_capacity_factor: f64,
    /// Whether the static baseline fits in memory.
    pub static_fits: bool,
    /// Whether adaptive execution does.
    pub adaptive_fits: bool,
}

/// What was simulated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Scales, ascending.
    pub gpus: Vec<u64>,
    /// Steps of each trace, at most.
    pub steps: u64,
    /// Layers of traces.
    pub sources: Vec<Source>,
    /// Balanced routing, by scale, mode and top-k.
    pub balanced: Vec<Point>,
    /// All sources at all scales in all modes.
    pub points: Vec<Point>,
}

impl Findings {
    /// Families in the order of the sources.
    pub fn families(&self) -> Vec<&str> {
        let mut families: Vec<&str> = Vec::new();
        for source in &self.sources {
            if !families.contains(&source.family.as_str()) {
                families.push(&source.family);
            }
        }
        families
    }

    /// The points of a mode and scale, of one family or all.
    pub fn at(&self, mode: Mode, gpus: u64, family: Option<&str>) -> Vec<&Point> {
        let points = self.points.iter();
        points
            .filter(|p| p.mode == mode && p.gpus == gpus)
            .filter(|p| family.is_none_or(|family| p.family == family))
            .collect()
    }
}

/// The shipped traces, and the public captures in `data`/traces.
///
/// # Errors
/// A capture that cannot be read.
pub fn sources(data: Option<&Path>) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    for name in SHIPPED {
        add(&mut sources, name, name, ImportOptions::default(), None)?;
    }
    let Some(folder) = data.map(|data| data.join("traces")) else {
        return Ok(sources);
    };
    let tokens = folder.join("gpt-oss-20b_decode.csv");
    if tokens.is_file() {
        let path = tokens.display().to_string();
        let layers = Some(&[0, 8, 16, 23][..]);
        add(
            &mut sources,
            "gpt-oss-20b, decoding",
            &path,
            ImportOptions::default(),
            layers,
        )?;
    }
    let counts = folder.join("olmoe");
    for (model, family, top_k) in [
        ("olmoe", "OLMoE-1B-7B, four domains", 8),
        ("mistral", "Mixtral-8x7B, four domains", 2),
    ] {
        for domain in ["arxiv", "c4", "github", "wikipedia"] {
            let path = counts.join(format!("{model}__expert_counts__{domain}.csv"));
            if path.is_file() {
                let options = ImportOptions {
                    top_k: Some(top_k),
                    ..ImportOptions::default()
                };
                add(
                    &mut sources,
                    family,
                    &path.display().to_string(),
                    options,
                    None,
                )?;
            }
        }
    }
    Ok(sources)
}

fn add(
    sources: &mut Vec<Source>,
    family: &str,
    trace: &str,
    options: ImportOptions,
    layers: Option<&[u32]>,
) -> Result<(), Error> {
    let Trace { meta, steps } = routing::open(trace, &options, Place::file(trace))?;
    let stats = TraceStats::of(&steps, &[], &LAGS);
    for layer in stats.layers {
        if layers.is_none_or(|layers| layers.contains(&layer.layer)) {
            sources.push(Source {
                family: family.to_owned(),
                trace: trace.to_owned(),
                layer: layer.layer,
                top_k: meta.top_k,
                ranks: meta.source_ranks,
                experts: meta.experts,
                steps: layer.steps,
                needed_capacity_factor: [
                    layer.needed_capacity_factor.min,
                    layer.needed_capacity_factor.max,
                ],
                max_over_mean: layer.max_over_mean.mean,
                options: options.clone(),
            });
        }
    }
    Ok(())
}

/// Simulates all `sources` at all scales; nothing where the user stopped it.
///
/// # Errors
/// Settings that cannot be run.
pub fn run(
    sources: Vec<Source>,
    gpus: &[u64],
    steps: u64,
    given: &Given,
    session: &mut Session<'_>,
) -> Result<(Findings, Exit), Error> {
    let mut findings = Findings {
        gpus: gpus.to_vec(),
        steps,
        sources,
        balanced: Vec::new(),
        points: Vec::new(),
    };
    let mut top_ks: Vec<u32> = findings.sources.iter().map(|source| source.top_k).collect();
    top_ks.sort_unstable();
    top_ks.dedup();
    for &scale in gpus {
        for &top_k in &top_ks {
            findings
                .balanced
                .extend(points(None, top_k, scale, 1, given, session)?);
        }
        for source in &findings.sources {
            if session.is_interrupted() {
                return Err(Error::Interrupted);
            }
            session.note(&format!(
                "{scale} GPUs: {}, layer {}",
                source.trace, source.layer
            ));
            let found = points(Some(source), source.top_k, scale, steps, given, session)?;
            findings.points.extend(found);
        }
    }
    for index in 0..findings.points.len() {
        let point = &findings.points[index];
        let even = findings.balanced.iter().find(|even| {
            (even.gpus, even.mode, even.top_k) == (point.gpus, point.mode, point.top_k)
        });
        if let Some(even) = even {
            let (left, slowdown) = (
                point.gain / even.gain,
                point.adaptive_ns as f64 / even.adaptive_ns.max(1) as f64,
            );
            findings.points[index].left = left;
            findings.points[index].slowdown = slowdown;
        }
    }
    Ok((findings, Exit::Done))
}

/// One source, or balanced routing, in all modes.
fn points(
    source: Option<&Source>,
    top_k: u32,
    gpus: u64,
    steps: u64,
    given: &Given,
    session: &mut Session<'_>,
) -> Result<Vec<Point>, Error> {
    let mut given = given.clone();
    given.file.strategy.clear();
    given.file.ladder = false;
    given.flags.cluster.gpus = Some(gpus);
    given.flags.layer.top_k = Some(TopK::always(top_k));
    given.flags.routing = match source {
        Some(source) => RoutingSettings {
            trace: Some(source.trace.clone()),
            trace_layer: Some(source.layer),
            trace_top_k: source.options.top_k,
            steps: Some(steps),
            ..RoutingSettings::default()
        },
        None => RoutingSettings {
            routing: Some("balanced".into()),
            steps: Some(1),
            ..RoutingSettings::default()
        },
    };
    let strategies: Vec<Planned> = Mode::ALL.into_iter().flat_map(Mode::strategies).collect();
    let resolved = resolve(&given, &strategies)?;
    let model = resolved.model()?;
    let plays = play(&resolved, &*model, session, &mut ())?;
    let memory = resolved.hardware.memory_bytes();
    let runs: Vec<RunSummary> = plays
        .runs
        .iter()
        .filter_map(|run| RunSummary::new(run, resolved.layer(0), memory, &resolved.routing, false))
        .collect();
    let pairs = runs.chunks_exact(2).zip(Mode::ALL);
    Ok(pairs
        .map(|(pair, mode)| Point {
            family: source
                .map_or("balanced", |source| &source.family)
                .to_owned(),
            trace: source.map_or("balanced", |source| &source.trace).to_owned(),
            layer: source.map_or(0, |source| source.layer),
            top_k,
            gpus,
            mode,
            static_ns: pair[0].step_time_ns,
            adaptive_ns: pair[1].step_time_ns,
            gain: pair[0].step_time_ns as f64 / pair[1].step_time_ns.max(1) as f64,
            left: 1.0,
            slowdown: 1.0,
            dropped_fraction: pair[1].dropped_fraction,
            static_capacity_factor: pair[0].capacity_factor,
            adaptive_capacity_factor: pair[1].capacity_factor,
            static_fits: pair[0].fits,
            adaptive_fits: pair[1].fits,
        })
        .collect())
}

/// Writes the page and its plots, in a folder `skew` beside it.
///
/// # Errors
/// A file that cannot be written.
pub fn write(findings: &Findings, page: &Path, command: &str) -> Result<(), Error> {
    let folder = page.parent().unwrap_or(Path::new(".")).join("skew");
    fs::create_dir_all(&folder).map_err(|source| Error::Write {
        path: folder.display().to_string(),
        source,
    })?;
    for (name, svg) in plots::all(findings)? {
        crate::output::replace(&folder.join(name), svg.as_bytes())?;
    }
    let text = report::markdown(findings, command);
    crate::output::replace(page, text.as_bytes())
}
