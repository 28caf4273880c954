//! Layers and plans, run on the CUDA backend and held against the oracle.

use crate::fixture::{self, agree, cosine, layer};
use moeplan_executor::assign::tokens_of;
use moeplan_executor::backend::RankOutputs;
use moeplan_executor::cuda::{Cuda, Settings};
use moeplan_executor::oracle::layer as oracle;
use moeplan_executor::{Inputs, Routing as Choice};
use moeplan_sim::compile::Plan;
use moeplan_sim::spec::{AllToAll, DType, Encode, Layout, Padding, ResolvedLayer};
use moeplan_traces::{RoutingSpec, Shape};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::num::NonZeroUsize;

/// What a case runs.
struct Case {
    layer: ResolvedLayer,
    gpus_per_node: u64,
    plan: Plan,
    inputs: Inputs,
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
        "cosine" => (
            cosine(layer(2, 22, (10, 14), 4, 2, 0.8), 7),
            2,
            Plan {
                forward_degree: 2,
                ..base
            },
        ),
        "prioritized" | "recorded" | "noisy" => (layer(2, 30, (8, 16), 4, 2, 0.5), 2, base),
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
    if name == "noisy" {
        inputs = inputs.with_gate_noise(&layer, 5, 8.0);
    }
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
        mut layer,
        gpus_per_node,
        plan,
        mut inputs,
    } = case(name);
    let dtype = match std::env::var("STAND_IN_DTYPE") {
        Ok(name) => name.parse().unwrap(),
        Err(_) => DType::Fp32,
    };
    layer.spec.dtype = dtype;
    if dtype != DType::Fp32 {
        // Where rounding moves a sum across zero, ReLU passes a gradient that it should not: that is no error of ours. Channels
        // that are clearly on or off leave the rounding alone.
        for expert in &mut inputs.experts {
            let biases = expert.up_bias.iter_mut().enumerate();
            biases.for_each(|(channel, bias)| *bias = if channel % 2 == 0 { 3.0 } else { -3.0 });
        }
    }
    let settings = Settings {
        without_blas: std::env::var_os("STAND_IN_BLAS").is_none(),
        ranks_apart: std::env::var_os("STAND_IN_APART").is_some(),
        buffers_apart: std::env::var_os("STAND_IN_SHARED").is_none(),
        cache: std::env::current_exe()
            .ok()
            .and_then(|test| Some(test.parent()?.join("stand-in/cache"))),
        devices: std::env::var("STAND_IN_GPUS").map_or(NonZeroUsize::MIN, |n| n.parse().unwrap()),
        ..Settings::default()
    };
    let mut backend = Cuda::probe(settings).unwrap_or_else(|why| panic!("{why}"));
    println!("device={}", backend.device_name());
    println!("blas={}", u8::from(backend.has_blas()));
    // Twice: the second run finds everything compiled and must not depend on what the first left.
    let runs = match std::env::var_os("STAND_IN_TWICE") {
        Some(_) => 2,
        None => 1,
    };
    for _ in 0..runs {
        let case = fixture::run(&layer, gpus_per_node, plan, &inputs, &mut backend)
            .unwrap_or_else(|why| panic!("{why}"));
        let mut stored = inputs.rounded(dtype);
        if dtype != DType::Fp32 && matches!(stored.routing, Choice::Gate) {
            // Scores that differ by less than TF32 tells apart may be chosen either way.
            stored.routing = Choice::Forced(case.tokens.clone());
        }
        agree(
            &case,
            &oracle(&layer, &stored, case.limit),
            tolerance(dtype),
        );
        println!("bits={}", bits(&case.ran.ranks));
        let (program, timeline) = (&case.program, &case.ran.timeline);
        let mut spans = (0..program.world_size).flat_map(|rank| timeline.rank(rank));
        assert!(
            spans.all(|span| span.start <= span.end),
            "an operation ends before it starts"
        );
    }
    drop(backend);
    println!("waits={}", stand_in("moeplan_stand_in_waits"));
    println!("leaked={}", stand_in("moeplan_stand_in_used"));
}

/// A digest of everything that ranks leave, to the bit.
fn bits(ranks: &[RankOutputs]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for rank in ranks {
        let tensors = [
            &rank.output,
            &rank.token_gradient,
            &rank.gate_gradient,
            &rank.expert_gradient,
            &rank.score_gradient,
            &rank.assignment.scores,
        ];
        for value in tensors.into_iter().flatten() {
            value.to_bits().hash(&mut hasher);
        }
        rank.assignment.ids.hash(&mut hasher);
        rank.assignment.locations.hash(&mut hasher);
        rank.balance_loss.to_bits().hash(&mut hasher);
    }
    hasher.finish()
}

/// What rounding to `dtype` after every operation may do to the norm of a tensor.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::Fp32 => 1e-5,
        DType::Tf32 | DType::Fp16 => 3e-3,
        DType::Bf16 => 2.4e-2,
    }
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
