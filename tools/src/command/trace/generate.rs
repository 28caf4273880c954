//! `trace generate`: a trace made up.

use super::{Measures, Written, body, write};
use crate::command::compare::to_json;
use crate::error::{Error, Place};
use crate::output::{Answer, trace};
use crate::resolve::Given;
use crate::session::Session;
use crate::settings::{ShapeSettings, TraceSettings};
use clap::Args;
use moeplan_traces::{
    FittedTrace, RoutingSpec, RoutingStep, Shape, Trace, TraceError, TraceMeta, TraceStats,
    Transitions,
};
use serde_json::{Value, json};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

/// Most steps and most layers of one run.
const MAX_STEPS: u64 = 1_000_000;
const MAX_LAYERS: u32 = 1_024;

/// `trace generate`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = GRAMMAR)]
pub struct GenerateArgs {
    /// What to make up, such as zipf:1.2,drift=0.1 or w6; --help has the grammar
    #[arg(
        value_name = "SPEC",
        required_unless_present = "like",
        conflicts_with = "like"
    )]
    pub spec: Option<RoutingSpec>,
    /// Make one like this trace instead: its loads, their movement, and how ranks and layers differ
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "joint")]
    pub like: Option<String>,
    /// Lead tokens from layer to layer by these joint counts: rows pair,"(from, to)",count
    #[arg(long, value_name = "FILE")]
    pub joint: Option<PathBuf>,
    /// Shape of the trace; with --like as recorded where nothing is said.
    #[command(flatten, next_help_heading = "Shape")]
    pub shape: ShapeSettings,
    /// What is measured.
    #[command(flatten)]
    pub settings: TraceSettings,
}

/// The grammar, for people.
const GRAMMAR: &str = "\
SPEC is one popularity, then options after commas: zipf:1.2,drift=0.1,domains=4. The same text works
as --routing of simulate, compare and breakdown.

Popularity, drawn once a layer:
  uniform          even, without sampling noise
  zipf:S           the expert of rank i in proportion to i^-S; zipf:0 is even with noise
  dirichlet:A      shares from a symmetric Dirichlet distribution
  power:A          independent loads, density x^-A between 1 and the number of experts
  hot:P            one expert gets the share P
  w0 .. w7         workloads proposed for Megatron-LM: balanced, hot experts, hot rank, spread,
                   source-ragged, zero experts, rotating hotspot, burst
Options, in the order in which they apply:
  phase=N          popularity is drawn anew every N steps
  drift=D          popularity moves on by D experts a step
  domains=N,own=X  rank s reads domain s mod N, whose popularity is its own by X [own: 0.5]
  burst=N          uneven only in the last of every N steps
  balance=H        unevenness halves every H steps, as under a balancing loss
  capacity=A..B,over=N
                   needed capacity moves from A to B within N steps, by a curve of each layer's own
  affinity=X       X of the tokens follow from each expert to a partner in the next layer
  ragged=X         ranks differ in tokens: the last of every eight lacks X of them";

/// A source of steps.
enum Maker<'a> {
    Spec {
        spec: RoutingSpec,
        shape: Shape,
        layers: u32,
        joint: Option<Transitions>,
    },
    Like {
        fitted: FittedTrace<'a>,
        ranks: usize,
        tokens: Option<u32>,
    },
}

impl Maker<'_> {
    fn step(&self, seed: u64, index: u64, count: u64) -> Result<Vec<RoutingStep>, TraceError> {
        match self {
            Maker::Spec {
                spec,
                shape,
                layers,
                joint,
            } => spec.generate_step(shape, seed, index, *layers, joint.as_ref()),
            Maker::Like {
                fitted,
                ranks,
                tokens,
            } => fitted.generate(*ranks, *tokens, seed, index, count),
        }
    }
}

