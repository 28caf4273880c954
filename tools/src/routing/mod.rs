//! Where a run's tokens go: balanced, made up, or recorded and scaled to the layer.

mod kept;
mod open;
mod recorded;

pub use kept::Kept;
pub use open::{Stream, open, open_file, open_files, stream};

use crate::error::{Error, Place};
use crate::settings::RoutingSettings;
use moeplan_sim::compile::Steps;
use moeplan_sim::spec::ResolvedLayer;
use moeplan_traces::{RoutingSpec, RoutingStep, Shape};
use rayon::prelude::*;
use recorded::{Recorded, recorded};
use std::sync::Arc;

/// What settings named `trace-ranks`, `trace-tokens`, ... say of files that leave it open. Two groups of
/// settings have them, as flattened TOML tables cannot refuse unknown fields.
macro_rules! import_options {
    ($settings:expr) => {{
        let defaults = moeplan_traces::ImportOptions::default();
        moeplan_traces::ImportOptions {
            source_ranks: $settings.trace_ranks.unwrap_or(defaults.source_ranks),
            tokens_per_rank: $settings.trace_tokens.unwrap_or(defaults.tokens_per_rank),
            experts: $settings.trace_experts,
            top_k: $settings.trace_top_k,
            ..defaults
        }
    }};
}
pub(crate) use import_options;

/// Steps replayed when nothing is said: spread over the trace.
const TRACE_STEPS: u64 = 16;

/// Layers of made-up routing that are drawn for a model, whose MoE layers take them in turn.
const MADE_UP_LAYERS: usize = 4;

/// Most steps of one run.
const MAX_STEPS: u64 = 1_000_000;

/// Routing of all steps of a run, worked out one at a time: at 2,048 GPUs one takes 32 MiB.
#[derive(Debug, Clone)]
pub struct RoutingSource {
    /// Settings in force.
    pub settings: RoutingSettings,
    seed: u64,
    /// Shapes of successive steps, in turn; they differ in k alone. None where routing is balanced.
    shapes: Vec<Shape>,
    kind: Kind,
    /// Of the layers there are, which one is replayed.
    layer: usize,
    kept: Kept,
}

#[derive(Debug, Clone)]
enum Kind {
    Balanced {
        steps: u64,
    },
    Gates {
        steps: u64,
    },
    Made {
        spec: RoutingSpec,
        steps: u64,
        layers: usize,
    },
    Recorded(Arc<Vec<Recorded>>),
}

impl RoutingSource {
    /// Reads and checks; `layers` are those of successive steps, in turn; `kept` may have the trace
    /// already; `place` says where a field was set.
    ///
    /// # Errors
    /// No such trace, a trace that cannot be read, a specification out of range, or routing that
    /// does not fit in memory.
    pub fn new(
        settings: &RoutingSettings,
        layers: &[ResolvedLayer],
        seed: u64,
        kept: &Kept,
        place: &dyn Fn(&str) -> Place,
    ) -> Result<RoutingSource, Error> {
        RoutingSource::open(settings, layers, (seed, false), kept, place)
    }

    /// The same for a model: all recorded layers, of which its MoE layers follow one each, unless the settings name
    /// one. `layer` is the first MoE layer.
    ///
    /// # Errors
    /// As [`RoutingSource::new`].
    pub fn of_model(
        settings: &RoutingSettings,
        layer: &ResolvedLayer,
        seed: u64,
        kept: &Kept,
        place: &dyn Fn(&str) -> Place,
    ) -> Result<RoutingSource, Error> {
        let layers = std::slice::from_ref(layer);
        RoutingSource::open(settings, layers, (seed, true), kept, place)
    }

