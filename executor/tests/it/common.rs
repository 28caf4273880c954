//! A layer, a plan, and a run of them.

use moeplan_executor::cpu::Cpu;
use moeplan_executor::{ExecError, Executed, Inputs, execute, tokens_of_step};
use moeplan_sim::compile::{Load, Plan, Routing, Source, compile};
use moeplan_sim::ir::Program;
use moeplan_sim::spec::{DType, Experts, LayerSpec, Phase, ResolvedLayer};

pub(crate) fn layer(
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

pub(crate) fn plan() -> Plan {
    Plan::PLAIN
}

pub(crate) struct Case {
    pub(crate) program: Program,
    pub(crate) limit: usize,
    pub(crate) ran: Executed,
}

pub(crate) fn run(
    layer: &ResolvedLayer,
    gpus_per_node: u64,
    plan: Plan,
    inputs: &Inputs,
    backend: &mut Cpu,
) -> Result<Case, ExecError> {
    run_phase(layer, gpus_per_node, plan, inputs, backend, Phase::Training)
}

pub(crate) fn run_phase(
    layer: &ResolvedLayer,
    gpus_per_node: u64,
    plan: Plan,
    inputs: &Inputs,
    backend: &mut Cpu,
    phase: Phase,
) -> Result<Case, ExecError> {
    let tokens = tokens_of_step(backend, layer, inputs)?;
    let counts = tokens.counts();
    let x = layer.spec.capacity_factor;
    let load = Load::new(layer, x, plan.padding, &Routing::Step(&counts));
    let source = Source {
        layer,
        gpus_per_node,
        plan,
        load: &load,
        phase,
    };
    let program = compile(source).unwrap();
    let ran = execute(&program, layer, backend, inputs, &tokens)?;
    let limit = usize::try_from(load.limit()).unwrap_or(usize::MAX);
    Ok(Case {
        program,
        limit,
        ran,
    })
}

/// |a - b| over |b|.
pub(crate) fn relative(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    let (mut difference, mut size) = (0.0, 0.0);
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    loop {
        match (a.next(), b.next()) {
            (Some(x), Some(y)) => {
                difference += (x - y) * (x - y);
                size += y * y;
            }
            (None, None) => break,
            _ => panic!("lengths differ"),
        }
    }
    if size == 0.0 {
        difference.sqrt()
    } else {
        (difference / size).sqrt()
    }
}

pub(crate) fn wide(values: &[f32]) -> impl Iterator<Item = f64> + '_ {
    values.iter().map(|&value| f64::from(value))
}
