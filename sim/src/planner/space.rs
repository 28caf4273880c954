//! What is tried: worlds of GPUs, and ways to run the layer on each.

use crate::balance::Balancing;
use crate::compile::{Plan, Steps};
use crate::cost::CostModel;
use crate::economy::PowerModel;
use crate::hardware::Hardware;
use crate::model::{MemorySaving, ModelRun, ModelSpec};
use crate::policy::candidates;
use crate::simulate::Scenario;
use crate::spec::{DType, LayerSpec, Padding, Phase, Policy, ResolvedLayer, SpecError, Strategy};
use std::fmt;

/// A kind of cluster that can be had.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// Its constants.
    pub hardware: &'a Hardware,
    /// Its prices of operations.
    pub model: &'a dyn CostModel,
    /// GPUs that share a node.
    pub gpus_per_node: u64,
    /// What a GPU costs an hour.
    pub per_gpu_hour: f64,
}

/// How many tokens a GPU gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// As the layer says, whatever the number of GPUs: more GPUs do more work (weak scaling).
    PerGpu,
    /// So many over all GPUs: more GPUs share the same work (strong scaling).
    InAll(u64),
}

/// Works out the routing of a layer that follows the recorded layer of this number; a lone layer follows number 0.
/// The error is for people.
pub type Routes<'a> = dyn Fn(usize, &ResolvedLayer) -> Result<Steps, String> + Sync + 'a;

/// A whole model, where not a layer alone is planned. A static plan is that of all its MoE layers.
#[derive(Debug, Clone, Copy)]
pub struct Whole<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// Recorded layers that its MoE layers follow in turn.
    pub recorded: usize,
    /// Items (sequences, images) of a GPU and step.
    pub batch: u64,
    /// What is done to need less memory, besides the micro-batches of a world.
    pub saving: MemorySaving,
}

/// How the work of a model's step is sliced; by 1 where a layer alone is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slices {
    /// GPUs of a node that share everything but experts.
    pub tensor_parallel: u64,
    /// Parts of a GPU's batch that run one after the other.
    pub micro_batches: u64,
}

impl Slices {
    /// Nothing is sliced.
    pub const NONE: Slices = Slices {
        tensor_parallel: 1,
        micro_batches: 1,
    };
}

/// Everything that may be chosen.
pub struct Space<'a> {
    /// Kinds of cluster.
    pub sites: Vec<Site<'a>>,
    /// Numbers of GPUs.
    pub gpus: Vec<u64>,
    /// The layer, the first MoE layer of a model; its k, capacity setting and number type are those of
    /// the lists below.
    pub layer: LayerSpec,
    /// The model around it, if one is planned.
    pub whole: Option<Whole<'a>>,
    /// How many tokens a GPU gets.
    pub tokens: Tokens,
    /// k: experts per token.
    pub top_k: Vec<u32>,
    /// Number types.
    pub dtypes: Vec<DType>,
    /// How a model's step is sliced.
    pub slices: Vec<Slices>,
    /// Capacity settings x.
    pub capacity: Vec<f64>,
    /// Strategies whose `auto` settings are searched.
    pub strategies: Vec<Strategy>,
    /// Who decides: `static` is one plan for all steps.
    pub policies: Vec<Policy>,
    /// Who moves experts, besides nobody: tried where nothing is padded and an expert is on one GPU.
    pub balancing: Vec<Balancing>,
    /// Forward, or a training step.
    pub phase: Phase,
    /// Where tokens go.
    pub routes: &'a Routes<'a>,
    /// What GPUs draw.
    pub power: &'a PowerModel,
}

/// A cluster of a size with the layer on it.
#[derive(Debug, Clone, PartialEq)]
pub struct World {
    /// Index of its site.
    pub site: usize,
    /// W.
    pub gpus: u64,
    /// m.
    pub gpus_per_node: u64,
    /// Tokens of a GPU and step; of a model that is fed with images, those.
    pub tokens: u64,
    /// How a model's step is sliced.
    pub slices: Slices,
    /// The layer resolved.
    pub layer: ResolvedLayer,
}

