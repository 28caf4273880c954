//! What `plan` searches, from flags and the study file.

use super::balancing::balancing;
use super::model::{Model, planned};
use super::{Given, complete_layer, gpus_only, layer, model, strategies};
use crate::economy::Prices;
use crate::error::{Error, Place};
use crate::resolve::{MAX_GPUS, Planned};
use crate::routing::{Kept, RoutingSource};
use crate::settings::{Budget, LayerSettings, PlanSettings, StrategySettings, Study, TopK};
use moeplan_sim::balance::Balancing;
use moeplan_sim::compile::Steps;
use moeplan_sim::cost::CostModel;
use moeplan_sim::hardware::Hardware;
use moeplan_sim::planner::space::{self, Whole};
use moeplan_sim::planner::{Limits, Site, Slices, Space, Tokens, gpu_counts};
use moeplan_sim::spec::{
    Encode, Experts, LayerSpec, Layout, Padding, Phase, Policy, ResolvedLayer, SpecError, Strategy,
};
use moeplan_sim::units::Time;

/// Most GPUs that are tried when nothing is said.
const DEFAULT_MAX_GPUS: u64 = 64;

/// A kind of cluster with everything a [`Site`] borrows.
pub struct Cluster {
    /// Its constants.
    pub hardware: Hardware,
    /// Its prices of operations.
    pub model: Box<dyn CostModel>,
    gpus_per_node: u64,
    per_gpu_hour: f64,
}

/// Everything decided and checked.
pub struct Asked {
    /// The settings in force.
    pub study: Study,
    /// What is wanted.
    pub limits: Limits,
    /// Kinds of cluster.
    pub clusters: Vec<Cluster>,
    /// What GPUs cost.
    pub prices: Prices,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Whether matrix products are priced by a user's own table.
    pub own_gemm_table: bool,
    /// The model that is planned, if not a layer alone.
    pub model: Option<Model>,
    gpus: Vec<u64>,
    layer: LayerSpec,
    tokens: Tokens,
    top_k: Vec<u32>,
    strategies: Vec<Strategy>,
    policies: Vec<Policy>,
    balancing: Vec<Balancing>,
    /// Forward, or a training step.
    pub phase: Phase,
    /// Where tokens go, for the first size of the first MoE layer.
    routing: RoutingSource,
}

impl Asked {
    /// The space to search; `routes` draws the routing.
    pub fn space<'a>(&'a self, routes: &'a space::Routes<'a>) -> Space<'a> {
        let plan = &self.study.plan;
        let site = |cluster: &'a Cluster| Site {
            hardware: &cluster.hardware,
            model: &*cluster.model,
            gpus_per_node: cluster.gpus_per_node,
            per_gpu_hour: cluster.per_gpu_hour,
        };
        Space {
            sites: self.clusters.iter().map(site).collect(),
            gpus: self.gpus.clone(),
            layer: self.layer.clone(),
            whole: self.model.as_ref().map(|model| Whole {
                model: &model.spec,
                recorded: self.routing.layers(),
                batch: model.batch,
                saving: model.saving,
            }),
            tokens: self.tokens,
            top_k: self.top_k.clone(),
            dtypes: or(&plan.try_dtype, self.layer.dtype),
            slices: match &self.model {
                Some(model) => slices(plan, model),
                None => vec![Slices::NONE],
            },
            capacity: or(&plan.try_capacity_factor, self.layer.capacity_factor),
            strategies: self.strategies.clone(),
            policies: self.policies.clone(),
            balancing: self.balancing.clone(),
            phase: self.phase,
            routes,
            power: &self.prices.list().power,
        }
    }

    /// Where the tokens of `layer` go, for people.
    ///
    /// # Errors
    /// As [`Asked::routes`].
    pub fn routing_of(&self, layer: &ResolvedLayer) -> Result<String, Error> {
        Ok(self.routing.of_layer(0, layer)?.describe())
    }

    /// The routing of the steps of a layer that follows this recorded layer.
    ///
    /// # Errors
    /// Routing that cannot be drawn for this layer.
    pub fn routes(&self, recorded: usize, layer: &ResolvedLayer) -> Result<Steps, Error> {
        self.routing.of_layer(recorded, layer)?.steps()
    }
}

