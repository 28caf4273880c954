//! Steps of a recorded run simulated again: to be shown in full, or under other settings.

use super::whatif::{Answer, Brief, Change};
use crate::play::scenario;
use crate::presets;
use crate::resolve::{Given, Resolved, resolve};
use crate::run_file::detail::{Source, detail, stage_index};
use crate::run_file::model::STAGES;
use crate::run_file::recorder::balanced;
use crate::run_file::{Detail, Header};
use crate::settings::Study;
use moeplan_sim::compile::Routing;
use moeplan_sim::cost::CostModel;
use moeplan_sim::hardware::{Hardware, PRESETS};
use moeplan_sim::policy::{Runner, candidates};
use moeplan_sim::simulate::Step;
use moeplan_sim::spec::{LayerSpec, Padding, Policy, ResolvedLayer};
use serde_json::Value;
use std::cell::RefCell;
use std::ops::Range;

/// The settings of a run, ready to be simulated.
pub struct Laboratory {
    resolved: Resolved,
    model: Box<dyn CostModel>,
    /// The step and strategy last asked about, as they are: every change is set beside them.
    before: RefCell<Option<(usize, usize, Brief)>>,
}

impl Laboratory {
    /// The settings that `header` states.
    ///
    /// # Errors
    /// Why the run cannot be simulated here.
    pub fn new(header: &Header) -> Result<Laboratory, String> {
        if header.measured {
            return Err("measured steps cannot be simulated again".into());
        }
        let mut settings = header.settings.clone();
        let hardware = settings
            .as_object_mut()
            .and_then(|settings| settings.shift_remove("hardware"))
            .unwrap_or(Value::Null);
        let hardware: Hardware = serde_json::from_value(hardware)
            .map_err(|error| format!("constants of the cluster: {error}"))?;
        let mut study: Study =
            serde_json::from_value(settings).map_err(|error| format!("settings: {error}"))?;
        // All constants and sizes are in the header; files they came from may not be here.
        study.cluster.preset = Some(PRESETS[0].0.to_owned());
        let layers = presets::layers();
        if !layers
            .iter()
            .any(|known| Some(known.name) == study.layer.preset.as_deref())
        {
            study.layer.preset = Some(layers[0].name.to_owned());
        }
        let given = Given {
            file: study,
            ..Given::default()
        };
        let mut resolved = resolve(&given, &[]).map_err(|error| error.to_string())?;
        resolved.hardware = hardware;
        let model = resolved.model().map_err(|error| error.to_string())?;
        Ok(Laboratory {
            resolved,
            model,
            before: RefCell::default(),
        })
    }

    /// Step `step` of strategy `strategy` under `plan`, in full.
    ///
    /// # Errors
    /// A step or plan that these settings do not have.
    pub fn detail(
        &self,
        step: usize,
        strategy: usize,
        plan: &str,
        also: &Range<usize>,
    ) -> Result<Detail, String> {
        let resolved = &self.resolved;
        let planned = resolved
            .strategies
            .get(strategy)
            .ok_or("a strategy of another run")?;
        let layer = resolved.layer(step);
        has_step(resolved, step)?;
        let drawn = resolved
            .routing
            .step(step)
            .map_err(|error| error.to_string())?;
        let routing = Routing::of(drawn.as_deref());
        let words = |error: moeplan_sim::spec::SpecError| error.to_string();
        let plan = candidates(&planned.strategy, layer)
            .map_err(words)?
            .into_iter()
            .find(|candidate| candidate.to_string() == plan)
            .ok_or_else(|| format!("{plan} is no plan of {}", planned.strategy.name))?;
        let scenario = scenario(resolved, &*self.model);
        let mut runner = Runner::new(scenario, planned.strategy.clone(), false).map_err(words)?;
        runner.reroute(layer);
        let trace = runner.trace(&routing, plan).map_err(words)?;
        let loads = match &drawn {
            Some(step) => step.expert_loads(),
            None => balanced(layer),
        };
        Ok(detail(Source {
            step,
            strategy,
            trace: &trace,
            hardware: &resolved.hardware,
            loads: &loads,
            also,
        }))
    }

    /// Step `step` of strategy `strategy` with and without `change`, each under its best plan.
    ///
    /// # Errors
    /// Settings that cannot be run.
    pub fn what_if(&self, step: usize, strategy: usize, change: Change) -> Result<Answer, String> {
        has_step(&self.resolved, step)?;
        let before = self.as_it_is(step, strategy)?;
        let after = if change == Change::default() {
            before.clone()
        } else {
            let changed = changed(&self.resolved, strategy, change)?;
            let model = changed.model().map_err(|error| error.to_string())?;
            best(&changed, &*model, step, strategy)?
        };
        Ok(Answer {
            change,
            step: step as u32,
            strategy: strategy as u16,
            before,
            after,
        })
    }
}

