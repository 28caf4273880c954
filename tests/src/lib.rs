//! Fixtures shared by the integration tests.

mod program;

pub use program::{Ran, moeplan, moeplan_args};

use moeplan_sim::compile::{Load, Plan, Routing};
use moeplan_sim::cost::analytic::Analytic;
use moeplan_sim::hardware::{Hardware, PRESETS, builtin};
use moeplan_sim::simulate::{Scenario, Trace, simulate_step};
use moeplan_sim::spec::{DType, Experts, Gate, LayerSpec, Padding, Phase, ResolvedLayer, Strategy};
use moeplan_traces::{RoutingSpec, RoutingStep, Shape};

/// A kind of cluster with its prices.
#[derive(Debug)]
pub struct Testbed {
    /// Constants.
    pub hardware: Hardware,
    /// Prices.
    pub model: Analytic,
}

impl Default for Testbed {
    fn default() -> Self {
        Testbed::with(|_| {})
    }
}

impl Testbed {
    /// The default preset with some constants changed.
    ///
    /// # Panics
    /// Where the change makes no model.
    pub fn with(change: impl FnOnce(&mut Hardware)) -> Testbed {
        let mut hardware = builtin(PRESETS[0].0).expect("the built-in presets are tested in sim");
        change(&mut hardware);
        let model = Analytic::new(&hardware).expect("a change to sensible constants");
        Testbed { hardware, model }
    }

    /// `layer` on this cluster, a training step.
    pub fn scenario<'a>(&'a self, layer: &'a ResolvedLayer) -> Scenario<'a> {
        Scenario {
            layer,
            gpus_per_node: self.hardware.node.gpus.min(layer.world_size),
            memory_bytes: self.hardware.memory_bytes(),
            reserved_bytes: self.hardware.reserved_bytes(),
            model: &self.model,
            phase: Phase::Training,
        }
    }

    /// A training step of `layer` under `plan`, with the capacity setting of the layer.
    ///
    /// # Panics
    /// Where the layer cannot run the plan.
    pub fn simulate(&self, layer: &ResolvedLayer, plan: Plan, routing: &Routing<'_>) -> Trace {
        let load = Load::new(layer, layer.spec.capacity_factor, plan.padding, routing);
        simulate_step(&self.scenario(layer), plan, &load).expect("a plan the layer can run")
    }
}

/// Sparse kernels, linear All-to-All, flexible layout, degree 1, r = 1, padded.
pub fn plan() -> Plan {
    Plan::PLAIN
}

/// Tutel with everything `auto`, padded or dropless.
pub fn tutel(padding: Padding) -> Strategy {
    Strategy {
        padding,
        ..Strategy::tutel()
    }
}

/// A small layer: 512 tokens a GPU, D = 256, H = 512, top-2.
pub fn small_layer(experts: Experts) -> LayerSpec {
    LayerSpec {
        tokens_per_step: 512,
        model_dim: 256,
        hidden_dim: 512,
        experts,
        top_k: 2,
        capacity_factor: 1.0,
        dtype: DType::Fp16,
        gate: Gate::Linear,
    }
}

/// Generated routing of `layer`'s shape, such as `zipf:1.2`.
///
/// # Panics
/// Where `spec` is not a routing specification.
pub fn routing(layer: &ResolvedLayer, spec: &str, seed: u64) -> RoutingStep {
    let shape = Shape {
        ranks: layer.world_size as usize,
        experts: layer.num_experts as usize,
        tokens_per_rank: u32::try_from(layer.tokens()).expect("tests use few tokens"),
        top_k: layer.spec.top_k,
    };
    let spec: RoutingSpec = spec.parse().expect("a routing specification");
    spec.generate(&shape, seed, 0, 0)
        .expect("a shape that fits the layer")
}
