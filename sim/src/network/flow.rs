//! The entry point: splits a collective into parts and picks the solver of each.

use super::component::Component;
use super::drained::Drained;
use super::epoch;
use super::fabric::{Fabric, LinkClass, Routing};
use super::load::Loads;
use super::symmetric;
use super::traffic::{Scope, Traffic, TrafficError};
use crate::units::Time;

/// When every rank has its last byte in and out.
///
/// Uniform traffic over pooled uplinks is solved exactly in microseconds. Everything else goes to
/// [`drain_in_steps`] with 32 steps for 1,024 ranks and more, up to 128 for 256 and fewer.
pub fn drain(fabric: &Fabric, traffic: &Traffic) -> Result<Drained, TrafficError> {
    match *traffic {
        Traffic::Uniform {
            scope,
            bytes_per_pair,
        } if fabric.leaves().routing == Routing::Adaptive || scope == Scope::Node => {
            Ok(symmetric::drain(fabric, scope, bytes_per_pair))
        }
        Traffic::Uniform { .. } | Traffic::Matrix { .. } => {
            let steps = (32_768 / fabric.world_size()).clamp(32, 128);
            drain_in_steps(fabric, traffic, steps)
        }
    }
}

/// As [`drain`], by the epoch solver with epochs of about `1 / steps` of the port bound, whatever
/// the traffic. Time and accuracy grow with `steps`; zero counts as one.
///
/// **Accuracy.** Tested against [`reference`], not proven; in units of `1 / steps` of the exact
/// makespan, over some 40,000 runs on random fabrics of up to 64 ranks with 16 to 200 steps:
///
/// | | root mean square | worst seen | stated |
/// |---|---|---|---|
/// | makespan | 0.04 | 0.36 | 1 |
/// | finish of a rank, no leaf link can limit | 0.08 | 0.65 | 1 |
/// | finish of a rank, leaf links can limit | 0.34 | 2.9 | 8 |
///
/// The last line has a heavy tail, above 1 in about one run of 3,000: when a flow that is nearly done
/// falls behind a much slower link, an error of few bytes becomes a long delay. That is in the
/// nature of max-min sharing, whose completion times are not even monotone in the bytes: there are
/// networks where one more transfer shortens the exact makespan by 4 %.
///
/// Proven: no rank finishes before its port bound, here or in the exact answer. And since a fair
/// flow waits at any instant for one of its links, which is then full, or for its cap, the exact
/// makespan is at most `hops * port bound + bytes / cap` of the last flow, with 2 hops, or 4 where
/// leaf links can limit.
///
/// **Cost.** Time `O(pairs * steps)`, memory 8 bytes a pair, 16 under static routing.
///
/// [`reference`]: super::reference
pub fn drain_in_steps(
    fabric: &Fabric,
    traffic: &Traffic,
    steps: u32,
) -> Result<Drained, TrafficError> {
    traffic.check(fabric)?;
    Ok(drain_uneven(fabric, traffic, steps.max(1)))
}

/// Part by part.
fn drain_uneven(fabric: &Fabric, traffic: &Traffic, steps: u32) -> Drained {
    let loads = Loads::new(fabric, traffic);
    let mut finish = loads.rank_bounds(fabric);
    let floor = finish.clone();
    let mut solve = |component| {
        epoch::drain(component, steps, |rank, seconds| {
            let slot = &mut finish[rank as usize];
            *slot = Time::from_secs_f64(seconds).max(*slot);
        });
    };
    if any(loads.of(LinkClass::NicOut)) {
        let nic = fabric.capacity(LinkClass::NicOut).bytes_per_second();
        if traffic.scope() == Scope::Rail {
            for rail in 0..fabric.gpus_per_node() {
                solve(Component::remote(fabric, traffic, Some(rail), nic));
            }
        } else {
            solve(Component::remote(fabric, traffic, None, nic));
        }
    }
    for node in 0..fabric.nodes() {
        if local_matters(fabric, &loads, node, &floor) {
            let nvlink = fabric.capacity(LinkClass::NvlinkOut).bytes_per_second();
            solve(Component::local(fabric, traffic, node, nvlink));
        }
    }
    let makespan_error = 1.0 / f64::from(steps);
    let finish_error = if fabric.core_is_non_blocking() {
        makespan_error
    } else {
        8.0 * makespan_error
    };
    Drained::new(
        fabric,
        loads.classes(),
        finish,
        makespan_error,
        finish_error,
    )
}

fn any(loads: &[u64]) -> bool {
    loads.iter().any(|&bytes| bytes > 0)
}

/// Whether NVLink flows of a node may outlast the port bounds of its ranks.
///
/// A fair flow always waits for its sender's port, its receiver's port or its cap, so it is done
/// by `(bytes out + bytes in) / port + bytes / cap`.
fn local_matters(fabric: &Fabric, loads: &Loads, node: u32, floor: &[Time]) -> bool {
    let g = fabric.gpus_per_node();
    let ranks = (node * g) as usize..((node + 1) * g) as usize;
    let most = |class| {
        loads.of(class)[ranks.clone()]
            .iter()
            .copied()
            .max()
            .unwrap_or(0)
    };
    let (out, into) = (most(LinkClass::NvlinkOut), most(LinkClass::NvlinkIn));
    let nvlink = fabric.capacity(LinkClass::NvlinkOut).bytes_per_second();
    let latest = (out as f64 + into as f64) / nvlink + out as f64 / fabric.flow_cap(true);
    let earliest = floor[ranks].iter().copied().min().unwrap_or(Time::ZERO);
    out > 0 && Time::from_secs_f64(latest) > earliest
}
