//! What the layers of a world are loaded with: routing under a capacity, on experts where they were put.

use super::outline::Outline;
use super::space::{Candidate, Space, World};
use crate::balance::{Arranger, Balancing};
use crate::compile::{Drops, Load, MoeRun, Plan, Routing, Steps};
use crate::model::{ModelRun, MoeGroups};
use crate::simulate::Scenario;
use crate::spec::{Padding, ResolvedLayer, SpecError};
use crate::units::Time;
use rayon::prelude::*;

/// What runs in a world: the layer alone, or the MoE layers of a model by group.
pub(super) struct Parts<'a> {
    scenario: Scenario<'a>,
    /// The model around them and how they are grouped, if one is planned.
    pub(super) model: Option<(ModelRun<'a>, MoeGroups)>,
    /// Its blocks, where they repeat.
    pub(super) outline: Option<Outline>,
    /// The layers, one a group.
    pub(super) layers: Vec<ResolvedLayer>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(space: &'a Space<'a>, world: &'a World) -> Result<Parts<'a>, SpecError> {
        let scenario = space.scenario(world);
        let Some(run) = space.model_run(world) else {
            return Ok(Parts {
                scenario,
                model: None,
                outline: None,
                layers: vec![world.layer.clone()],
            });
        };
        let recorded = space.whole.map_or(1, |whole| whole.recorded);
        let groups = MoeGroups::new(run.model, recorded);
        Ok(Parts {
            scenario,
            layers: run.layers(&groups)?,
            outline: Outline::new(run.model, &groups, run.phase),
            model: Some((run, groups)),
        })
    }

    /// By group: the recorded layer that it follows, and how many layers it has.
    fn groups(&self) -> Vec<(usize, u64)> {
        match &self.model {
            None => vec![(0, 1)],
            Some((_, groups)) => {
                let groups = groups.iter();
                groups.map(|group| (group.recorded, group.layers)).collect()
            }
        }
    }

    /// Every MoE layer of the model on `loaded` layers, under `loads` and `plans`, one a group.
    pub(super) fn runs<'l>(
        &self,
        loaded: &'l Loaded,
        loads: &'l [Load],
        plans: &[Plan],
    ) -> Vec<MoeRun<'l>> {
        match &self.model {
            None => Vec::new(),
            Some((_, groups)) => groups.runs(&loaded.layers, loads, plans),
        }
    }

    /// What is dropped under `loads`, one a group.
    pub(super) fn drops(&self, loads: &[Load]) -> Drops {
        match &self.model {
            None => loads[0].drops(),
            Some((run, groups)) => run.drops(groups, &self.layers, loads),
        }
    }
}

/// Steps as candidates of one padding, capacity setting and balancing have them.
pub(super) struct Loaded {
    /// The layers, one a group: over slots where experts are moved.
    pub(super) layers: Vec<ResolvedLayer>,
    /// In order.
    pub(super) steps: Vec<LoadedStep>,
}

/// A step as candidates have it.
pub(super) struct LoadedStep {
    /// One a group of layers.
    pub(super) loads: Vec<Load>,
    /// What moving experts and summing the gradients of their copies takes in all layers.
    pub(super) moving: Time,
}

type Key = (Padding, f64, Option<usize>);

/// All steps of a world, by what its candidates make of them.
pub(super) struct Loads {
    known: Vec<(Key, Loaded)>,
}

impl Loads {
    /// The steps of all `candidates` for `parts`.
    pub(super) fn new(
        space: &Space<'_>,
        parts: &Parts<'_>,
        candidates: &[Candidate],
    ) -> Result<Loads, String> {
        let routing: Vec<Steps> = (parts.groups().into_iter().zip(&parts.layers))
            .map(|((recorded, _), layer)| (space.routes)(recorded, layer))
            .collect::<Result<_, _>>()?;
        let mut known: Vec<(Key, Loaded)> = Vec::new();
        for candidate in candidates {
            let key = key(space, candidate);
            if known.iter().any(|(other, _)| *other == key) {
                continue;
            }
            let loaded = match candidate.balancing {
                None => loaded(parts, &routing, key.0, key.1),
                Some(index) => {
                    let balanced = balanced(parts, &routing, &space.balancing[index]);
                    balanced.map_err(|error| error.to_string())?
                }
            };
            known.push((key, loaded));
        }
        Ok(Loads { known })
    }

    /// The steps of a candidate.
    pub(super) fn of(&self, space: &Space<'_>, candidate: &Candidate) -> Option<&Loaded> {
        let key = key(space, candidate);
        let found = self.known.iter().find(|(other, _)| *other == key);
        found.map(|(_, loaded)| loaded)
    }
}

fn key(space: &Space<'_>, candidate: &Candidate) -> Key {
    let padding = space.strategies[candidate.strategy].padding;
    (padding, candidate.capacity, candidate.balancing)
}

/// Steps that every group has.
fn steps_of(routing: &[Steps]) -> usize {
    routing.iter().map(Vec::len).min().unwrap_or(0)
}

/// Steps as they are, under a padding and a capacity setting.
fn loaded(parts: &Parts<'_>, routing: &[Steps], padding: Padding, x: f64) -> Loaded {
    let step = |index: usize| {
        let groups = parts.layers.iter().zip(routing);
        let load = |(layer, steps): (&ResolvedLayer, &Steps)| {
            Load::new(layer, x, padding, &Routing::of(steps[index].as_deref()))
        };
        LoadedStep {
            loads: groups.map(load).collect(),
            moving: Time::ZERO,
        }
    };
    Loaded {
        layers: parts.layers.clone(),
        steps: (0..steps_of(routing)).into_par_iter().map(step).collect(),
    }
}

/// Steps on experts that a policy moves, those of every group alone. Even routing has nothing to balance.
fn balanced(
    parts: &Parts<'_>,
    routing: &[Steps],
    balancing: &Balancing,
) -> Result<Loaded, SpecError> {
    let scenario = parts.scenario;
    let policy = balancing.balancer(&scenario)?;
    let mut found = Loaded {
        layers: Vec::new(),
        steps: Vec::new(),
    };
    found.steps.resize_with(steps_of(routing), || LoadedStep {
        loads: Vec::new(),
        moving: Time::ZERO,
    });
    let layers = parts.layers.iter().zip(routing).zip(parts.groups());
    for ((layer, steps), (_, layers)) in layers {
        let scenario = Scenario { layer, ..scenario };
        let mut arranger = Arranger::new(&scenario, &*policy, balancing.schedule)?;
        for (step, loaded) in steps.iter().zip(&mut found.steps) {
            let Some(step) = step else {
                let expected = "routing that is not balanced, to be evened out";
                return Err(SpecError::new("balance", expected, "balanced"));
            };
            let arranged = arranger.next(step)?;
            let routing = Routing::Step(&arranged.routing);
            let load = Load::new(arranger.layer(), 0.0, Padding::Dropless, &routing);
            loaded.loads.push(load);
            loaded.moving += arranged.cost().times(layers);
        }
        found.layers.push(arranger.layer().clone());
    }
    Ok(found)
}
