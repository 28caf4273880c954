//! The entry point: splits a collective into parts and picks the solver of each.

use super::component::Component;
use super::drained::Drained;
use super::epoch::{self, Steps};
use super::fabric::{Fabric, LinkClass, Routing};
use super::load::Loads;
use super::symmetric;
use super::traffic::{Scope, Traffic, TrafficError};
use crate::units::Time;

/// Stated accuracy of [`drain`] for uneven traffic, as a fraction of the makespan.
pub const ERROR_BOUND: f64 = 0.02;

/// When every rank has its last byte in and out.
pub fn drain(fabric: &Fabric, traffic: &Traffic) -> Result<Drained, TrafficError> {
    traffic.check(fabric)?;
    match *traffic {
        Traffic::Uniform {
            scope,
            bytes_per_pair,
        } if fabric.leaves().routing == Routing::Adaptive || scope == Scope::Node => {
            Ok(symmetric::drain(fabric, scope, bytes_per_pair))
        }
        Traffic::Uniform { .. } | Traffic::Matrix { .. } => {
            let steps = Steps {
                first: 1.0 / 16.0,
                ratio: 1.125,
            };
            Ok(drain_uneven(fabric, traffic, steps))
        }
    }
}

/// Any traffic, part by part.
pub(super) fn drain_uneven(fabric: &Fabric, traffic: &Traffic, steps: Steps) -> Drained {
    let loads = Loads::new(fabric, traffic);
    let mut finish = loads.rank_bounds(fabric);
    let floor = finish.clone();
    let mut solve = |component| {
        epoch::drain(fabric, component, steps, |rank, seconds| {
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
    Drained::new(fabric, loads.classes(), finish, ERROR_BOUND)
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
    let most = |class| loads.of(class)[ranks.clone()].iter().copied().max().unwrap_or(0);
    let (out, into) = (most(LinkClass::NvlinkOut), most(LinkClass::NvlinkIn));
    let nvlink = fabric.capacity(LinkClass::NvlinkOut).bytes_per_second();
    let latest = (out as f64 + into as f64) / nvlink + out as f64 / fabric.flow_cap(true);
    let earliest = floor[ranks].iter().copied().min().unwrap_or(Time::ZERO);
    out > 0 && Time::from_secs_f64(latest) > earliest
}
