//! Flags over the study file over defaults, checked: what a command runs on.

pub mod balancing;
pub mod model;
pub mod plan;
mod strategies;

use crate::document::Document;
use crate::error::{Error, Place};
use crate::presets;
use crate::routing::{Kept, RoutingSource};
use crate::settings::{
    EconomySettings, ExportSettings, LayerSettings, RoutingSettings, StrategySettings, Study, TopK,
};
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::cost::gemm_table::GemmTable;
use moeplan_sim::cost::{CostModel, model_of};
use moeplan_sim::hardware::{self, Hardware};
use moeplan_sim::spec::{Experts, LayerSpec, Phase, ResolvedLayer, SpecError, Strategy};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Most GPUs simulated. Programs in which all ranks are alike stay small at any size; this is where
/// index arithmetic and the paper's models end to mean something.
pub const MAX_GPUS: u64 = 65_536;

/// Most GPUs of a dropless step: its matrix of rows by pair of ranks then takes 1 GiB.
pub const MAX_DROPLESS_GPUS: u64 = 16_384;

/// GPUs when nothing is said: the largest published run.
const DEFAULT_GPUS: u64 = 2_048;

/// The cluster when nothing is said: the paper's.
const DEFAULT_CLUSTER: &str = "nd-a100-v4-80gb";

/// A strategy to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// Its choices.
    pub strategy: Strategy,
    /// Whether its capacity is set to what the most uneven step needs.
    pub cover_routing: bool,
}

/// Everything decided and checked.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The settings in force, complete: what the study file would have to say.
    pub study: Study,
    /// The cluster's constants.
    pub hardware: Hardware,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Forward, or a training step.
    pub phase: Phase,
    /// m.
    pub gpus_per_node: u64,
    /// The layer on its world in successive steps, in turn; they differ in top-k alone.
    pub layers: Vec<ResolvedLayer>,
    /// Strategies, in order.
    pub strategies: Vec<Planned>,
    /// Where tokens go.
    pub routing: RoutingSource,
}

impl Resolved {
    /// The layer in step `step`: k may differ from step to step.
    pub fn layer(&self, step: usize) -> &ResolvedLayer {
        &self.layers[step % self.layers.len()]
    }

    /// The prices in force: the cluster's, with the user's own measurements over them.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub fn model(&self) -> Result<Box<dyn CostModel>, Error> {
        let table = self.study.prices.gemm_table.as_deref();
        model(&self.hardware, table, self.layer(0).world_size)
    }
}

/// The prices of `hardware` for `world_size` ranks, with matrix products by `gemm_table` where there is one.
///
/// # Errors
/// A table that cannot be read.
pub fn model(
    hardware: &Hardware,
    gemm_table: Option<&Path>,
    world_size: u64,
) -> Result<Box<dyn CostModel>, Error> {
    let Some(path) = gemm_table else {
        return Ok(model_of(hardware, world_size)?);
    };
    if hardware.cpu.is_some() {
        let message = "expected no table of GPU kernels with a cluster of CPU ranks, whose products `moeplan \
                       calibrate` measured";
        return Err(Error::input(Place::flag("--gemm-table"), message));
    }
    let model = Analytic::new(hardware)?;
    let name = path.display().to_string();
    let file = File::open(path).map_err(|source| Error::Read {
        path: name.clone(),
        source,
    })?;
    let table = GemmTable::read(BufReader::new(file), &hardware.gpu.gemm)
        .map_err(|error| Error::input(Place::file(name), error.to_string()))?;
    Ok(Box::new(model.with_gemm_table(table)))
}

/// Settings of the flags and of the study file, before anything is decided.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// From flags.
    pub flags: Study,
    /// Strategies named by flags; empty where the file decides.
    pub strategies: Vec<String>,
    /// Refinements of all strategies, from flags.
    pub refine: StrategySettings,
    /// From the study file.
    pub file: Study,
    /// The study file.
    pub document: Option<Document>,
    /// Routing that several studies share.
    pub kept: Kept,
}

impl Given {
    /// Which timelines are wanted.
    pub fn export(&self) -> ExportSettings {
        self.flags.export.over(&self.file.export)
    }

