//! What more of each resource would buy.

use super::limits::{Goal, Limits};
use super::search::{Pruning, search};
use super::space::{Decision, Site, Space, Tokens, World};
use super::tester::Evaluated;
use crate::cost::model_of;
use crate::hardware::Hardware;
use crate::spec::Policy;
use crate::units::Time;
use serde::Serialize;

/// GPUs of the NVLink domain that a sensitivity asks for: one rack of GB200 NVL72.
const WIDE_DOMAIN: u64 = 72;

/// What more of one resource would buy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Of what: `NIC x2`.
    pub change: String,
    /// Step time of the best plan with it.
    pub step_time: Time,
    /// Tokens a second of that plan.
    pub tokens_per_second: f64,
    /// Tokens a second over those of the winner.
    pub gain: f64,
    /// That plan.
    pub plan: String,
}

impl Sensitivity {
    /// A richer cluster can be run as it was: one NVLink domain as the nodes it replaces, between which
    /// 2DH has less to send than a linear All-to-All has within it.
    fn or_unused(self, winner: &Evaluated) -> Sensitivity {
        if self.gain >= 1.0 {
            return self;
        }
        Sensitivity {
            change: self.change,
            step_time: winner.figures.step_time,
            tokens_per_second: winner.figures.cost.tokens_per_second,
            gain: 1.0,
            plan: format!("{}, as without it", winner.candidate.decision),
        }
    }
}

/// What more of each resource would buy, the plan chosen anew each time.
pub fn sensitivities(space: &Space<'_>, world: &World, winner: &Evaluated) -> Vec<Sensitivity> {
    let site = &space.sites[world.site];
    let mut found = Vec::new();
    for (change, hardware, gpus_per_node) in richer(site, world.gpus) {
        let Ok(model) = model_of(&hardware, world.gpus) else {
            continue;
        };
        let site = Site {
            hardware: &hardware,
            model: &*model,
            gpus_per_node,
            per_gpu_hour: site.per_gpu_hour,
        };
        let best = best_with(space, site, world.gpus, world, winner, change);
        found.extend(best.map(|best| best.or_unused(winner)));
    }
    let double = world.gpus * 2;
    let change = match space.tokens {
        Tokens::PerGpu => format!("GPUs x2 ({double}, twice the tokens)"),
        Tokens::InAll(_) => format!("GPUs x2 ({double}, the same tokens)"),
    };
    found.extend(best_with(space, *site, double, world, winner, change));
    found
}

/// The best plan of the winner's kind on `gpus` GPUs of `site`.
fn best_with(
    space: &Space<'_>,
    site: Site<'_>,
    gpus: u64,
    world: &World,
    winner: &Evaluated,
    change: String,
) -> Option<Sensitivity> {
    let spec = &world.layer.spec;
    let alone = Space {
        sites: vec![site],
        gpus: vec![gpus],
        layer: space.layer.clone(),
        whole: space.whole,
        tokens: space.tokens,
        top_k: vec![spec.top_k],
        dtypes: vec![spec.dtype],
        slices: vec![world.slices],
        capacity: vec![winner.candidate.capacity],
        strategies: vec![space.strategies[winner.candidate.strategy].clone()],
        policies: vec![match winner.candidate.decision {
            Decision::Always(_) => Policy::Static,
            Decision::Adapts(policy) => policy,
        }],
        balancing: match winner.candidate.balancing {
            None => Vec::new(),
            Some(index) => vec![space.balancing[index].clone()],
        },
        phase: space.phase,
        routes: space.routes,
        power: space.power,
    };
    let outcome = search(&alone, &Limits::default(), Pruning::ByBound);
    let best = outcome.winner(Goal::Fastest)?;
    let tokens_per_second = best.figures.cost.tokens_per_second;
    Some(Sensitivity {
        change,
        step_time: best.figures.step_time,
        tokens_per_second,
        gain: tokens_per_second / winner.figures.cost.tokens_per_second,
        plan: best.candidate.decision.to_string(),
    })
}

/// Hardware with more of one resource each, and the GPUs of its nodes.
fn richer(site: &Site<'_>, gpus: u64) -> Vec<(String, Hardware, u64)> {
    let node = site.gpus_per_node;
    let with = |change: &str, of: &dyn Fn(&mut Hardware)| {
        let mut hardware = site.hardware.clone();
        of(&mut hardware);
        (change.to_owned(), hardware, node)
    };
    let mut found = vec![
        with("NIC x2", &|hardware| {
            hardware.collectives.nic.wire_gb_per_s *= 2.0;
        }),
        with("HBM bandwidth x2", &|hardware| {
            let gpu = &mut hardware.gpu;
            gpu.hbm_gb_per_s *= 2.0;
            gpu.gemm.hbm_gbps *= 2.0;
            gpu.gemm.store_gbps *= 2.0;
            gpu.gemm.gemv_gbps *= 2.0;
        }),
        with("tensor cores x2", &|hardware| {
            let gemm = &mut hardware.gpu.gemm;
            gemm.tensor_tflops *= 2.0;
            gemm.tf32_tflops *= 2.0;
            gemm.fp32_tflops *= 2.0;
        }),
        with("launches twice as fast", &|hardware| {
            let host = &mut hardware.host;
            host.launch_us /= 2.0;
            host.collective_us /= 2.0;
            host.peer_us /= 2.0;
        }),
    ];
    // Nodes must divide the world: the widest domain that does.
    let widest = (node + 1..=WIDE_DOMAIN.min(gpus))
        .rev()
        .find(|m| gpus.is_multiple_of(*m));
    if let Some(wide) = widest {
        let mut hardware = site.hardware.clone();
        hardware.node.gpus = wide;
        found.push((format!("NVLink domain {node} -> {wide}"), hardware, wide));
    }
    found
}