    fn open(
        settings: &RoutingSettings,
        layers: &[ResolvedLayer],
        (seed, all): (u64, bool),
        kept: &Kept,
        place: &dyn Fn(&str) -> Place,
    ) -> Result<RoutingSource, Error> {
        let mut settings = settings.clone();
        if settings.trace.is_some() && settings.routing.is_some() {
            let message = "expected either `trace` or `routing`, found both";
            return Err(Error::input(place("routing"), message));
        }
        let of_traces = [
            ("trace-layer", settings.trace_layer.is_some()),
            ("trace-ranks", settings.trace_ranks.is_some()),
            ("trace-tokens", settings.trace_tokens.is_some()),
            ("trace-experts", settings.trace_experts.is_some()),
            ("trace-top-k", settings.trace_top_k.is_some()),
        ];
        if let Some((field, _)) = of_traces.iter().find(|(_, set)| *set)
            && settings.trace.is_none()
        {
            let message = "expected a trace to go with it, found none";
            return Err(Error::input(place(field), message));
        }
        let default = if settings.trace.is_some() {
            TRACE_STEPS
        } else {
            layers.len() as u64
        };
        let steps = settings.steps.unwrap_or(default);
        if !(1..=MAX_STEPS).contains(&steps) {
            let message = format!("expected 1 to {MAX_STEPS}, found {steps}");
            return Err(Error::input(place("steps"), message));
        }
        let kind = match (settings.trace.as_deref(), settings.routing.as_deref()) {
            (Some(name), _) => {
                let read = || recorded(name, &settings, steps, all, place);
                Kind::Recorded(kept.trace(|| (settings.clone(), all), read)?)
            }
            (None, None | Some("balanced")) => Kind::Balanced { steps },
            (None, Some(spec)) => Kind::Made {
                spec: spec.parse()?,
                steps,
                layers: if all { MADE_UP_LAYERS } else { 1 },
            },
        };
        match &kind {
            Kind::Balanced { .. } => settings.routing = Some("balanced".into()),
            Kind::Gates { .. } | Kind::Made { .. } => {}
            Kind::Recorded(trace) => {
                if let [only] = &trace[..] {
                    settings.trace_layer = Some(only.layer);
                }
            }
        }
        settings.steps = Some(match &kind {
            Kind::Recorded(trace) => steps_of(trace) as u64,
            Kind::Balanced { .. } | Kind::Gates { .. } | Kind::Made { .. } => steps,
        });
        let shapes = match &kind {
            Kind::Balanced { .. } | Kind::Gates { .. } => Vec::new(),
            Kind::Made { .. } | Kind::Recorded(_) => {
                layers.iter().map(shape_of).collect::<Result<_, _>>()?
            }
        };
        Ok(RoutingSource {
            settings,
            seed,
            shapes,
            kind,
            layer: 0,
            kept: kept.clone(),
        })
    }

    /// Layers there are to follow: one, but for a model.
    pub fn layers(&self) -> usize {
        match &self.kind {
            Kind::Balanced { .. } | Kind::Gates { .. } => 1,
            Kind::Made { layers, .. } => *layers,
            Kind::Recorded(trace) => trace.len(),
        }
    }

    /// The routing of a model's MoE layer that follows number `index` of [`RoutingSource::layers`].
    ///
    /// # Errors
    /// A layer whose routing does not fit in memory.
    pub fn of_layer(&self, index: usize, layer: &ResolvedLayer) -> Result<RoutingSource, Error> {
        let reshaped = self.reshaped(std::slice::from_ref(layer))?;
        Ok(RoutingSource {
            layer: index % self.layers(),
            ..reshaped
        })
    }

    /// Routing that the layer's own gates decide, step by step, while it is executed.
    #[must_use]
    pub fn by_gates(self) -> RoutingSource {
        let steps = self.len() as u64;
        RoutingSource {
            kind: Kind::Gates { steps },
            settings: RoutingSettings {
                routing: None,
                ..self.settings
            },
            ..self
        }
    }

    /// The same routing for other layers, without reading the trace again.
    ///
    /// # Errors
    /// A layer whose routing does not fit in memory.
    pub fn reshaped(&self, layers: &[ResolvedLayer]) -> Result<RoutingSource, Error> {
        let shapes = match self.shapes.is_empty() {
            true => Vec::new(),
            false => layers.iter().map(shape_of).collect::<Result<_, _>>()?,
        };
        Ok(RoutingSource {
            shapes,
            ..self.clone()
        })
    }

    /// Shows every recorded step of every MoE layer of the trace, as recorded; nothing where there
    /// is no trace.
    ///
    /// # Errors
    /// A trace that can no longer be read.
    pub fn all_layers(&self, show: &mut dyn FnMut(&RoutingStep)) -> Result<(), Error> {
        let (Kind::Recorded(_), Some(name)) = (&self.kind, &self.settings.trace) else {
            return Ok(());
        };
        for step in stream(name, &import_options!(self.settings), Place::default())? {
            show(&step?);
        }
        Ok(())
    }

    /// Number of steps.
    pub fn len(&self) -> usize {
        match &self.kind {
            Kind::Balanced { steps } | Kind::Gates { steps } | Kind::Made { steps, .. } => {
                *steps as usize
            }
            Kind::Recorded(trace) => steps_of(trace),
        }
    }

    /// Whether every expert gets the same from every GPU.
    pub const fn is_balanced(&self) -> bool {
        matches!(self.kind, Kind::Balanced { .. })
    }

    /// Whether there are no steps; there always are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The routing of step `index`, scaled to the layer; `None` where it is balanced.
    ///
    /// # Errors
    /// A shape that cannot be drawn.
    pub fn step(&self, index: usize) -> Result<Option<Arc<RoutingStep>>, Error> {
        let Some(shape) = self.shape(index) else {
            return Ok(None);
        };
        let key = || (self.settings.clone(), *shape, self.seed, self.layer, index);
        let step = match &self.kind {
            Kind::Balanced { .. } | Kind::Gates { .. } => return Ok(None),
            Kind::Made { spec, .. } => self.kept.step(key, || {
                Ok(spec.generate(shape, self.seed, index as u64, self.layer as u32)?)
            })?,
            Kind::Recorded(trace) => self.kept.step(key, || {
                let recorded = &trace[self.layer].steps[index];
                Ok(recorded.resample(shape, self.seed)?)
            })?,
        };
        Ok(Some(step))
    }

