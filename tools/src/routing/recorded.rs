//! Steps of a trace that are replayed, by layer.

use super::{import_options, stream};
use crate::error::{Error, Place};
use crate::settings::RoutingSettings;
use moeplan_traces::RoutingStep;
use std::collections::BTreeMap;

/// Steps of one layer of a trace.
#[derive(Debug)]
pub(super) struct Recorded {
    /// Its number in the trace.
    pub(super) layer: u32,
    /// Steps there are in the trace.
    pub(super) recorded: usize,
    /// What was left out of what is in the file.
    pub(super) reduced: Vec<String>,
    /// Those that are replayed.
    pub(super) steps: Vec<RoutingStep>,
}

/// The layers of trace `name` that are replayed: the one that `settings` name, else `all` or the first; `steps` of each,
/// spread from the first to the last (one step is the first).
///
/// A trace may be larger than the memory: it is read once to know its steps, and again for those that are replayed.
pub(super) fn recorded(
    name: &str,
    settings: &RoutingSettings,
    steps: u64,
    all: bool,
    place: &dyn Fn(&str) -> Place,
) -> Result<Vec<Recorded>, Error> {
    let options = import_options!(settings);
    let mut recorded: BTreeMap<u32, usize> = BTreeMap::new();
    let mut first = stream(name, &options, place("trace"))?;
    for step in first.by_ref() {
        *recorded.entry(step?.layer()).or_default() += 1;
    }
    let reduced = first.reduced();
    if recorded.is_empty() {
        let message = "expected at least one step, found none";
        return Err(Error::input(Place::file(name), message));
    }
    if let Some(layer) = settings.trace_layer
        && !recorded.contains_key(&layer)
    {
        let known: Vec<String> = recorded.keys().map(ToString::to_string).collect();
        let message = format!(
            "expected a recorded layer ({}), found {layer}",
            known.join(", ")
        );
        return Err(Error::input(place("trace-layer"), message));
    }
    let wanted = match settings.trace_layer {
        Some(only) => vec![only],
        None if all => recorded.keys().copied().collect(),
        None => recorded.keys().copied().take(1).collect(),
    };
    let mut layers: BTreeMap<u32, Wanted> = wanted
        .into_iter()
        .map(|layer| (layer, Wanted::new(layer, recorded[&layer], steps, &reduced)))
        .collect();
    let mut missing: usize = layers.values().map(|layer| layer.indices.len()).sum();
    let mut second = stream(name, &options, place("trace"))?;
    while missing > 0
        && let Some(step) = second.next()
    {
        let step = step?;
        if let Some(layer) = layers.get_mut(&step.layer()) {
            missing -= usize::from(layer.see(step));
        }
    }
    Ok(layers.into_values().map(|layer| layer.found).collect())
}

/// A layer while its steps are read.
struct Wanted {
    found: Recorded,
    /// Which of its steps are replayed, in order.
    indices: Vec<usize>,
    seen: usize,
}

impl Wanted {
    fn new(layer: u32, recorded: usize, steps: u64, reduced: &[String]) -> Wanted {
        let count = usize::try_from(steps).unwrap_or(usize::MAX).min(recorded);
        let spread = |index: usize| index * (recorded - 1) / (count - 1).max(1);
        Wanted {
            found: Recorded {
                layer,
                recorded,
                reduced: reduced.to_vec(),
                steps: Vec::with_capacity(count),
            },
            indices: (0..count).map(spread).collect(),
            seen: 0,
        }
    }

    /// Keeps the layer's next step where it is replayed; whether it is.
    fn see(&mut self, step: RoutingStep) -> bool {
        let kept = self.indices.binary_search(&self.seen).is_ok();
        self.seen += 1;
        if kept {
            self.found.steps.push(step);
        }
        kept
    }
}