fn or<T: Clone>(list: &[T], value: T) -> Vec<T> {
    match list {
        [] => vec![value],
        _ => list.to_vec(),
    }
}

/// Every way to slice the step of `model` that is to be tried.
fn slices(plan: &PlanSettings, model: &Model) -> Vec<Slices> {
    let groups = or(&plan.try_tensor_parallel, model.tensor_parallel);
    let parts = or(&plan.try_micro_batches, model.saving.micro_batches);
    let slice = |&tensor_parallel| {
        parts.iter().map(move |&micro_batches| Slices {
            tensor_parallel,
            micro_batches,
        })
    };
    groups.iter().flat_map(slice).collect()
}

/// Reads what `plan` is asked.
///
/// # Errors
/// The first setting that cannot be used, with where it was set.
pub fn asked(given: &Given) -> Result<Asked, Error> {
    let (flags, file) = (&given.flags, &given.file);
    let plan = flags.plan.over(&file.plan);
    let wrong = |field: &str, message: String| {
        Err(Error::input(given.place(&["plan"], None, field), message))
    };
    check_limits(given, &plan)?;
    let economy = given.economy();
    let prices = Prices::read(&economy)?;
    let gemm_table = super::gemm_table(given);
    let clusters = clusters(given, &plan, &prices, gemm_table.as_deref())?;
    let model = planned(given, &plan)?;
    let (layer_name, spec, top_k) = match &model {
        Some(model) => {
            let spec = model.first_layer()?;
            (
                model.spec.name.clone(),
                spec.clone(),
                TopK::always(spec.top_k),
            )
        }
        None => {
            let (name, _, spec, top_k) = layer(given)?;
            (name, spec, top_k)
        }
    };
    let &[only] = top_k.by_step() else {
        let place = given.place(&["layer"], None, "top-k");
        let message = "expected one number, found one a step: --try-top-k tries several";
        return Err(Error::input(place, message));
    };
    let spec = LayerSpec {
        top_k: only,
        ..spec
    };
    let gpus = gpus(given, &plan, &clusters)?;
    let sliced = [
        ("try-tensor-parallel", &plan.try_tensor_parallel),
        ("try-micro-batches", &plan.try_micro_batches),
    ];
    let sliced = sliced.iter().find(|(_, tried)| !tried.is_empty());
    match (&model, sliced) {
        (None, Some((field, _))) => {
            let message = "expected --model to go with it, found a layer alone";
            return wrong(field, message.into());
        }
        (None, None) => {}
        (Some(model), _) => {
            let heads = model.spec.head_groups;
            let fits = |group: u64| group > 0 && heads.is_multiple_of(group);
            if let Some(group) = plan.try_tensor_parallel.iter().find(|group| !fits(**group)) {
                let message =
                    format!("expected divisors of its {heads} groups of heads, found {group}");
                return wrong("try-tensor-parallel", message);
            }
        }
    }
    let tokens = match plan.global_batch {
        None => Tokens::PerGpu,
        Some(0) => {
            return wrong(
                "global-batch",
                "expected at least one token, found 0".into(),
            );
        }
        Some(all) => Tokens::InAll(all),
    };
    // Only where nothing is padded does it matter where experts sit.
    let dropless = plan.try_dropless || !plan.try_balance.is_empty();
    let (strategies, refined) = templates(given, dropless)?;
    let balancing = balancing(given, &plan.try_balance, ("plan", "try-balance"))?;
    let seed = given.seed();
    // Anything wrong with the routing itself is told before the search.
    let routing = routing(given, &spec, model.is_some(), seed)?;
    if !balancing.is_empty() && routing.is_balanced() {
        let message = "expected --trace or --routing to go with it, found balanced routing";
        return wrong("try-balance", message.into());
    }
    let phase = flags.phase.or(file.phase).unwrap_or(Phase::Training);
    if let (Some(model), Tokens::PerGpu) = (&model, tokens) {
        let checked = model.saving.check(model.batch, phase);
        checked.map_err(|error| given.blame(&["model"], None, &error))?;
        for &parts in &plan.try_micro_batches {
            let checked = model.saving.in_parts(parts).check(model.batch, phase);
            checked.map_err(|error| {
                let field = "try-micro-batches";
                given.blame(&["plan"], None, &SpecError { field, ..error })
            })?;
        }
    }
    let study = Study {
        seed: Some(seed),
        phase: Some(phase),
        economy,
        layer: match &model {
            Some(_) => LayerSettings::default(),
            None => complete_layer(given, layer_name, &spec, top_k.clone()),
        },
        model: model.as_ref().map(Model::settings).unwrap_or_default(),
        strategy: strategies.iter().map(StrategySettings::of).collect(),
        routing: routing.settings.clone(),
        plan: PlanSettings {
            cluster: clusters
                .iter()
                .map(|cluster| cluster.hardware.name.clone())
                .collect(),
            gpus: gpus.clone(),
            max_gpus: None,
            ..plan.clone()
        },
        ..Study::default()
    };
    Ok(Asked {
        limits: limits(&plan),
        study,
        clusters,
        prices,
        seed,
        own_gemm_table: gemm_table.is_some(),
        model,
        gpus,
        layer: spec.clone(),
        tokens,
        top_k: or(&plan.try_top_k, only),
        strategies,
        policies: policies(&plan, refined, routing.len()),
        balancing,
        phase,
        routing,
    })
}