impl Laboratory {
    /// Step `step` of strategy `strategy` under its best plan.
    fn as_it_is(&self, step: usize, strategy: usize) -> Result<Brief, String> {
        let known = self.before.borrow().clone();
        if let Some((_, _, brief)) = known.filter(|known| (known.0, known.1) == (step, strategy)) {
            return Ok(brief);
        }
        let found = best(&self.resolved, &*self.model, step, strategy)?;
        *self.before.borrow_mut() = Some((step, strategy, found.clone()));
        Ok(found)
    }
}

/// Fails for a step that the routing does not have: a file may claim more.
fn has_step(resolved: &Resolved, step: usize) -> Result<(), String> {
    match resolved.routing.len() {
        steps if step < steps => Ok(()),
        steps => Err(format!("its settings give {steps} steps, not {}", step + 1)),
    }
}

/// `resolved` with other settings.
fn changed(resolved: &Resolved, strategy: usize, change: Change) -> Result<Resolved, String> {
    let mut changed = resolved.clone();
    let gpus = resolved.layer(0).world_size as f64 * change.factor(0);
    if gpus < 1.0 || gpus.fract() != 0.0 || gpus > crate::resolve::MAX_GPUS as f64 {
        return Err(format!(
            "expected 1 to {} GPUs, found {gpus}",
            crate::resolve::MAX_GPUS
        ));
    }
    let gpus = gpus as u64;
    let planned = changed
        .strategies
        .get_mut(strategy)
        .ok_or("a strategy of another run")?;
    let strategy = &mut planned.strategy;
    let capacity = change.value(1).map(|value| value.parse().unwrap_or(0.0));
    if let Some(x) = capacity {
        strategy.capacity_factor = Some(x);
    }
    if let Some(degree) = change.value(2) {
        strategy.pipeline_degree = degree.parse()?;
        strategy.backward_degree = None;
    }
    if let Some(algorithm) = change.value(4) {
        strategy.all_to_all = algorithm.parse()?;
    }
    if let Some(padding) = change.value(5) {
        strategy.padding = match padding {
            "dropless" => Padding::Dropless,
            _ => Padding::Capacity,
        };
    }
    if strategy.padding == Padding::Dropless && gpus > crate::resolve::MAX_DROPLESS_GPUS {
        return Err(format!(
            "expected at most {} GPUs where routing is dropless, found {gpus}",
            crate::resolve::MAX_DROPLESS_GPUS
        ));
    }
    changed.hardware.collectives.nic.wire_gb_per_s *= change.factor(3);
    changed.gpus_per_node = resolved.gpus_per_node.min(gpus);
    changed.layers = resolved
        .layers
        .iter()
        .map(|layer| {
            let spec: &LayerSpec = &layer.spec;
            spec.resolve(gpus)
        })
        .collect::<Result<Vec<ResolvedLayer>, _>>()
        .map_err(|error| error.to_string())?;
    changed.routing = resolved
        .routing
        .reshaped(&changed.layers)
        .map_err(|error| error.to_string())?;
    Ok(changed)
}

/// A step under the best plan that its strategy allows.
fn best(
    resolved: &Resolved,
    model: &dyn CostModel,
    step: usize,
    strategy: usize,
) -> Result<Brief, String> {
    let words = |error: moeplan_sim::spec::SpecError| error.to_string();
    let planned = resolved
        .strategies
        .get(strategy)
        .ok_or("a strategy of another run")?;
    let drawn = resolved
        .routing
        .step(step)
        .map_err(|error| error.to_string())?;
    let routing = Routing::of(drawn.as_deref());
    let mut strategy = planned.strategy.clone();
    strategy.policy = Policy::Oracle;
    let layer = resolved.layer(step);
    let mut runner = Runner::new(scenario(resolved, model), strategy, false).map_err(words)?;
    runner.reroute(layer);
    let found = runner.step(&routing).map_err(words)?.step;
    Ok(brief(&found, layer, resolved.hardware.memory_bytes()))
}

fn brief(step: &Step, layer: &ResolvedLayer, memory_available: u64) -> Brief {
    let mut stages = [0; STAGES];
    for stage in &step.stages {
        stages[usize::from(stage_index(stage.stage))] = stage.busy.as_ns();
    }
    Brief {
        gpus: layer.world_size,
        plan: step.plan.to_string(),
        time: step.time.as_ns(),
        stages,
        exposed: step.exposed_communication.as_ns(),
        memory_bytes: step.memory_bytes,
        memory_available,
        capacity_factor: step.capacity_factor,
        dropped: step.dropped_fraction,
        tokens: layer.tokens() * layer.world_size,
    }
}
