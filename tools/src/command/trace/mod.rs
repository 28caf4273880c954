//! `trace`: routing traces described, compared, made up and rescaled.

pub mod diff;
pub mod generate;
pub mod import;
pub mod list;
pub mod resample;
pub mod stats;
pub mod study;

use crate::command::compare::to_json;
use crate::error::{Error, Exit, Place};
use crate::output::{self, Answer};
use crate::resolve::Given;
use crate::routing::{self, Stream, import_options};
use crate::session::Session;
use crate::settings::TraceSettings;
use crate::trace_file::TraceFile;
use clap::Subcommand;
use moeplan_traces::{
    LAGS, LayerStats, RoutingStep, StatsBuilder, StepStats, Trace, TraceError, TraceMeta,
    TraceStats, TraceStep,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Capacity factors when nothing is said.
const CAPACITY_FACTORS: [f64; 3] = [1.0, 1.25, 2.0];

/// Most capacity factors, and most lags.
const MAX_LIST: usize = 64;

/// The commands on traces.
#[derive(Debug, Clone, Subcommand)]
pub enum TraceCommand {
    /// The traces that moeplan ships
    List,
    /// What servers and routers recorded, as a trace of moeplan's own
    Import(import::ImportArgs),
    /// How uneven a trace is, layer by layer, and how it moves
    Stats(stats::StatsArgs),
    /// Two traces side by side, and how far they are apart
    Diff(diff::DiffArgs),
    /// A trace made up from a specification, or like a recorded one
    Generate(generate::GenerateArgs),
    /// A recorded trace drawn anew for other GPUs, experts or tokens
    Resample(resample::ResampleArgs),
    /// How much of the adaptive gain is left under real skew; writes docs/SKEW.md
    Study(study::StudyArgs),
}

/// Runs one of them.
///
/// # Errors
/// Settings or files that cannot be used.
pub fn run(
    command: TraceCommand,
    mut given: Given,
    session: &mut Session<'_>,
) -> Result<(Answer, Exit), Error> {
    let answer = match command {
        TraceCommand::List => list::run()?,
        TraceCommand::Import(args) => {
            given.flags.trace_import = args.settings;
            import::run(&args.files, &given, session)?
        }
        TraceCommand::Stats(args) => {
            given.flags.trace = args.settings;
            given.flags.report.per_step = args.per_step;
            stats::run(&args.trace, &given)?
        }
        TraceCommand::Diff(args) => {
            given.flags.trace = args.settings;
            diff::run(&args.first, &args.second, &given)?
        }
        TraceCommand::Generate(args) => {
            given.flags.trace = args.settings.clone();
            given.flags.trace_shape = args.shape.clone();
            generate::run(&args, &given, session)?
        }
        TraceCommand::Resample(args) => {
            given.flags.trace = args.settings;
            given.flags.trace_shape = args.shape;
            resample::run(&args.trace, &given, session)?
        }
        TraceCommand::Study(args) => return study::run(&args, &given, session),
    };
    Ok((answer, Exit::Done))
}

/// What is measured.
#[derive(Debug, Clone)]
struct Measures {
    settings: TraceSettings,
    capacity_factors: Vec<f64>,
    lags: Vec<usize>,
}

impl Measures {
    fn new(given: &Given) -> Result<Measures, Error> {
        let settings = given.flags.trace.over(&given.file.trace);
        let place = |field: &str| given.place(&["trace"], None, field);
        let capacity_factors = match settings.capacity_factor.as_slice() {
            [] => CAPACITY_FACTORS.to_vec(),
            factors => factors.to_vec(),
        };
        let lags = match settings.lag.as_slice() {
            [] => LAGS.to_vec(),
            lags => lags.to_vec(),
        };
        let wrong = |f: &&f64| !(f.is_finite() && **f > 0.0 && **f <= 1e6);
        if let Some(factor) = capacity_factors.iter().find(wrong) {
            let message = format!("expected a number above 0, at most 1000000, found {factor}");
            return Err(Error::input(place("capacity-factor"), message));
        }
        if lags.contains(&0) {
            let message = "expected at least 1 step, found 0";
            return Err(Error::input(place("lag"), message));
        }
        for (field, count) in [
            ("capacity-factor", capacity_factors.len()),
            ("lag", lags.len()),
        ] {
            if count > MAX_LIST {
                let message = format!("expected at most {MAX_LIST}, found {count}");
                return Err(Error::input(place(field), message));
            }
        }
        Ok(Measures {
            settings,
            capacity_factors,
            lags,
        })
    }

    fn builder(&self) -> StatsBuilder {
        StatsBuilder::new(&self.capacity_factors, &self.lags)
    }

    /// The trace that `argument` names, step by step, one layer of it if only one is asked for.
    fn stream(
        &self,
        name: &str,
        argument: &str,
    ) -> Result<impl Iterator<Item = Result<RoutingStep, TraceError>>, Error> {
        let stream = self.open(name, argument)?;
        Ok(stream.filter(|step| step.as_ref().map_or(true, |step| self.wants(step))))
    }

    fn open(&self, name: &str, argument: &str) -> Result<Stream, Error> {
        let options = import_options!(self.settings);
        routing::stream(name, &options, Place::flag(format!("--{argument}")))
    }

    /// Measures the trace that `argument` names, a step in memory at a time.
    fn survey(&self, name: &str, argument: &str, given: &Given) -> Result<Survey, Error> {
        let mut stream = self.open(name, argument)?;
        let mut builder = self.builder();
        let mut layers = BTreeSet::new();
        let (mut steps, mut last) = (0, None);
        for step in stream.by_ref() {
            let step = step?;
            layers.insert(step.layer());
            if self.wants(&step) {
                steps += u64::from(last.replace(step.step()) != Some(step.step()));
                builder.push(&step);
            }
        }
        self.check_layer(&layers, given)?;
        Ok(Survey {
            meta: stream.meta(),
            stats: builder.finish(),
            steps,
        })
    }

    /// The trace that `argument` names, in memory.
    fn read(&self, name: &str, argument: &str, given: &Given) -> Result<Trace, Error> {
        let mut stream = self.open(name, argument)?;
        let mut steps = stream.by_ref().collect::<Result<Vec<_>, _>>()?;
        self.check_layer(&steps.iter().map(RoutingStep::layer).collect(), given)?;
        steps.retain(|step| self.wants(step));
        let meta = stream.meta();
        Ok(Trace { meta, steps })
    }

    /// Whether a step is of the layer that is asked for.
    fn wants(&self, step: &RoutingStep) -> bool {
        self.settings
            .layer
            .is_none_or(|layer| layer == step.layer())
    }

    /// Fails where the layer asked for is none of `layers`.
    fn check_layer(&self, layers: &BTreeSet<u32>, given: &Given) -> Result<(), Error> {
        match self.settings.layer {
            Some(layer) if !layers.contains(&layer) => {
                let known: Vec<String> = layers.iter().map(ToString::to_string).collect();
                let known = known.join(", ");
                let message = format!("expected a recorded layer ({known}), found {layer}");
                let place = given.place(&["trace"], None, "layer");
                Err(Error::input(place, message))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "capacity-factor": self.capacity_factors,
            "lag": self.lags,
            "layer": self.settings.layer,
        })
    }

    /// The layers as JSON, without their experts where `brief`.
    fn layers(&self, stats: &TraceStats, brief: bool) -> Result<Vec<Value>, Error> {
        let layers = stats.layers.iter();
        layers.map(|layer| self.layer(layer, brief)).collect()
    }

    fn layer(&self, layer: &LayerStats, brief: bool) -> Result<Value, Error> {
        let mut value = to_json(layer)?;
        if let Value::Object(map) = &mut value {
            map.insert("dropped".into(), self.by_factor(&layer.dropped));
            let lags = layer.autocorrelation.iter();
            let lags: Map<String, Value> =
                lags.map(|a| (a.lag.to_string(), json!(a.value))).collect();
            map.insert("autocorrelation".into(), Value::Object(lags));
            map.insert("changes".into(), json!(layer.change_points.len()));
            if brief {
                map.shift_remove("mean_shares");
                map.shift_remove("change_points");
            }
        }
        Ok(value)
    }

    fn step(&self, step: &StepStats) -> Result<Value, Error> {
        let mut value = to_json(step)?;
        if let Value::Object(map) = &mut value {
            map.insert("dropped".into(), self.by_factor(&step.dropped));
        }
        Ok(value)
    }

    /// What is dropped, by capacity factor: a list would have no columns.
    fn by_factor(&self, dropped: &[f64]) -> Value {
        let pairs = self.capacity_factors.iter().zip(dropped);
        let map: Map<String, Value> = pairs
            .map(|(f, share)| (f.to_string(), json!(share)))
            .collect();
        Value::Object(map)
    }
}

/// What a trace was found to hold.
struct Survey {
    meta: TraceMeta,
    stats: TraceStats,
    /// Recorded steps, all layers of each counted once.
    steps: u64,
}

/// A written trace.
struct Written {
    path: String,
    stats: TraceStats,
}

/// Writes the steps of `count` turns to `--output`, whole or not at all, and measures them.
fn write(
    meta: &TraceMeta,
    count: u64,
    measures: &Measures,
    session: &mut Session<'_>,
    mut turn: impl FnMut(u64) -> Result<Vec<RoutingStep>, Error>,
) -> Result<Written, Error> {
    // From here on --output is the trace; what is said about it goes to standard output.
    let Some(path) = session.output.file.take() else {
        let message = "expected a file for the trace, found none";
        return Err(Error::input(Place::flag("--output"), message));
    };
    let name = path.display().to_string();
    let progress = session.progress(count);
    let mut builder = measures.builder();
    output::replace_with(&path, |file| {
        let mut writer = TraceFile::new(file, &path, meta.clone())?;
        for index in 0..count {
            if session.is_interrupted() {
                return Err(Error::Interrupted);
            }
            for step in turn(index)? {
                builder.push(&step);
                writer.write(&TraceStep::Counts(step))?;
            }
            progress.inc(1);
        }
        writer.finish()?;
        Ok(())
    })?;
    progress.finish_and_clear();
    Ok(Written {
        path: name,
        stats: builder.finish(),
    })
}

fn body<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    let pairs = pairs.into_iter();
    pairs.map(|(key, value)| (key.to_owned(), value)).collect()
}