    /// Reads the study file at `config`, if any.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn read(config: Option<&Path>) -> Result<Given, Error> {
        let document = config.map(Document::read).transpose()?;
        let file = match &document {
            Some(document) => document.parse()?,
            None => Study::default(),
        };
        let mut given = Given {
            file,
            document,
            ..Given::default()
        };
        // Files that a study names lie beside it.
        let beside = |path: &Option<PathBuf>| path.as_deref().map(|path| given.beside(path));
        let (collective, validate) = (&given.file.collective, &given.file.validate);
        let paths = [
            &collective.matrix,
            &collective.table,
            &given.file.kernel.table,
            &validate.table,
            &validate.data,
            &validate.markdown,
            &validate.record,
            &given.file.report.record,
        ];
        let [
            matrix,
            table,
            kernel_table,
            measured,
            data,
            markdown,
            record,
            run_file,
        ] = paths.map(beside);
        let file = &mut given.file;
        (file.collective.matrix, file.collective.table) = (matrix, table);
        file.kernel.table = kernel_table;
        (file.validate.table, file.validate.data) = (measured, data);
        (file.validate.markdown, file.validate.record) = (markdown, record);
        file.report.record = run_file;
        Ok(given)
    }

    /// A path in the study file, which is relative to that file.
    fn beside(&self, path: &Path) -> PathBuf {
        let document = self.document.as_ref();
        let folder = document.and_then(|document| Path::new(&document.name).parent());
        folder.unwrap_or(Path::new("")).join(path)
    }

    /// The error `error` of the specification, at the flag or line that set the field. `tables` are
    /// the tables of the study file the field can be in, `layer` the layer file if there is one.
    fn blame(&self, tables: &[&str], layer: Option<&Document>, error: &SpecError) -> Error {
        let message = format!("expected {}, found {}", error.expected, error.found);
        Error::input(self.place(tables, layer, error.field), message)
    }

    /// What GPUs cost; a price list is named from where the program runs.
    pub fn economy(&self) -> EconomySettings {
        let mut file = self.file.economy.clone();
        file.price_list = file.price_list.map(|path| self.beside(&path));
        self.flags.economy.over(&file)
    }

    /// The seed in force.
    pub fn seed(&self) -> u64 {
        self.flags.seed.or(self.file.seed).unwrap_or(0)
    }

    /// Where `field` was set: its flag, or its line in one of `tables` of the study file or in the
    /// layer file.
    pub fn place(&self, tables: &[&str], layer: Option<&Document>, field: &str) -> Place {
        if self.flagged(tables, field) {
            return Place::flag(format!("--{field}"));
        }
        let in_study = self.document.as_ref().and_then(|document| {
            tables
                .iter()
                .find_map(|table| document.find(&format!("{table}.{field}")))
        });
        let in_layer = || layer.and_then(|document| document.find(field));
        in_study.or_else(in_layer).unwrap_or_else(|| Place {
            field: Some(field.to_owned()),
            ..Place::default()
        })
    }

    /// Whether a flag set this field of one of `tables`.
    fn flagged(&self, tables: &[&str], field: &str) -> bool {
        // Not as TOML, whose numbers end at 2^63.
        let flags = serde_json::to_value(&self.flags).unwrap_or_default();
        let refine = serde_json::to_value(&self.refine).unwrap_or_default();
        tables.iter().any(|table| {
            let set = match table.starts_with("strategy[") {
                true => refine.get(field),
                false => flags.get(table).and_then(|table| table.get(field)),
            };
            set.is_some()
        })
    }
}