/// Makes a trace up.
///
/// # Errors
/// Settings that cannot be used, a file that cannot be read or written.
pub fn run(args: &GenerateArgs, given: &Given, session: &mut Session<'_>) -> Result<Answer, Error> {
    let measures = Measures::new(given)?;
    let asked = given.flags.trace_shape.over(&given.file.trace_shape);
    let place = |field: &str| given.place(&["trace-shape"], None, field);
    for (field, found, most) in [
        ("steps", asked.steps, MAX_STEPS),
        ("layers", asked.layers.map(u64::from), MAX_LAYERS.into()),
    ] {
        if let Some(found) = found.filter(|found| !(1..=most).contains(found)) {
            let message = format!("expected 1 to {most}, found {found}");
            return Err(Error::input(place(field), message));
        }
    }
    if measures.settings.layer.is_some() && args.like.is_none() {
        let message = "expected a setting of --like; --layers says how many layers are made";
        return Err(Error::input(
            given.place(&["trace"], None, "layer"),
            message,
        ));
    }
    let model = match &args.like {
        Some(name) => Some((name, measures.read(name, "like", given)?)),
        None => None,
    };
    let (maker, count, what) = match (&model, args.spec) {
        (Some((name, model)), _) => like(name, model, &asked, &place)?,
        (None, Some(spec)) => made_up(spec, args.joint.as_deref(), &asked, &place)?,
        // clap asks for one of them.
        (None, None) => return Err(Error::input(place("spec"), "expected a SPEC or --like")),
    };
    let seed = given.seed();
    let meta = meta(&maker, &model, &what, seed, count)?;
    let Written { path, stats } = write(&meta, count, &measures, session, |index| {
        Ok(maker.step(seed, index, count)?)
    })?;
    let mut text = trace::heading(&path, &meta, &stats);
    text += "\n";
    let mut body = body([("file", json!(path)), ("trace", to_json(&meta)?)]);
    match &model {
        Some((_, model)) => {
            let (factors, lags) = (&measures.capacity_factors, &measures.lags);
            let before = TraceStats::of(&model.steps, factors, lags);
            let distance = before.distance(&stats)?;
            text += &trace::side_by_side(["recorded", "made"], [&before, &stats]);
            text += "\n";
            text += &trace::distances(&distance);
            body.insert(
                "recorded".into(),
                Value::Array(measures.layers(&before, true)?),
            );
            body.insert("distance".into(), to_json(&distance.layers)?);
        }
        None => {
            text += &trace::summary(&stats, &measures.capacity_factors);
            text += "\n";
            text += &trace::plots(&stats);
        }
    }
    body.insert(
        "layers".into(),
        Value::Array(measures.layers(&stats, true)?),
    );
    let mut settings = to_json(&asked)?;
    settings["spec"] = json!(args.spec);
    settings["like"] = json!(args.like);
    settings["joint"] = json!(args.joint);
    Ok(Answer {
        command: "trace generate",
        settings,
        seed,
        body,
        rows: "layers",
        text,
    })
}

/// The maker of a specification, the number of steps, and the command without its seed.
fn made_up(
    spec: RoutingSpec,
    joint: Option<&Path>,
    asked: &ShapeSettings,
    place: &dyn Fn(&str) -> Place,
) -> Result<(Maker<'static>, u64, String), Error> {
    let joint = joint.map(transitions).transpose()?;
    let experts = joint.as_ref().map_or(32, Transitions::experts);
    let shape = Shape {
        ranks: asked.gpus.unwrap_or(16),
        experts: asked.num_experts.unwrap_or(experts),
        tokens_per_rank: asked.tokens_per_step.unwrap_or(1024),
        top_k: asked.top_k.unwrap_or(2),
    };
    let shape = checked(shape, place)?;
    let layers = asked
        .layers
        .or(joint.as_ref().map(|joint| joint.pairs() as u32 + 1))
        .unwrap_or(1);
    let count = asked.steps.unwrap_or(16);
    let mut what = format!("{spec} --layers {layers}");
    if joint.is_some() {
        what += " --joint FILE";
    }
    let maker = Maker::Spec {
        spec,
        shape,
        layers,
        joint,
    };
    Ok((maker, count, what))
}

