//! The answer of the network: when every rank is done, and what held it up.

use super::fabric::{Fabric, LinkClass, LinkId};
use super::load::ClassLoad;
use crate::units::Time;

/// When a collective is done, and what it waited for.
#[derive(Debug, Clone, PartialEq)]
pub struct Drained {
    /// For each rank, when its last byte is in or out.
    pub finish: Vec<Time>,
    /// When the last rank is done.
    pub makespan: Time,
    /// The maximum over links of `bytes / capacity`: the makespan is never below.
    pub port_bound: Time,
    /// The link that sets the port bound; `None` if nothing is sent.
    pub bottleneck: Option<LinkId>,
    /// Bytes over that link.
    pub bottleneck_bytes: u64,
    /// Bytes over the links of each class, in the order of [`LinkClass::ALL`].
    pub loads: Vec<ClassLoad>,
    /// How far the makespan may be from that of exact max-min fair sharing, as a fraction of it.
    /// See [`drain_in_steps`](super::drain_in_steps) for what is proven and what is tested.
    pub relative_error_bound: f64,
    /// How far the finish of a rank may be from exact, as a fraction of the exact *makespan*.
    pub finish_error_bound: f64,
}

impl Drained {
    /// Puts the answer together. Leaf links have no finish of their own, so where rounding left
    /// the last rank below their bound it is raised to it: the makespan is the last finish.
    pub(super) fn new(
        fabric: &Fabric,
        loads: Vec<ClassLoad>,
        mut finish: Vec<Time>,
        relative_error_bound: f64,
        finish_error_bound: f64,
    ) -> Drained {
        let busiest = loads
            .iter()
            .filter(|load| load.busiest_bytes > 0)
            .max_by_key(|load| load.bound(fabric));
        let port_bound = busiest.map_or(Time::ZERO, |load| load.bound(fabric));
        let last = finish.iter().copied().max().unwrap_or(Time::ZERO);
        let makespan = last.max(port_bound);
        for time in finish.iter_mut().filter(|time| **time == last) {
            *time = makespan;
        }
        Drained {
            makespan,
            port_bound,
            bottleneck: busiest.map(|load| load.busiest),
            bottleneck_bytes: busiest.map_or(0, |load| load.busiest_bytes),
            finish,
            loads,
            relative_error_bound,
            finish_error_bound,
        }
    }

    /// Mean utilisation of the links of a class until the makespan, from 0 to 1.
    pub fn utilisation(&self, fabric: &Fabric, class: LinkClass) -> f64 {
        let seconds = self.makespan.as_secs_f64();
        let room = f64::from(fabric.links(class)) * fabric.capacity(class).bytes_per_second();
        let total: u128 = self
            .loads
            .iter()
            .filter(|load| load.busiest.class == class)
            .map(|load| load.total_bytes)
            .sum();
        if seconds > 0.0 {
            total as f64 / (room * seconds)
        } else {
            0.0
        }
    }
}