/// Decides and checks everything a simulation needs.
///
/// # Errors
/// The first setting that cannot be used, with where it was set.
pub fn resolve(given: &Given, default_strategies: &[Planned]) -> Result<Resolved, Error> {
    let (flags, file) = (&given.flags, &given.file);
    let (cluster_name, hardware) = cluster(given)?;
    let gpus = flags
        .cluster
        .gpus
        .or(file.cluster.gpus)
        .unwrap_or(DEFAULT_GPUS);
    if !(1..=MAX_GPUS).contains(&gpus) {
        let error = SpecError::new("gpus", format!("1 to {MAX_GPUS}"), gpus);
        return Err(given.blame(&["cluster"], None, &error));
    }
    let gpus_per_node = gpus_per_node(given, &hardware, gpus)?;
    let (layer_name, layer_document, spec, top_k) = layer(given)?;
    let layers = top_k
        .by_step()
        .iter()
        .map(|&top_k| {
            LayerSpec {
                top_k,
                ..spec.clone()
            }
            .resolve(gpus)
        })
        .collect::<Result<Vec<_>, SpecError>>()
        .map_err(|error| given.blame(&["layer"], layer_document.as_ref(), &error))?;
    let strategies = strategies::planned(given, default_strategies)?;
    for (index, planned) in strategies.iter().enumerate() {
        strategies::check(given, index, &planned.strategy, &layers[0])?;
    }
    let seed = given.seed();
    let phase = flags.phase.or(file.phase).unwrap_or(Phase::Training);
    let routing = routing(given);
    let place = |field: &str| given.place(&["routing"], None, field);
    let routing = RoutingSource::new(&routing, &layers, seed, &given.kept, &place)?;
    let mut study = Study {
        seed: Some(seed),
        phase: Some(phase),
        ladder: false,
        strategy: strategies
            .iter()
            .map(|planned| StrategySettings {
                cover_routing: planned.cover_routing.then_some(true),
                ..StrategySettings::of(&planned.strategy)
            })
            .collect(),
        routing: routing.settings.clone(),
        layer: complete_layer(given, layer_name, &spec, top_k),
        ..file.clone()
    };
    study.cluster.preset = Some(cluster_name);
    study.cluster.file = None;
    study.cluster.gpus = Some(gpus);
    study.cluster.gpus_per_node = Some(gpus_per_node);
    study.prices.gemm_table = gemm_table(given);
    study.economy = given.economy();
    study.execute = flags.execute.over(&file.execute);
    study.gate = flags.gate.over(&file.gate);
    study.report.per_step |= flags.report.per_step;
    study.report.timings |= flags.report.timings;
    if flags.report.record.is_some() {
        study.report.record.clone_from(&flags.report.record);
    }
    study.output = flags.output.clone();
    Ok(Resolved {
        study,
        hardware,
        seed,
        phase,
        gpus_per_node,
        layers,
        strategies,
        routing,
    })
}

/// The routing asked for; a file is named from where the program runs.
pub fn routing(given: &Given) -> RoutingSettings {
    let mut file = given.file.routing.clone();
    if let Some(trace) = &file.trace
        && !moeplan_traces::SHIPPED.contains(&trace.as_str())
    {
        file.trace = Some(given.beside(Path::new(trace)).display().to_string());
    }
    given.flags.routing.over(&file)
}

/// The user's own table of matrix products.
fn gemm_table(given: &Given) -> Option<PathBuf> {
    let of_file = || given.file.prices.gemm_table.as_deref();
    let flag = given.flags.prices.gemm_table.clone();
    flag.or_else(|| of_file().map(|path| given.beside(path)))
}

/// The strategies named by flags or the study file, or `defaults`.
///
/// # Errors
/// A strategy that cannot be read.
pub fn strategies(given: &Given, defaults: &[Planned]) -> Result<Vec<Planned>, Error> {
    strategies::planned(given, defaults)
}

/// Whether nobody named a cluster.
pub fn is_default(given: &Given) -> bool {
    let (flags, file) = (&given.flags.cluster, &given.file.cluster);
    flags.preset.is_none() && file.preset.is_none() && file.file.is_none()
}