/// Who decides what to do in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// One plan for all steps.
    Always(Plan),
    /// A policy, among all plans of a strategy.
    Adapts(Policy),
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decision::Always(plan) => write!(f, "{plan}"),
            Decision::Adapts(policy) => write!(f, "{policy}"),
        }
    }
}

/// One way to run the layer in a world.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Index of the world.
    pub world: usize,
    /// Index in the order of the space, which breaks ties.
    pub index: usize,
    /// Index of the strategy.
    pub strategy: usize,
    /// Capacity setting x.
    pub capacity: f64,
    /// Who decides.
    pub decision: Decision,
    /// Index of who moves experts; `None` where they stay.
    pub balancing: Option<usize>,
}

/// The numbers of GPUs up to `most` that are tried on nodes of `node`: powers of two and three
/// times those, below a node where they divide it and in whole nodes above. A larger `most` tries all
/// of these and more, so it never finds less.
pub fn gpu_counts(node: u64, most: u64) -> Vec<u64> {
    let round = |count: u64| {
        let odd = count >> count.trailing_zeros();
        odd == 1 || odd == 3
    };
    let within = (1..node).filter(|&gpus| node.is_multiple_of(gpus));
    let nodes = (1..=most / node.max(1)).filter(|&nodes| round(nodes));
    within
        .chain(nodes.map(|nodes| nodes * node))
        .filter(|&gpus| gpus <= most)
        .collect()
}

impl Whole<'_> {
    /// Tokens that `layer` gets at a time of a GPU's `tokens`.
    fn layer_tokens(
        &self,
        layer: &LayerSpec,
        tokens: u64,
        micro_batches: u64,
        phase: Phase,
    ) -> Result<u64, SpecError> {
        let per_item = self.model.unit.per_item();
        if !tokens.is_multiple_of(per_item) {
            let expected = format!("whole sequences of {per_item} tokens on every GPU");
            return Err(SpecError::new("global-batch", expected, tokens));
        }
        let items = tokens / per_item;
        self.saving.in_parts(micro_batches).check(items, phase)?;
        Ok(layer.tokens_per_step / self.batch * (items / micro_batches))
    }
}

impl<'a> Space<'a> {
    /// All worlds in order, or why there is none of that size: the site, its GPUs, and the reason.
    pub fn worlds(&self) -> Vec<Result<World, (usize, u64, SpecError)>> {
        let mut worlds = Vec::new();
        for &gpus in &self.gpus {
            for site in 0..self.sites.len() {
                for &dtype in &self.dtypes {
                    for &top_k in &self.top_k {
                        let slices: Vec<Slices> = self.slices_on(site, gpus).collect();
                        if slices.is_empty() {
                            let expected = "groups of GPUs that divide a node";
                            let groups = self.slices.iter().map(|slices| slices.tensor_parallel);
                            let found = format!("{:?}", groups.collect::<Vec<_>>());
                            let error = SpecError::new("tensor-parallel", expected, found);
                            worlds.push(Err((site, gpus, error)));
                        }
                        for slices in slices {
                            let world = self.world(site, gpus, dtype, top_k, slices);
                            worlds.push(world.map_err(|error| (site, gpus, error)));
                        }
                    }
                }
            }
        }
        worlds
    }

    /// Those slices whose tensor-parallel groups divide a node of `site` in a world of `gpus` GPUs.
    pub(super) fn slices_on(&self, site: usize, gpus: u64) -> impl Iterator<Item = Slices> {
        let node = self.sites[site].gpus_per_node.min(gpus);
        let slices = self.slices.iter().copied();
        slices.filter(move |slices| node.is_multiple_of(slices.tensor_parallel))
    }

