//! The planner against exhaustive search, on random small spaces.

use super::*;
use crate::balance::{Balancing, Schedule};
use crate::compile::{Load, Plan, Routing, Steps, compile};
use crate::cost::CostModel;
use crate::cost::analytic::Analytic;
use crate::economy::PriceList;
use crate::hardware::{Hardware, builtin};
use crate::policy::candidates;
use crate::simulate::{Scenario, simulate_step};
use crate::spec::{
    DType, Encode, Experts, LayerSpec, Layout, Padding, Phase, Policy, ResolvedLayer, Strategy,
};
use crate::units::Time;
use moeplan_traces::{RoutingSpec, RoutingStep, Shape};
use proptest::prelude::*;
use std::sync::Arc;

/// What a random space is made of.
#[derive(Debug, Clone)]
struct Draw {
    layer: LayerSpec,
    tokens: Tokens,
    sites: usize,
    gpus: Vec<u64>,
    capacity: Vec<f64>,
    top_k: Vec<u32>,
    dtypes: Vec<DType>,
    strategies: Vec<Strategy>,
    policies: Vec<Policy>,
    balancing: Vec<Balancing>,
    phase: Phase,
    skewed: bool,
    limits: [Option<f64>; 5],
}

struct Bed {
    hardware: Vec<Hardware>,
    models: Vec<Analytic>,
    list: PriceList,
}

impl Bed {
    fn new() -> Bed {
        let names = ["nd-a100-v4-80gb", "nd-a100-v4-40gb"];
        let hardware = names.map(|name| builtin(name).unwrap()).to_vec();
        let models = hardware
            .iter()
            .map(|hardware| Analytic::new(hardware).unwrap())
            .collect();
        Bed {
            hardware,
            models,
            list: PriceList::default(),
        }
    }

    fn space<'a>(&'a self, draw: &Draw, routes: &'a space::Routes<'a>) -> Space<'a> {
        let site = |index: usize| Site {
            hardware: &self.hardware[index],
            model: &self.models[index],
            gpus_per_node: 8,
            per_gpu_hour: [4.0, 3.0][index],
        };
        Space {
            sites: (0..draw.sites).map(site).collect(),
            gpus: draw.gpus.clone(),
            layer: draw.layer.clone(),
            whole: None,
            tokens: draw.tokens,
            top_k: draw.top_k.clone(),
            dtypes: draw.dtypes.clone(),
            slices: vec![Slices::NONE],
            capacity: draw.capacity.clone(),
            strategies: draw.strategies.clone(),
            policies: draw.policies.clone(),
            balancing: draw.balancing.clone(),
            phase: draw.phase,
            routes,
            power: &self.list.power,
        }
    }
}

fn routes(skewed: bool) -> impl Fn(usize, &ResolvedLayer) -> Result<Steps, String> + Sync {
    move |recorded, layer: &ResolvedLayer| {
        if !skewed {
            return Ok(vec![None]);
        }
        let shape = Shape {
            ranks: layer.world_size as usize,
            experts: layer.num_experts as usize,
            tokens_per_rank: layer.tokens() as u32,
            top_k: layer.spec.top_k,
        };
        let spec: RoutingSpec = "zipf:1.1,drift=0.2".parse().unwrap();
        let step = |index| {
            spec.generate(&shape, 7, index, recorded as u32)
                .map(|step| Some(Arc::new(step)))
        };
        (0..2)
            .map(|index| step(index).map_err(|error| error.to_string()))
            .collect()
    }
}

fn eplb() -> Balancing {
    Balancing {
        policy: "eplb".into(),
        extra_slots: 1,
        expert_groups: None,
        schedule: Schedule {
            every: 1,
            drift: None,
        },
    }
}

/// proptest's trait, whose name ours has taken.
use proptest::strategy::Strategy as Strategy2;