/// Where the tokens of the layer go, or those of a model's MoE layers, of which `spec` is the first.
fn routing(
    given: &Given,
    spec: &LayerSpec,
    of_model: bool,
    seed: u64,
) -> Result<RoutingSource, Error> {
    let settings = super::routing(given);
    let probe = LayerSpec {
        experts: Experts::PerGpu(1.0),
        top_k: 1,
        ..spec.clone()
    };
    let layer = probe
        .resolve(8)
        .map_err(|error| crate::play::refused(&error))?;
    let place = |field: &str| given.place(&["routing"], None, field);
    let kept = Kept::some();
    if of_model {
        return RoutingSource::of_model(&settings, &layer, seed, &kept, &place);
    }
    let layers = std::slice::from_ref(&layer);
    RoutingSource::new(&settings, layers, seed, &kept, &place)
}

fn check_limits(given: &Given, plan: &PlanSettings) -> Result<(), Error> {
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let share = |value: f64| (0.0..=1.0).contains(&value);
    let setting = |value: f64| value.is_finite() && value.abs() <= 1e6;
    let fine = [
        (
            "tokens-per-second",
            "a number above 0",
            plan.tokens_per_second.is_none_or(positive),
        ),
        (
            "max-dropped",
            "a share, 0 to 1",
            plan.max_dropped.is_none_or(share),
        ),
        (
            "try-capacity-factor",
            "numbers from -1e6 to 1e6",
            plan.try_capacity_factor.iter().copied().all(setting),
        ),
    ];
    match fine.into_iter().find(|(_, _, fine)| !fine) {
        None => Ok(()),
        Some((field, expected, _)) => {
            let place = given.place(&["plan"], None, field);
            Err(Error::input(place, format!("expected {expected}")))
        }
    }
}

fn limits(plan: &PlanSettings) -> Limits {
    let (cost_per_hour, cost_per_billion_tokens) = match plan.budget {
        Some(Budget::PerHour(money)) => (Some(money), None),
        Some(Budget::PerBillionTokens(money)) => (None, Some(money)),
        None => (None, None),
    };
    Limits {
        step_time: plan.step_time.map(|time| Time::from_secs_f64(time.seconds)),
        tokens_per_second: plan.tokens_per_second,
        memory_bytes: plan.memory.map(|size| size.0),
        cost_per_hour,
        cost_per_billion_tokens,
        dropped_fraction: plan.max_dropped,
    }
}