/// The cluster's name or file, and its constants.
///
/// # Errors
/// No such preset, or a file that cannot be used.
pub fn cluster(given: &Given) -> Result<(String, Hardware), Error> {
    let (flag, file) = (&given.flags.cluster, &given.file.cluster);
    let (name, path, place) = match (&flag.preset, &file.preset, &file.file) {
        (Some(name), _, _) => (name.clone(), PathBuf::from(name), Place::flag("--cluster")),
        (None, Some(_), Some(_)) => {
            let place = given.place(&["cluster"], None, "file");
            return Err(Error::input(
                place,
                "expected either `preset` or `file`, found both",
            ));
        }
        (None, Some(name), None) => (
            name.clone(),
            given.beside(Path::new(name)),
            given.place(&["cluster"], None, "preset"),
        ),
        (None, None, Some(path)) => {
            let path = given.beside(path);
            let hardware = Document::read(&path)?.hardware()?;
            return Ok((path.display().to_string(), hardware));
        }
        (None, None, None) => (
            DEFAULT_CLUSTER.to_owned(),
            PathBuf::from(DEFAULT_CLUSTER),
            Place::flag("--cluster"),
        ),
    };
    if hardware::PRESETS.iter().any(|(known, _)| *known == name) {
        let hardware = hardware::builtin(&name)
            .map_err(|error| Error::Unexpected(format!("built-in preset {name}: {error}")))?;
        return Ok((name, hardware));
    }
    if !looks_like_a_file(&name, &path) {
        let known: Vec<&str> = hardware::PRESETS.iter().map(|(name, _)| *name).collect();
        let message = format!("expected {} or a file, found `{name}`", known.join(", "));
        return Err(Error::input(place, message));
    }
    let hardware = Document::read(&path)?.hardware()?;
    Ok((path.display().to_string(), hardware))
}

/// Fails for a machine without GPUs, whose kernels and collectives have no prices of their own.
///
/// # Errors
/// A file with a `[cpu]` table.
pub fn gpus_only(hardware: &Hardware) -> Result<(), Error> {
    match hardware.cpu {
        None => Ok(()),
        Some(_) => Err(Error::input(
            Place::flag("--cluster"),
            "expected a cluster of GPUs, found a CPU: use it with simulate, compare or breakdown",
        )),
    }
}

/// Whether a name that is no preset is meant as a file: it is there, or is written like one.
fn looks_like_a_file(name: &str, path: &Path) -> bool {
    let written = Path::new(name);
    path.is_file() || written.extension().is_some() || written.components().count() > 1
}

/// m: as set, or as the cluster has it, or all GPUs where they do not fill a node.
///
/// # Errors
/// Nodes that do not divide the GPUs.
pub fn gpus_per_node(given: &Given, hardware: &Hardware, gpus: u64) -> Result<u64, Error> {
    let set = given
        .flags
        .cluster
        .gpus_per_node
        .or(given.file.cluster.gpus_per_node);
    let gpus_per_node = set.unwrap_or(hardware.node.gpus.min(gpus));
    if gpus_per_node == 0 || !gpus.is_multiple_of(gpus_per_node) {
        let error = match set {
            Some(_) => SpecError::new(
                "gpus-per-node",
                format!("a divisor of the {gpus} GPUs"),
                gpus_per_node,
            ),
            None => SpecError::new("gpus", format!("whole nodes of {gpus_per_node} GPUs"), gpus),
        };
        return Err(given.blame(&["cluster"], None, &error));
    }
    Ok(gpus_per_node)
}