fn transitions(path: &Path) -> Result<Transitions, Error> {
    let name = path.display().to_string();
    let file = File::open(path).map_err(|source| Error::Read {
        path: name.clone(),
        source,
    })?;
    Ok(Transitions::read(BufReader::new(file), &name)?)
}

/// The maker of traces like `model`.
fn like<'a>(
    name: &str,
    model: &'a Trace,
    asked: &ShapeSettings,
    place: &dyn Fn(&str) -> Place,
) -> Result<(Maker<'a>, u64, String), Error> {
    let meta = &model.meta;
    let fixed = [
        (
            "num-experts",
            asked.num_experts.is_some_and(|e| e != meta.experts),
        ),
        ("top-k", asked.top_k.is_some_and(|k| k != meta.top_k)),
        ("layers", asked.layers.is_some()),
    ];
    if let Some((field, _)) = fixed.into_iter().find(|(_, set)| *set) {
        let message =
            "expected that of the trace it is like; change it with `moeplan trace resample`";
        return Err(Error::input(place(field), message));
    }
    let ranks = asked.gpus.unwrap_or(meta.source_ranks);
    let tokens = asked.tokens_per_step;
    checked(
        Shape {
            ranks,
            experts: meta.experts,
            tokens_per_rank: tokens.unwrap_or(1),
            top_k: meta.top_k,
        },
        place,
    )?;
    let fitted = FittedTrace::new(&model.steps)?;
    let recorded = model.steps_of_layer(model.layers()[0]).count() as u64;
    let maker = Maker::Like {
        fitted,
        ranks,
        tokens,
    };
    Ok((
        maker,
        asked.steps.unwrap_or(recorded),
        format!("--like {name}"),
    ))
}

fn meta(
    maker: &Maker<'_>,
    model: &Option<(&String, Trace)>,
    what: &str,
    seed: u64,
    count: u64,
) -> Result<TraceMeta, Error> {
    // The first step has the sizes of all.
    let first = maker.step(seed, 0, count)?;
    let mut meta = match first.first() {
        Some(first) => TraceMeta::of_step(first),
        None => return Err(Error::Unexpected("no layer was made".into())),
    };
    let tokens = match maker {
        Maker::Spec { shape, .. } => Some(shape.tokens_per_rank),
        Maker::Like { tokens, .. } => tokens.or(model
            .as_ref()
            .and_then(|(_, model)| model.meta.tokens_per_rank)),
    };
    meta.tokens_per_rank = tokens.filter(|_| meta.tokens_per_rank.is_some());
    meta.model = match model {
        Some((_, model)) => format!("made up, like: {}", model.meta.model),
        None => format!("made up: {what}"),
    };
    meta.origin = "moeplan trace generate".into();
    meta.licence = match model {
        Some((_, model)) => format!("made up from a trace under: {}", model.meta.licence),
        None => "none needed: made up".into(),
    };
    let tokens = tokens.map_or_else(String::new, |tokens| format!(" --tokens-per-step {tokens}"));
    meta.recorded_by = format!(
        "moeplan trace generate {what} --gpus {} --num-experts {} --top-k {}{tokens} --steps {count} \
         --seed {seed}",
        meta.source_ranks, meta.experts, meta.top_k
    );
    Ok(meta)
}

/// `shape`, if it can be drawn; a mistake is put where it was made.
pub(super) fn checked(shape: Shape, place: &dyn Fn(&str) -> Place) -> Result<Shape, Error> {
    let Err(error) = shape.check() else {
        return Ok(shape);
    };
    let flag = match error.place().field.as_deref() {
        Some("experts") => "num-experts",
        Some("tokens_per_rank") => "tokens-per-step",
        Some("top_k") => "top-k",
        Some(_) | None => "gpus",
    };
    match error {
        TraceError::Invalid {
            expected, found, ..
        } => {
            let message = format!("expected {expected}, found {found}");
            Err(Error::input(place(flag), message))
        }
        other => Err(other.into()),
    }
}
