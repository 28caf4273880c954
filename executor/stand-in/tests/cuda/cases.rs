//! Layers and plans, run on the CUDA backend and held against the oracle.

use moeplan_executor::assign::tokens_of;
use moeplan_executor::cuda::{Cuda, Settings};
use moeplan_executor::oracle::layer as oracle;
use moeplan_executor::{
    ExpertWeights, Inputs, RankOutputs, Routing as Choice, execute, tokens_of_step,
};
use moeplan_sim::compile::{Load, Plan, Routing, Source, compile};
use moeplan_sim::spec::{
    AllToAll, DType, Encode, Experts, LayerSpec, Layout, Padding, Phase, ResolvedLayer,
};
use moeplan_traces::{RoutingSpec, Shape};

/// What a case runs.
struct Case {
    layer: ResolvedLayer,
    gpus_per_node: u64,
    plan: Plan,
    inputs: Inputs,
}

fn layer(
    world: u64,
    tokens: u64,
    dims: (u64, u64),
    experts: u64,
    top_k: u32,
    capacity_factor: f64,
) -> ResolvedLayer {
    let spec = LayerSpec {
        tokens_per_step: tokens,
        model_dim: dims.0,
        hidden_dim: dims.1,
        experts: Experts::Total(experts),
        top_k,
        capacity_factor,
        dtype: DType::Fp32,
    };
    spec.resolve(world).unwrap()
}

fn case(name: &str) -> Case {
    let base = Plan::PLAIN;
    let four = layer(4, 24, (12, 20), 8, 2, 1.0);
    let shared = layer(4, 24, (12, 20), 2, 2, 0.0);
    let (layer, gpus_per_node, plan) = match name {
        "one-rank" => (layer(1, 21, (10, 14), 4, 2, 0.8), 1, base),
        "linear" => (four, 4, base),
        "pipelined" => (
            four,
            4,
            Plan {
                forward_degree: 2,
                backward_degree: 4,
                ..base
            },
        ),
        "small" => (
            layer(2, 8, (6, 8), 2, 2, 1.0),
            2,
            Plan {
                forward_degree: 2,
                backward_degree: 2,
                ..base
            },
        ),
        "conventional" => (
            four,
            4,
            Plan {
                layout: Layout::Conventional,
                forward_degree: 2,
                backward_degree: 2,
                ..base
            },
        ),
        "two-dh" => (
            four,
            2,
            Plan {
                all_to_all: AllToAll::TwoDh,
                forward_degree: 2,
                backward_degree: 2,
                ..base
            },
        ),
        // Two ranks share an expert: weights are gathered, gradients reduced and scattered.
        "gathered" => (shared, 2, base),
        // Every rank has a slice of hidden channels: rows are repeated and summed.
        "sliced" => (
            shared,
            2,
            Plan {
                adaptive_r: 2,
                forward_degree: 2,
                backward_degree: 2,
                ..base
            },
        ),
        "replicated" => (
            four,
            4,
            Plan {
                adaptive_r: 0,
                ..base
            },
        ),
        "dense" => (
            layer(2, 20, (12, 8), 4, 2, 0.7),
            2,
            Plan {
                encode: Encode::Dense,
                forward_degree: 2,
                backward_degree: 2,
                ..base
            },
        ),
        "dropless" => (
            layer(4, 27, (9, 15), 8, 3, 1.0),
            2,
            Plan {
                padding: Padding::Dropless,
                forward_degree: 2,
                backward_degree: 2,
                ..base
            },
        ),
        "prioritized" | "recorded" => (layer(2, 30, (8, 16), 4, 2, 0.5), 2, base),
        _ => panic!("no case {name}"),
    };
    let routing = match name {
        "recorded" => {
            let shape = Shape {
                ranks: 2,
                experts: 4,
                tokens_per_rank: 30,
                top_k: 2,
            };
            let spec: RoutingSpec = "zipf:1.0".parse().unwrap();
            Choice::Forced(tokens_of(&spec.generate(&shape, 1, 0, 0).unwrap()).unwrap())
        }
        _ => Choice::Gate,
    };
    let mut inputs = Inputs::random(&layer, 11, routing);
    inputs.prioritized = name == "prioritized";
    Case {
        layer,
        gpus_per_node,
        plan,
        inputs,
    }
}

