//! Layer + plan + routing step -> [`Program`]: the only place where schedules and shapes are written.

#[macro_use]
mod names;

mod backward;
mod capacity;
mod exchange;
mod forward;
mod kinds;
mod load;
mod lone;
mod model;
mod tensors;
mod uneven;

pub use capacity::Capacity;
pub use load::{Drops, Load, Routing, Steps};
pub use lone::{Payload, all_to_all};
pub use model::{ModelSource, MoeRun, compile_model};

use crate::ir::{Homes, PerRank, Placement, Program, ProgramBuilder};
use crate::spec::{AllToAll, Encode, Layout, Padding, Phase, ResolvedLayer, SpecError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A strategy with every `auto` decided: what one program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Plan {
    /// Encode and decode kernels.
    pub encode: Encode,
    /// All-to-All algorithm a.
    pub all_to_all: AllToAll,
    /// Layout after dispatch.
    pub layout: Layout,
    /// Padded or dropless.
    pub padding: Padding,
    /// Pipelining degree d, forward.
    pub forward_degree: u64,
    /// Pipelining degree, backward.
    pub backward_degree: u64,
    /// Adaptive parallelism parameter r.
    pub adaptive_r: u64,
}

impl Plan {
    /// Tutel's kernels and layout with nothing that adapts: sparse, linear, flexible, padded, degree 1,
    /// r = 1.
    pub const PLAIN: Plan = Plan {
        encode: Encode::Sparse,
        all_to_all: AllToAll::Linear,
        layout: Layout::Flexible,
        padding: Padding::Capacity,
        forward_degree: 1,
        backward_degree: 1,
        adaptive_r: 1,
    };
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r={} d={}", self.adaptive_r, self.forward_degree)?;
        if self.backward_degree != self.forward_degree {
            write!(f, "/{}", self.backward_degree)?;
        }
        // Under r = 0 no tokens travel, so no All-to-All is chosen.
        match self.adaptive_r {
            0 => write!(f, " no all-to-all"),
            _ => write!(f, " {}", self.all_to_all),
        }
    }
}

/// Everything a program is compiled from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The layer on this world.
    pub layer: &'a ResolvedLayer,
    /// m: GPUs a node.
    pub gpus_per_node: u64,
    /// All choices made.
    pub plan: Plan,
    /// Routing of the step under the plan's capacity.
    pub load: &'a Load,
    /// Forward only, or a training step.
    pub phase: Phase,
}

/// Compiles one step of one layer.
///
/// # Errors
/// A degree of 0, an r that does not divide W/E, or nodes that do not divide the world.
pub fn compile(source: Source<'_>) -> Result<Program, SpecError> {
    check(&source)?;
    let Source {
        layer,
        gpus_per_node,
        plan,
        phase,
        ..
    } = source;
    let mut builder = ProgramBuilder::new(
        layer.world_size as usize,
        gpus_per_node as usize,
        layer.spec.dtype,
    );
    builder.place(Placement {
        homes: Homes::new(layer, plan.adaptive_r),
        adaptive_r: plan.adaptive_r,
        limit: source.load.limit(),
    });
    let shapes = tensors::Shapes::new(&source);
    let weights = tensors::Weights::allocate(&mut builder, layer, plan.adaptive_r, phase);
    let own = shapes.bytes(&PerRank::Same(layer.tokens()), layer.spec.model_dim);
    let tokens = builder.external("tokens", own.clone());
    let (saved, _) = forward::emit(&mut builder, &source, &shapes, &weights, tokens);
    if phase == Phase::Training {
        let gradient = builder.external("output gradient", own);
        backward::emit(&mut builder, &source, &shapes, &weights, saved, gradient);
    }
    Ok(builder.finish())
}

fn check(source: &Source<'_>) -> Result<(), SpecError> {
    let Source {
        layer,
        gpus_per_node,
        plan,
        ..
    } = source;
    if *gpus_per_node == 0 || !layer.world_size.is_multiple_of(*gpus_per_node) {
        let expected = format!("a divisor of the {} GPUs", layer.world_size);
        return Err(SpecError::new("gpus-per-node", expected, gpus_per_node));
    }
    for (field, degree) in [
        ("pipeline-degree", plan.forward_degree),
        ("backward-degree", plan.backward_degree),
    ] {
        if !(1..=256).contains(&degree) {
            return Err(SpecError::new(field, "1 to 256", degree));
        }
    }
    let valid = layer.valid_adaptive_r();
    if !valid.contains(&plan.adaptive_r) {
        let expected = format!(
            "0 or a divisor of W/E = {}: one of {valid:?}",
            layer.sharded_count
        );
        return Err(SpecError::new("adaptive-r", expected, plan.adaptive_r));
    }
    Ok(())
}
