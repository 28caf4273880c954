//! The fast solver for uneven traffic: max-min fairness over epochs instead of instants.
//!
//! Between two instants `t` and `t + d` a flow gets `min(left, level_l * d over its links l, cap * d)`
//! bytes. [`Levels::fill`] finds the levels such that each link is either not full or the fullest
//! one for some of its flows: max-min fairness of *bytes in the epoch*. Because what is `left` is
//! inside the `min`, flows may finish anywhere in an epoch and the bandwidth they free is used: on
//! a link that limits its flows throughout, the epoch is exact whatever its length. The error
//! comes only from flows whose limiting link changes within an epoch, and is of second order in
//! its length. Epochs grow geometrically with time, so their number is logarithmic.
//!
//! Progressive filling by lazy Newton: `used(x) = sum min(left, x, other levels)` is concave in the
//! level `x` of a link, so a Newton step towards `used(x) = room` from any point is a lower bound
//! of the root, and the root only rises while other links are being settled. A heap of lower bounds
//! therefore always settles the least full level next, at O(flows of the link) a step.

use super::component::{Component, Core};
use super::fabric::Fabric;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// How finely time is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    /// Epochs end no earlier than this fraction of the largest `bytes / capacity` of a port.
    pub(super) first: f64,
    /// End of an epoch over its start.
    pub(super) ratio: f64,
}

/// A link is full when no more than this fraction of its room is left: the rounding of `f32` sums.
const FULL: f64 = 4e-6;

/// Calls `done(rank, seconds)` when a rank has sent, and when it has received, its last byte.
pub(super) fn drain(
    fabric: &Fabric,
    mut component: Component,
    steps: Steps,
    mut done: impl FnMut(u32, f64),
) {
    let (mut now, mut end) = (0.0, first_end(&component, steps));
    loop {
        component.compact();
        if component.sides[0].ranks.is_empty() {
            return;
        }
        let mut levels = Levels::new(fabric, &component, end - now);
        levels.fill(&component);
        let after = [0, 1].map(|s| levels.remaining(&component, s));
        for (s, rows) in after.iter().enumerate() {
            let side = &component.sides[s];
            for (i, rest) in rows.iter().enumerate() {
                if side.live[i] > 0 && rest.flows == 0 {
                    done(side.ranks[i], now + levels.last_byte(&component, s, i));
                }
            }
        }
        for (s, rows) in after.iter().enumerate() {
            levels.apply(&mut component, s, rows);
        }
        (now, end) = (end, end * steps.ratio);
    }
}

/// When the first rank can be done at the earliest, but not absurdly early.
fn first_end(component: &Component, steps: Steps) -> f64 {
    let ports = || component.sides.iter().flat_map(|side| &side.bytes);
    let most = ports().copied().fold(0.0, f64::max);
    let least = ports().filter(|&&bytes| bytes > 0.0).copied();
    least.fold(most, f64::min).max(most * steps.first) / component.port
}

/// What an epoch leaves of a row.
struct Rest {
    flows: u32,
    bytes: f64,
}

/// A link of a component: the port of row `i` of side `s`, or core link `i` of side `s`.
#[derive(Clone, Copy)]
enum Link {
    Port(usize, usize),
    Core(usize, usize),
}

/// How many bytes a flow may send in an epoch, for each link it may cross.
struct Levels<'a> {
    fabric: &'a Fabric,
    /// Length of the epoch.
    seconds: f64,
    /// By side and row; the flow cap where the port is not full.
    port: [Vec<f32>; 2],
    /// By side (up, down) and core link; the flow cap where it is not full.
    core: [Vec<f32>; 2],
    /// `min(port, core)` of each row for pooled core links.
    through: [Vec<f32>; 2],
    scratch: Vec<f32>,
}