fn clusters(
    given: &Given,
    plan: &PlanSettings,
    prices: &Prices,
    gemm_table: Option<&std::path::Path>,
) -> Result<Vec<Cluster>, Error> {
    let named: Vec<Option<&String>> = match &plan.cluster[..] {
        [] => vec![None],
        names => names.iter().map(Some).collect(),
    };
    let mut clusters: Vec<Cluster> = Vec::new();
    for name in named {
        let mut given = given.clone();
        if let Some(name) = name {
            given.flags.cluster.preset = Some(name.clone());
        }
        let (_, hardware) = super::cluster(&given)?;
        gpus_only(&hardware)?;
        if clusters
            .iter()
            .any(|other| other.hardware.name == hardware.name)
        {
            let message = format!(
                "expected every cluster once, found `{}` twice",
                hardware.name
            );
            return Err(Error::input(Place::flag("--cluster"), message));
        }
        let set = given
            .flags
            .cluster
            .gpus_per_node
            .or(given.file.cluster.gpus_per_node);
        clusters.push(Cluster {
            model: model(&hardware, gemm_table, 1)?,
            gpus_per_node: set.unwrap_or(hardware.node.gpus),
            per_gpu_hour: prices.of(&hardware.name)?.per_gpu_hour,
            hardware,
        });
    }
    Ok(clusters)
}

fn gpus(given: &Given, plan: &PlanSettings, clusters: &[Cluster]) -> Result<Vec<u64>, Error> {
    let mut gpus = match (&plan.gpus[..], plan.max_gpus) {
        ([], most) => {
            let most = most.unwrap_or(DEFAULT_MAX_GPUS);
            if !(1..=MAX_GPUS).contains(&most) {
                let place = given.place(&["plan"], None, "max-gpus");
                let message = format!("expected 1 to {MAX_GPUS}, found {most}");
                return Err(Error::input(place, message));
            }
            clusters
                .iter()
                .flat_map(|cluster| gpu_counts(cluster.gpus_per_node, most))
                .collect()
        }
        (list, _) => list.to_vec(),
    };
    gpus.sort_unstable();
    gpus.dedup();
    if let Some(wrong) = gpus.iter().find(|&&gpus| !(1..=MAX_GPUS).contains(&gpus)) {
        let place = given.place(&["plan"], None, "gpus");
        let message = format!("expected 1 to {MAX_GPUS}, found {wrong}");
        return Err(Error::input(place, message));
    }
    Ok(gpus)
}

/// The strategies whose `auto` settings are searched, and the policy a flag asks for.
fn templates(given: &Given, dropless: bool) -> Result<(Vec<Strategy>, Option<Policy>), Error> {
    let kinds = [
        (Encode::Sparse, Layout::Flexible),
        (Encode::Sparse, Layout::Conventional),
        (Encode::Dense, Layout::Flexible),
        (Encode::Dense, Layout::Conventional),
    ];
    let template = |(encode, layout): (Encode, Layout), padding| Planned {
        strategy: Strategy {
            name: format!("{encode} {layout}"),
            encode,
            layout,
            padding,
            ..Strategy::tutel()
        },
        cover_routing: false,
    };
    let mut defaults: Vec<Planned> = kinds
        .into_iter()
        .map(|kind| template(kind, Padding::Capacity))
        .collect();
    if dropless {
        defaults.push(template(kinds[0], Padding::Dropless));
    }
    let mut kept: Vec<Strategy> = Vec::new();
    for planned in strategies::planned(given, &defaults)? {
        let alike = |other: &Strategy| {
            Strategy {
                name: planned.strategy.name.clone(),
                ..other.clone()
            } == planned.strategy
        };
        // A flag that fixes a choice leaves templates that differ in nothing.
        if !kept.iter().any(alike) {
            kept.push(planned.strategy);
        }
    }
    Ok((kept, given.refine.policy))
}

/// Who decides: with one step there is nothing to adapt to.
fn policies(plan: &PlanSettings, refined: Option<Policy>, steps: usize) -> Vec<Policy> {
    match (&plan.try_policy[..], refined) {
        ([], Some(policy)) => vec![policy],
        ([], None) if steps > 1 => vec![Policy::Static, Policy::Dictionary],
        ([], None) => vec![Policy::Static],
        (list, _) => {
            let mut list = list.to_vec();
            list.sort_unstable();
            list.dedup();
            list
        }
    }
}
