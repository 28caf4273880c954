//! The oracle: every flow on its own, exact max-min rates, one event at a time.
//!
//! Cost grows with pairs squared: for tests, up to about 64 GPUs.

use super::drained::Drained;
use super::fabric::{Fabric, LinkClass, LinkId};
use super::fair::{FlowClass, drain as drain_classes};
use super::load::Loads;
use super::traffic::{Traffic, TrafficError};
use crate::units::Time;

/// When every rank is done, with no shortcut taken.
pub fn drain(fabric: &Fabric, traffic: &Traffic) -> Result<Drained, TrafficError> {
    traffic.check(fabric)?;
    let mut offset = [0; LinkClass::ALL.len()];
    let mut capacity = Vec::new();
    for class in LinkClass::ALL {
        offset[class as usize] = capacity.len();
        let rate = fabric.capacity(class).bytes_per_second();
        capacity.extend(std::iter::repeat_n(rate, fabric.links(class) as usize));
    }
    let place = |link: LinkId| (offset[link.class as usize] + link.index as usize, 1.0);
    let flows: Vec<FlowClass> = traffic
        .flows(fabric)
        .map(|(src, dst, bytes)| FlowClass {
            bytes: bytes as f64,
            cap: fabric.flow_cap(fabric.same_node(src, dst)),
            crosses: fabric.path(src, dst).map(place).collect(),
        })
        .collect();

    let loads = Loads::by_path(fabric, traffic);
    let mut finish = loads.rank_bounds(fabric);
    let ends = drain_classes(&capacity, &flows);
    for ((src, dst, _), end) in traffic.flows(fabric).zip(ends) {
        let end = Time::from_secs_f64(end);
        for rank in [src, dst] {
            let slot = &mut finish[rank as usize];
            *slot = end.max(*slot);
        }
    }
    Ok(Drained::new(fabric, loads.classes(), finish, 1e-9, 1e-9))
}