fn draws() -> impl Strategy2<Value = Draw> {
    let layer = (
        prop::sample::select(vec![64u64, 256, 1024]),
        prop::sample::select(vec![256u64, 1024]),
        prop::sample::select(vec![512u64, 2048]),
        prop::sample::select(vec![
            Experts::PerGpu(2.0),
            Experts::PerGpu(0.5),
            Experts::Total(8),
            Experts::Total(16),
        ]),
    );
    let choices = (
        some_of(&[1u64, 4, 8, 16, 24]),
        some_of(&[0.0f64, 1.0, 1.5]),
        some_of(&[1u32, 2]),
        some_of(&[DType::Fp16, DType::Tf32]),
        some_of(&[0usize, 1, 2]),
        some_of(&[Policy::Static, Policy::Dictionary, Policy::Oracle]),
        prop::sample::select(vec![Vec::new(), vec![eplb()]]),
    );
    let limit = || prop::option::weighted(0.4, 0.05f64..2.0);
    let limits = [limit(), limit(), limit(), limit(), limit()];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), 1usize..=2);
    (layer, choices, limits, flags).prop_map(|(layer, choices, limits, flags)| {
        let (tokens_per_step, model_dim, hidden_dim, experts) = layer;
        let (gpus, capacity, top_k, dtypes, kinds, policies, balancing) = choices;
        let (skewed, forward, in_all, sites) = flags;
        let strategy = |kind: usize| match kind {
            0 => Strategy::tutel(),
            1 => Strategy {
                padding: Padding::Dropless,
                ..Strategy::tutel()
            },
            _ => Strategy {
                encode: Encode::Dense,
                layout: Layout::Conventional,
                ..Strategy::tutel()
            },
        };
        Draw {
            layer: LayerSpec {
                tokens_per_step,
                model_dim,
                hidden_dim,
                experts,
                ..LayerSpec::default()
            },
            tokens: if in_all {
                Tokens::InAll(tokens_per_step * 8)
            } else {
                Tokens::PerGpu
            },
            sites,
            gpus,
            capacity,
            top_k,
            dtypes,
            strategies: kinds.into_iter().map(strategy).collect(),
            policies,
            balancing: if skewed { balancing } else { Vec::new() },
            phase: if forward {
                Phase::Forward
            } else {
                Phase::Training
            },
            skewed,
            limits,
        }
    })
}

fn some_of<T: Clone + std::fmt::Debug + 'static>(
    all: &[T],
) -> impl Strategy2<Value = Vec<T>> + use<T> {
    let most = all.len().min(2);
    proptest::sample::subsequence(all.to_vec(), 1..=most)
}

/// Limits around what a middling plan of the space needs, so that some spaces meet them and some do not.
fn limits_of(draw: &Draw, space: &Space<'_>) -> Limits {
    let free = search(space, &Limits::default(), Pruning::Off);
    let Some(middle) = free.evaluated.get(free.evaluated.len() / 2) else {
        return Limits::default();
    };
    let figures = &middle.figures;
    let [time, tokens, memory, money, dropped] = draw.limits;
    Limits {
        step_time: time.map(|share| figures.step_time.scale(share)),
        tokens_per_second: tokens.map(|share| figures.cost.tokens_per_second * share),
        memory_bytes: memory.map(|share| (figures.memory_bytes as f64 * share * 2.0) as u64),
        cost_per_hour: money.map(|share| figures.cost.cost_per_hour * share * 2.0),
        cost_per_billion_tokens: None,
        dropped_fraction: dropped.map(|share| share / 8.0),
    }
}