impl<'a> Levels<'a> {
    fn new(fabric: &'a Fabric, component: &Component, seconds: f64) -> Levels<'a> {
        let cap = (component.cap * seconds) as f32;
        let port = component.sides.each_ref().map(|side| vec![cap; side.ranks.len()]);
        let core = component
            .sides
            .each_ref()
            .map(|side| vec![cap; side.by_leaf.len() * component.planes]);
        Levels {
            fabric,
            seconds,
            through: port.clone(),
            port,
            core,
            scratch: Vec::new(),
        }
    }

    /// Settles the level of every link, the least full level first.
    fn fill(&mut self, component: &Component) {
        let port_room = component.port * self.seconds;
        let core_room = component.core_link * self.seconds;
        let mut links = Vec::new();
        let mut heap = BinaryHeap::new();
        for (s, side) in component.sides.iter().enumerate() {
            for i in (0..side.ranks.len()).filter(|&i| side.bytes[i] > port_room) {
                let key = (port_room / f64::from(side.live[i])) as f32;
                heap.push(Reverse((key.to_bits(), links.len())));
                links.push(Link::Port(s, i));
            }
            for i in 0..self.core[s].len() {
                heap.push(Reverse((0, links.len())));
                links.push(Link::Core(s, i));
            }
        }
        // Levels are not negative, so their bits are in their order.
        while let Some(Reverse((key, index))) = heap.pop() {
            let (link, level) = (links[index], f32::from_bits(key));
            let room = match link {
                Link::Port(..) => port_room,
                Link::Core(..) => core_room,
            };
            let (used, rising) = self.used(component, link, level);
            if used >= room * (1.0 - FULL) {
                self.settle(component, link, level);
            } else if rising > 0 {
                let next = (f64::from(level) + (room - used) / f64::from(rising)) as f32;
                if next > level {
                    heap.push(Reverse((next.to_bits(), index)));
                } else {
                    self.settle(component, link, level);
                }
            }
        }
    }

    fn settle(&mut self, component: &Component, link: Link, level: f32) {
        match link {
            Link::Port(s, i) => {
                self.port[s][i] = level;
                self.through[s][i] = self.through[s][i].min(level);
            }
            Link::Core(s, i) => {
                self.core[s][i] = level;
                if component.core == Core::Pooled {
                    for &row in &component.sides[s].by_leaf[i] {
                        self.through[s][row] = self.through[s][row].min(level);
                    }
                }
            }
        }
    }

    /// Bytes over a link if its level were `level`, and how many of its flows that would stop.
    fn used(&mut self, component: &Component, link: Link, level: f32) -> (f64, u32) {
        let mut limits = std::mem::take(&mut self.scratch);
        let mut total = (0.0, 0);
        match link {
            Link::Port(s, i) => {
                let left = component.sides[s].row(i);
                total = if component.core == Core::Free {
                    used(left, &self.port[1 - s], level)
                } else {
                    self.limits_beyond_port(component, s, i, &mut limits);
                    used(left, &limits, level)
                };
            }
            Link::Core(s, link) => {
                let side = &component.sides[s];
                for &i in &side.by_leaf[link / component.planes] {
                    if side.live[i] > 0 {
                        self.limits_beyond_core(component, s, link, i, &mut limits);
                        let (bytes, rising) = used(side.row(i), &limits, level);
                        total = (total.0 + bytes, total.1 + rising);
                    }
                }
            }
        }
        self.scratch = limits;
        total
    }

    /// The limit of each flow of row `i` by all links but the port of the row.
    fn limits_beyond_port(&self, component: &Component, s: usize, i: usize, out: &mut Vec<f32>) {
        let (side, other) = (&component.sides[s], &component.sides[1 - s]);
        let ports = &self.port[1 - s];
        out.clear();
        match component.core {
            Core::Free => out.extend_from_slice(ports),
            Core::Pooled => {
                let up = self.core[s][side.leaf[i]];
                out.extend(self.through[1 - s].iter().map(|level| level.min(up)));
                for &j in &other.by_leaf[side.leaf[i]] {
                    out[j] = ports[j];
                }
            }
            Core::Hashed => {
                let here = side.leaf[i];
                out.extend(ports.iter().enumerate().map(|(j, &port)| {
                    let there = other.leaf[j];
                    if here == there {
                        return port;
                    }
                    let plane = self.plane(component, s, i, j);
                    let near = self.core[s][here * component.planes + plane];
                    let far = self.core[1 - s][there * component.planes + plane];
                    port.min(near).min(far)
                }));
            }
        }
    }

    /// The limit of each flow of row `i` by all links but core link `link`; zero for flows that
    /// do not cross it.
    fn limits_beyond_core(
        &self,
        component: &Component,
        s: usize,
        link: usize,
        i: usize,
        out: &mut Vec<f32>,
    ) {
        let (side, other) = (&component.sides[s], &component.sides[1 - s]);
        let (here, own) = (side.leaf[i], self.port[s][i]);
        out.clear();
        match component.core {
            Core::Free => {}
            Core::Pooled => {
                out.extend(self.through[1 - s].iter().map(|level| level.min(own)));
                for &j in &other.by_leaf[here] {
                    out[j] = 0.0;
                }
            }
            Core::Hashed => {
                let wanted = link % component.planes;
                out.extend(self.port[1 - s].iter().enumerate().map(|(j, &port)| {
                    let there = other.leaf[j];
                    if here == there || self.plane(component, s, i, j) != wanted {
                        return 0.0;
                    }
                    let far = self.core[1 - s][there * component.planes + wanted];
                    port.min(own).min(far)
                }));
            }
        }
    }

    /// The plane of the flow between row `i` of side `s` and row `j` of the other.
    fn plane(&self, component: &Component, s: usize, i: usize, j: usize) -> usize {
        let mut pair = [component.sides[s].ranks[i], component.sides[1 - s].ranks[j]];
        if s == 1 {
            pair.reverse();
        }
        self.fabric.plane_of(pair[0], pair[1]) as usize
    }

    /// What the epoch leaves of each row of side `s`.
    fn remaining(&mut self, component: &Component, s: usize) -> Vec<Rest> {
        let mut limits = std::mem::take(&mut self.scratch);
        let side = &component.sides[s];
        let rest = (0..side.ranks.len())
            .map(|i| {
                self.limits_beyond_port(component, s, i, &mut limits);
                let mut flows = 0;
                let mut bytes = 0.0;
                for (left, limits) in side.row(i).chunks(BLOCK).zip(limits.chunks(BLOCK)) {
                    let (mut more, mut sum) = ([0.0f32; LANES], [0.0f32; LANES]);
                    sweep(left, limits, |lane, left, limit| {
                        let rest = left - left.min(limit.min(self.port[s][i]));
                        sum[lane] += rest;
                        more[lane] += if rest > 0.0 { 1.0 } else { 0.0 };
                    });
                    flows += more.iter().sum::<f32>() as u32;
                    bytes += f64::from(sum.iter().sum::<f32>());
                }
                Rest { flows, bytes }
            })
            .collect();
        self.scratch = limits;
        rest
    }

    /// Takes the bytes of the epoch off side `s`.
    fn apply(&mut self, component: &mut Component, s: usize, rest: &[Rest]) {
        let mut limits = std::mem::take(&mut self.scratch);
        for (i, rest) in rest.iter().enumerate() {
            self.limits_beyond_port(component, s, i, &mut limits);
            let side = &mut component.sides[s];
            let own = self.port[s][i];
            for (left, limit) in side.row_mut(i).iter_mut().zip(&limits) {
                *left -= left.min(limit.min(own));
            }
            (side.live[i], side.bytes[i]) = (rest.flows, rest.bytes);
        }
        self.scratch = limits;
    }

    /// Seconds from the start of the epoch until row `i`, which it drains, is done: the latest of
    /// - all its bytes through its own port;
    /// - each flow at the mean speed of the link that limits it (too early: links speed up);
    /// - the flow that needs longest at an equal share of its peer's port, through that port
    ///   together with all bytes that go no later.
    fn last_byte(&mut self, component: &Component, s: usize, i: usize) -> f64 {
        let (side, other) = (&component.sides[s], &component.sides[1 - s]);
        let mut limits = std::mem::take(&mut self.scratch);
        self.limits_beyond_port(component, s, i, &mut limits);
        let (mut fraction, mut slowest) = (0.0f32, (0.0f32, 0));
        for (j, (&left, &limit)) in side.row(i).iter().zip(&limits).enumerate() {
            if left > 0.0 {
                fraction = fraction.max(left / limit);
                let share = left * other.live[j] as f32;
                if share > slowest.0 {
                    slowest = (share, j);
                }
            }
        }
        self.scratch = limits;
        let j = slowest.1;
        let (before, _) = self.used(component, Link::Port(1 - s, j), side.row(i)[j]);
        (side.bytes[i].max(before) / component.port)
            .max(f64::from(fraction) * self.seconds)
            .min(self.seconds)
    }
}

const LANES: usize = 8;
/// `f32` sums and counts stay exact enough for this many entries.
const BLOCK: usize = 512;

/// Calls `f(lane, left, limit)` for all pairs, in a shape that compilers turn into vector code.
#[inline(always)]
fn sweep(left: &[f32], limits: &[f32], mut f: impl FnMut(usize, f32, f32)) {
    let (lefts, limit_rows) = (left.chunks_exact(LANES), limits.chunks_exact(LANES));
    let tail = lefts.remainder().iter().zip(limit_rows.remainder());
    for (lefts, limits) in lefts.zip(limit_rows) {
        for lane in 0..LANES {
            f(lane, lefts[lane], limits[lane]);
        }
    }
    for (lane, (&left, &limit)) in tail.enumerate() {
        f(lane, left, limit);
    }
}

/// `sum min(left, limit, level)`, and how many terms `level` would stop.
fn used(left: &[f32], limits: &[f32], level: f32) -> (f64, u32) {
    let (mut bytes, mut rising) = (0.0, 0);
    for (left, limits) in left.chunks(BLOCK).zip(limits.chunks(BLOCK)) {
        let (mut sum, mut above) = ([0.0f32; LANES], [0.0f32; LANES]);
        sweep(left, limits, |lane, left, limit| {
            let most = if left < limit { left } else { limit };
            sum[lane] += if most < level { most } else { level };
            above[lane] += if most > level { 1.0 } else { 0.0 };
        });
        bytes += f64::from(sum.iter().sum::<f32>());
        rising += above.iter().sum::<f32>() as u32;
    }
    (bytes, rising)
}