/// Runs a case, in the process that `process` started.
pub(crate) fn run(name: &str) {
    let Case {
        layer,
        gpus_per_node,
        plan,
        inputs,
    } = case(name);
    let settings = Settings {
        without_blas: std::env::var_os("STAND_IN_BLAS").is_none(),
        ranks_apart: std::env::var_os("STAND_IN_APART").is_some(),
        cache: std::env::current_exe()
            .ok()
            .and_then(|test| Some(test.parent()?.join("stand-in/cache"))),
        ..Settings::default()
    };
    let mut backend = Cuda::probe(settings).unwrap_or_else(|why| panic!("{why}"));
    println!("device={}", backend.device_name());
    println!("blas={}", u8::from(backend.has_blas()));
    let tokens =
        tokens_of_step(&mut backend, &layer, &inputs).unwrap_or_else(|why| panic!("{why}"));
    let counts = tokens.counts();
    let x = layer.spec.capacity_factor;
    let load = Load::new(&layer, x, plan.padding, &Routing::Step(&counts));
    let phase = Phase::Training;
    let program = compile(Source {
        layer: &layer,
        gpus_per_node,
        plan,
        load: &load,
        phase,
    })
    .unwrap();
    // Twice: the second run finds everything compiled and must not depend on what the first left.
    let runs = if std::env::var_os("STAND_IN_TWICE").is_some() {
        2
    } else {
        1
    };
    for _ in 0..runs {
        let ran = execute(&program, &layer, &mut backend, &inputs, &tokens)
            .unwrap_or_else(|why| panic!("{why}"));
        let oracle = oracle(
            &layer,
            &inputs,
            usize::try_from(load.limit()).unwrap_or(usize::MAX),
        );
        let of =
            |part: fn(&RankOutputs) -> &Vec<f32>| ran.ranks.iter().map(part).collect::<Vec<_>>();
        check("output", &of(|rank| &rank.output), &oracle.output);
        check(
            "scores",
            &of(|rank| &rank.assignment.scores),
            &oracle.factors,
        );
        check(
            "token gradient",
            &of(|rank| &rank.token_gradient),
            &oracle.token_gradient,
        );
        check(
            "gate gradient",
            &of(|rank| &rank.gate_gradient),
            &oracle.gate_gradient,
        );
        let losses: Vec<f32> = ran.ranks.iter().map(|rank| rank.balance_loss).collect();
        check(
            "balance loss",
            &[&losses],
            std::slice::from_ref(&oracle.balance_loss),
        );
        let parts: [fn(&ExpertWeights) -> &Vec<f32>; 4] =
            [|e| &e.up, |e| &e.up_bias, |e| &e.down, |e| &e.down_bias];
        for (index, part) in parts.into_iter().enumerate() {
            let ours: Vec<&Vec<f32>> = ran.expert_gradients.iter().map(part).collect();
            let theirs: Vec<Vec<f64>> = oracle
                .expert_gradients
                .iter()
                .map(|expert| expert[index].clone())
                .collect();
            check(["W1", "b1", "W2", "b2"][index], &ours, &theirs);
        }
        let spans = (0..program.world_size).flat_map(|rank| ran.timeline.rank(rank));
        assert!(
            spans.clone().all(|span| span.start <= span.end),
            "an operation ends before it starts"
        );
    }
    drop(backend);
    println!("waits={}", stand_in("moeplan_stand_in_waits"));
    println!("leaked={}", stand_in("moeplan_stand_in_used"));
}

/// Whether tensors agree to 1e-5 of their norm, and are numbers at all.
fn check(what: &str, ours: &[&Vec<f32>], theirs: &[Vec<f64>]) {
    let ours: Vec<f32> = ours
        .iter()
        .flat_map(|values| values.iter().copied())
        .collect();
    assert!(
        ours.iter().all(|value| value.is_finite()),
        "{what} is not finite"
    );
    let theirs = theirs.concat();
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let difference = square(&mut ours.iter().zip(&theirs).map(|(a, b)| f64::from(*a) - b));
    let size = square(&mut theirs.iter().copied());
    let error = (difference / size.max(f64::MIN_POSITIVE)).sqrt();
    assert!(error <= 1e-5, "{what} is off by {error:e}");
}

/// Asks the stand-in library for a number.
#[allow(unsafe_code, reason = "a call into the stand-in library")]
fn stand_in(name: &str) -> u64 {
    // SAFETY: our own library, which is loaded already, and a function of this type.
    unsafe {
        let library = libloading::Library::new("libcuda.so").unwrap();
        let function = library.get::<unsafe extern "C" fn() -> u64>(name).unwrap();
        function()
    }
}