    /// The layer on `gpus` GPUs of `site`, a model's step sliced by `slices`.
    ///
    /// # Errors
    /// A layer that does not divide over them.
    pub fn world(
        &self,
        site: usize,
        gpus: u64,
        dtype: DType,
        top_k: u32,
        slices: Slices,
    ) -> Result<World, SpecError> {
        let gpus_per_node = self.sites[site].gpus_per_node.min(gpus);
        if gpus_per_node == 0 || !gpus.is_multiple_of(gpus_per_node) {
            let expected = format!("whole nodes of {gpus_per_node} GPUs");
            return Err(SpecError::new("gpus", expected, gpus));
        }
        let tokens = match self.tokens {
            Tokens::PerGpu => self.whole.map_or(self.layer.tokens_per_step, |whole| {
                whole.batch.saturating_mul(whole.model.unit.per_item())
            }),
            Tokens::InAll(all) if all.is_multiple_of(gpus) => all / gpus,
            Tokens::InAll(all) => {
                let expected = format!("tokens that divide over {gpus} GPUs");
                return Err(SpecError::new("global-batch", expected, all));
            }
        };
        let tokens_per_step = match self.whole {
            None => tokens,
            Some(whole) => {
                whole.layer_tokens(&self.layer, tokens, slices.micro_batches, self.phase)?
            }
        };
        let layer = LayerSpec {
            tokens_per_step,
            dtype,
            top_k,
            ..self.layer.clone()
        }
        .resolve(gpus)?;
        Ok(World {
            site,
            gpus,
            gpus_per_node,
            tokens,
            slices,
            layer,
        })
    }

    /// All ways to run the layer in `world`, in order; `index` numbers them from `first` on.
    ///
    /// # Errors
    /// A fixed r that the layer does not allow.
    pub fn candidates(
        &self,
        world: usize,
        layer: &ResolvedLayer,
        first: usize,
    ) -> Result<Vec<Candidate>, SpecError> {
        let mut found = Vec::new();
        let mut push = |strategy, capacity, decision, balancing| {
            found.push(Candidate {
                world,
                index: first + found.len(),
                strategy,
                capacity,
                decision,
                balancing,
            });
        };
        for (strategy, choices) in self.strategies.iter().enumerate() {
            let plans = candidates(choices, layer)?;
            let decisions = self.policies.iter().flat_map(|&policy| match policy {
                Policy::Static => plans.iter().copied().map(Decision::Always).collect(),
                Policy::Dictionary | Policy::Oracle => vec![Decision::Adapts(policy)],
            });
            let decisions: Vec<Decision> = decisions.collect();
            for &capacity in self.capacity_of(choices) {
                for &decision in &decisions {
                    push(strategy, capacity, decision, None);
                }
                if choices.padding == Padding::Capacity || layer.sharded_count > 1 {
                    continue;
                }
                for balancing in 0..self.balancing.len() {
                    // Under r = 0 rows are multiplied where they are, wherever experts sit.
                    let moved = |decision: &&Decision| match decision {
                        Decision::Always(plan) => plan.adaptive_r != 0,
                        Decision::Adapts(_) => true,
                    };
                    for &decision in decisions.iter().filter(moved) {
                        push(strategy, capacity, decision, Some(balancing));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Capacity settings that differ under `strategy`: dropless plans have none.
    fn capacity_of(&self, strategy: &Strategy) -> &[f64] {
        match strategy.padding {
            Padding::Capacity => &self.capacity,
            Padding::Dropless => &self.capacity[..self.capacity.len().min(1)],
        }
    }

    /// The step of the model in `world`, if one is planned.
    pub(super) fn model_run(&self, world: &World) -> Option<ModelRun<'_>> {
        let site = &self.sites[world.site];
        let whole = self.whole?;
        Some(ModelRun {
            model: whole.model,
            hardware: site.hardware,
            prices: site.model,
            gpus: world.gpus,
            gpus_per_node: world.gpus_per_node,
            batch: world.tokens / whole.model.unit.per_item(),
            phase: self.phase,
            saving: whole.saving.in_parts(world.slices.micro_batches),
            tensor_parallel: world.slices.tensor_parallel,
        })
    }

    /// The scenario of `world`.
    pub fn scenario<'w>(&'w self, world: &'w World) -> Scenario<'w> {
        let site = &self.sites[world.site];
        Scenario {
            layer: &world.layer,
            gpus_per_node: world.gpus_per_node,
            memory_bytes: site.hardware.memory_bytes(),
            reserved_bytes: site.hardware.reserved_bytes(),
            model: site.model,
            phase: self.phase,
        }
    }
}