/// What must not depend on pruning.
fn answer(outcome: &Outcome) -> impl PartialEq + std::fmt::Debug + use<> {
    let plan = |index: Option<usize>| index.map(|index| outcome.evaluated[index].clone());
    let front: Vec<Evaluated> = outcome
        .front
        .iter()
        .map(|&index| outcome.evaluated[index].clone())
        .collect();
    (
        plan(outcome.cheapest),
        plan(outcome.fastest),
        front,
        plan(outcome.nearest),
        outcome.candidates,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn pruning_changes_nothing_but_the_work(draw in draws()) {
        let bed = Bed::new();
        let routes = routes(draw.skewed);
        let space = bed.space(&draw, &routes);
        let limits = limits_of(&draw, &space);
        let pruned = search(&space, &limits, Pruning::ByBound);
        let exhaustive = search(&space, &limits, Pruning::Off);
        prop_assert_eq!(answer(&pruned), answer(&exhaustive));
        prop_assert!(pruned.evaluated.len() <= exhaustive.evaluated.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, max_shrink_iters: 64, ..ProptestConfig::default() })]

    #[test]
    fn more_gpus_or_money_never_make_the_best_worse(draw in draws(), most in 1u64..=24) {
        let bed = Bed::new();
        let routes = routes(draw.skewed);
        let best = |gpus: u64, budget: f64| {
            let draw = Draw { gpus: gpu_counts(8, gpus), policies: vec![Policy::Static], ..draw.clone() };
            let limits = Limits { cost_per_hour: Some(budget), ..Limits::default() };
            let outcome = search(&bed.space(&draw, &routes), &limits, Pruning::ByBound);
            let time = |goal| {
                outcome.winner(goal).map_or([f64::INFINITY; 2], |plan| {
                    [plan.objectives.seconds_per_token, plan.objectives.cost]
                })
            };
            (time(Goal::Fastest)[0], time(Goal::Cheapest)[1])
        };
        let (few, many) = (best(most, 40.0), best(24, 40.0));
        prop_assert!(many.0 <= few.0 && many.1 <= few.1, "GPUs: {few:?} {many:?}");
        let rich = best(most, 80.0);
        prop_assert!(rich.0 <= few.0 && rich.1 <= few.1, "money: {few:?} {rich:?}");
    }

    #[test]
    fn no_plan_beats_its_bound(draw in draws()) {
        let bed = Bed::new();
        let routes = routes(draw.skewed);
        let space = bed.space(&draw, &routes);
        for world in space.worlds().into_iter().flatten() {
            let scenario: Scenario<'_> = space.scenario(&world);
            let steps = routes(0, &world.layer).unwrap();
            for strategy in &draw.strategies {
                for plan in candidates(strategy, &world.layer).unwrap() {
                    for step in &steps {
                        check_bound(&scenario, plan, step.as_deref())?;
                    }
                }
            }
        }
    }
}

fn check_bound(
    scenario: &Scenario<'_>,
    plan: Plan,
    step: Option<&RoutingStep>,
) -> Result<(), TestCaseError> {
    let routing = Routing::of(step);
    let load = Load::new(scenario.layer, 0.0, plan.padding, &routing);
    let program = compile(crate::compile::Source {
        layer: scenario.layer,
        gpus_per_node: scenario.gpus_per_node,
        plan,
        load: &load,
        phase: scenario.phase,
    })
    .unwrap();
    let model: &dyn CostModel = scenario.model;
    let floor = bound::Floor::of(&program, model).step_time();
    let time = simulate_step(scenario, plan, &load).unwrap().step.time;
    prop_assert!(floor <= time, "{plan}: {floor} > {time}");
    prop_assert!(floor > Time::ZERO);
    Ok(())
}

#[test]
fn gpu_counts_of_less_are_among_those_of_more() {
    assert_eq!(gpu_counts(8, 64), [1, 2, 4, 8, 16, 24, 32, 48, 64]);
    for most in 1..200 {
        let (few, many) = (gpu_counts(8, most), gpu_counts(8, most + 1));
        assert!(few.iter().all(|gpus| many.contains(gpus)), "{most}");
    }
}

#[test]
fn what_cannot_be_done_names_the_nearest_plan() {
    let bed = Bed::new();
    let routes = routes(false);
    let draw = Draw {
        layer: LayerSpec::default(),
        tokens: Tokens::PerGpu,
        sites: 1,
        gpus: vec![8, 16],
        capacity: vec![1.0],
        top_k: vec![2],
        dtypes: vec![DType::Tf32],
        strategies: vec![Strategy::tutel()],
        policies: vec![Policy::Static],
        balancing: Vec::new(),
        phase: Phase::Training,
        skewed: false,
        limits: [None; 5],
    };
    let space = bed.space(&draw, &routes);
    let limits = Limits {
        step_time: Some(Time::from_us(10)),
        ..Limits::default()
    };
    let outcome = search(&space, &limits, Pruning::ByBound);
    assert!(outcome.cheapest.is_none() && outcome.fastest.is_none() && outcome.front.is_empty());
    let nearest = &outcome.evaluated[outcome.nearest.unwrap()];
    assert_eq!(nearest.violations[0].limit, "step-time");
    let free = search(&space, &Limits::default(), Pruning::Off);
    let fastest = free
        .evaluated
        .iter()
        .map(|plan| plan.figures.step_time)
        .min();
    assert_eq!(Some(nearest.figures.step_time), fastest);
}