    /// The routing of all steps.
    ///
    /// # Errors
    /// A shape that cannot be drawn.
    pub fn steps(&self) -> Result<Steps, Error> {
        let steps = (0..self.len()).into_par_iter();
        steps.map(|index| self.step(index)).collect()
    }

    fn shape(&self, index: usize) -> Option<&Shape> {
        self.shapes.get(index % self.shapes.len().max(1))
    }

    /// The number of step `index` in its recording.
    pub fn label(&self, index: usize) -> u64 {
        match &self.kind {
            Kind::Balanced { .. } | Kind::Gates { .. } | Kind::Made { .. } => index as u64,
            Kind::Recorded(trace) => trace[self.layer].steps[index].step(),
        }
    }

    /// One line for people: what is replayed, what was kept and what assumed.
    pub fn describe(&self) -> String {
        let of = |steps: u64| match steps {
            1 => "1 step".to_owned(),
            _ => format!("{steps} steps"),
        };
        match &self.kind {
            Kind::Balanced { steps } => format!(
                "balanced: every GPU sends every expert the same number of tokens; {}{}",
                of(*steps),
                if *steps > 1 { ", all alike" } else { "" },
            ),
            Kind::Gates { steps } => format!(
                "by the layer's own gates on random tokens, seed {}; {}",
                self.seed,
                of(*steps)
            ),
            Kind::Made {
                spec,
                steps,
                layers,
            } => {
                let layers = match layers {
                    1 => String::new(),
                    n => format!(", {n} draws a step that MoE layers follow in turn"),
                };
                let steps = of(*steps);
                format!("made up: {spec}, seed {}; {steps}{layers}", self.seed)
            }
            Kind::Recorded(layers) => {
                let Recorded {
                    layer,
                    recorded,
                    reduced,
                    steps,
                } = &layers[self.layer];
                let (Some(shape), Some(first)) = (self.shape(0), steps.first()) else {
                    return String::new();
                };
                let trace = self.settings.trace.as_deref().unwrap_or_default();
                let which = match layers.len() {
                    1 => format!("MoE layer {layer}"),
                    n => format!("all {n} recorded MoE layers in turn"),
                };
                let steps = steps_of(layers);
                let mut what =
                    format!("trace {trace}, {which}, {steps} of {recorded} recorded steps");
                if !reduced.is_empty() {
                    what += &format!(" ({})", reduced.join("; "));
                }
                if self.as_recorded() {
                    return format!("{what}, as recorded");
                }
                format!(
                    "{what}, drawn anew for this layer (seed {}): shares of experts and how they \
                     differ between ranks are kept, {} ranks x {} experts become {} x {}, tokens \
                     are assumed independent",
                    self.seed,
                    first.source_ranks(),
                    first.num_experts(),
                    shape.ranks,
                    shape.experts,
                )
            }
        }
    }

    /// What figures that count tokens rest on.
    pub fn trust(&self) -> &'static str {
        match &self.kind {
            Kind::Balanced { .. } => "assumed",
            Kind::Gates { .. } => "counted",
            Kind::Made { .. } => "made-up",
            Kind::Recorded(_) if self.as_recorded() => "recorded",
            Kind::Recorded(_) => "resampled",
        }
    }

    /// Whether the layer has the shape of the recording, so that its steps are replayed unchanged.
    fn as_recorded(&self) -> bool {
        let Kind::Recorded(trace) = &self.kind else {
            return false;
        };
        let steps = &trace[self.layer].steps;
        let recorded = steps.first().and_then(RoutingStep::shape);
        self.shapes.iter().all(|shape| recorded == Some(*shape))
    }
}

/// The routing that `layer` takes.
///
/// # Errors
/// More tokens than a trace can hold, or a step that does not fit in memory.
pub fn shape_of(layer: &ResolvedLayer) -> Result<Shape, Error> {
    let tokens_per_rank = u32::try_from(layer.tokens()).map_err(|_| {
        let place = Place {
            field: Some("tokens-per-step".into()),
            ..Place::default()
        };
        let message = format!(
            "expected at most {} where routing is not balanced, found {}",
            u32::MAX,
            layer.tokens()
        );
        Error::input(place, message)
    })?;
    let shape = Shape {
        ranks: layer.world_size as usize,
        experts: layer.num_experts as usize,
        tokens_per_rank,
        top_k: layer.spec.top_k,
    };
    shape.check()?;
    Ok(shape)
}

/// Steps that every layer has.
fn steps_of(layers: &[Recorded]) -> usize {
    let steps = layers.iter().map(|layer| layer.steps.len());
    steps.min().unwrap_or(0)
}