/// The layer's name, its file, itself, and k of successive steps.
fn layer(given: &Given) -> Result<(String, Option<Document>, LayerSpec, TopK), Error> {
    let (flag, file) = (&given.flags.layer, &given.file.layer);
    let presets = presets::layers();
    let (name, path, place) = match (&flag.preset, &file.preset, &file.file) {
        (Some(name), _, _) => (name.clone(), PathBuf::from(name), Place::flag("--layer")),
        (None, Some(_), Some(_)) => {
            let place = given.place(&["layer"], None, "file");
            return Err(Error::input(
                place,
                "expected either `preset` or `file`, found both",
            ));
        }
        (None, Some(name), None) => (
            name.clone(),
            given.beside(Path::new(name)),
            given.place(&["layer"], None, "preset"),
        ),
        (None, None, Some(path)) => {
            let path = given.beside(path);
            (path.display().to_string(), path, Place::default())
        }
        (None, None, None) => (
            presets[0].name.to_owned(),
            PathBuf::new(),
            Place::flag("--layer"),
        ),
    };
    let preset = presets.iter().find(|preset| preset.name == name);
    let (document, mut spec, in_file) = match preset {
        Some(preset) => (None, preset.layer.clone(), None),
        None if looks_like_a_file(&name, &path) => {
            let document = Document::read(&path)?;
            let settings: LayerSettings = document.parse()?;
            let place = |field: &str| document.find(field).unwrap_or_default();
            let base = layer_base(&settings, &place)?;
            let mut spec = base;
            overlay(&mut spec, &settings, &place)?;
            (Some(document), spec, settings.top_k)
        }
        None => {
            let known: Vec<&str> = presets.iter().map(|preset| preset.name).collect();
            let message = format!("expected {} or a file, found `{name}`", known.join(", "));
            return Err(Error::input(place, message));
        }
    };
    let place = |field: &str| given.place(&["layer"], None, field);
    overlay(&mut spec, file, &place)?;
    overlay(&mut spec, flag, &place)?;
    let set = flag.top_k.clone().or(file.top_k.clone()).or(in_file);
    let top_k = set.unwrap_or(TopK::always(spec.top_k));
    Ok((name, document, spec, top_k))
}

/// The preset that a layer file starts from: `paper` where it says none.
fn layer_base(settings: &LayerSettings, place: &dyn Fn(&str) -> Place) -> Result<LayerSpec, Error> {
    if settings.file.is_some() {
        let message = "expected a layer, found the name of another layer file";
        return Err(Error::input(place("file"), message));
    }
    let presets = presets::layers();
    let Some(name) = &settings.preset else {
        return Ok(presets[0].layer.clone());
    };
    match presets.iter().find(|preset| preset.name == name) {
        Some(preset) => Ok(preset.layer.clone()),
        None => {
            let known: Vec<&str> = presets.iter().map(|preset| preset.name).collect();
            let message = format!("expected {}, found `{name}`", known.join(", "));
            Err(Error::input(place("preset"), message))
        }
    }
}

fn overlay(
    spec: &mut LayerSpec,
    over: &LayerSettings,
    place: &dyn Fn(&str) -> Place,
) -> Result<(), Error> {
    spec.experts = match (over.experts_per_gpu, over.num_experts) {
        (Some(_), Some(_)) => {
            let message = "expected either `experts-per-gpu` or `num-experts`, found both";
            return Err(Error::input(place("num-experts"), message));
        }
        (Some(per_gpu), None) => Experts::PerGpu(per_gpu),
        (None, Some(total)) => Experts::Total(total),
        (None, None) => spec.experts,
    };
    spec.tokens_per_step = over.tokens_per_step.unwrap_or(spec.tokens_per_step);
    spec.model_dim = over.model_dim.unwrap_or(spec.model_dim);
    spec.hidden_dim = over.hidden_dim.unwrap_or(spec.hidden_dim);
    spec.capacity_factor = over.capacity_factor.unwrap_or(spec.capacity_factor);
    spec.dtype = over.dtype.unwrap_or(spec.dtype);
    spec.gate = over.gate.unwrap_or(spec.gate);
    Ok(())
}

fn complete_layer(given: &Given, name: String, spec: &LayerSpec, top_k: TopK) -> LayerSettings {
    let (experts_per_gpu, num_experts) = match spec.experts {
        Experts::PerGpu(per_gpu) => (Some(per_gpu), None),
        Experts::Total(total) => (None, Some(total)),
    };
    let asked = given.flags.layer.gate.or(given.file.layer.gate);
    LayerSettings {
        preset: Some(name),
        file: None,
        tokens_per_step: Some(spec.tokens_per_step),
        model_dim: Some(spec.model_dim),
        hidden_dim: Some(spec.hidden_dim),
        experts_per_gpu,
        num_experts,
        top_k: Some(top_k),
        capacity_factor: Some(spec.capacity_factor),
        dtype: Some(spec.dtype),
        // A linear gate goes without saying, unless it was asked for: the layer's file may have another.
        gate: (!spec.gate.is_linear() || asked.is_some()).then_some(spec.gate),
    }
}
