//! The fast solver for uneven traffic: max-min fairness over epochs instead of instants.
//!
//! Between two instants `t` and `t + d` a flow gets `min(left, level_l * d over its links l, cap * d)`
//! bytes. [`Levels::fill`] finds the levels such that each link is either not full or the fullest
//! one for some of its flows: max-min fairness of *bytes in the epoch*. Because what is `left` is
//! inside the `min`, flows may finish anywhere in an epoch and the bandwidth they free is used: on
//! a link that limits its flows throughout, the epoch is exact whatever its length. What is off are
//! the bytes of flows whose limiting link changes within an epoch, and the place of a finish within
//! its epoch, which is estimated ([`Levels::last_byte`]). An epoch lasts `1 / steps` of the port
//! bound, and beyond it `1 / steps` of the time so far, so there are `O(steps)` of them.
//!
//! Progressive filling by lazy Newton: `used(x) = sum min(left, x, other levels)` is concave in the
//! level `x` of a link, so a Newton step towards `used(x) = room` from any point is a lower bound
//! of the root, and the root only rises while other links are being settled. A heap of lower bounds
//! therefore always settles the lowest level next, at O(flows of the link) a step. A
//! handful of steps a link is usual, also where all ports are nearly equally loaded.

use super::component::{Component, Core};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A link is full when no more than this fraction of its room is left: the rounding of `f32` sums.
const FULL: f64 = 4e-6;

/// Levels this close count as equal: the next step of Newton is then the root for all purposes.
const CLOSE: f32 = 1.0 + 1e-3;

/// How much longer epochs may be while no rank can be done yet: nobody's finish is read off them.
/// Not with leaf links, where a few bytes more can delay a rank by several epochs.
const COARSE: f64 = 2.0;

/// Drains a component and calls `done(rank, seconds)` when a rank has sent, and when it has
/// received, its last byte.
pub(super) fn drain(mut component: Component<'_>, steps: u32, mut done: impl FnMut(u32, f64)) {
    let (quiet, bound) = port_bounds(&component);
    let cut = 1.0 / f64::from(steps);
    let shortest = bound * cut;
    let coarse = match component.core {
        Core::Free => COARSE * shortest,
        Core::Pooled | Core::Hashed => shortest,
    };
    let mut now = 0.0;
    loop {
        component.compact();
        if component.sides[0].ranks.is_empty() {
            return;
        }
        let length = shortest.max(now * cut).max((quiet - now).min(coarse));
        let mut levels = Levels::new(&component, length);
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
        now += length;
    }
}

/// The smallest and the largest `bytes / capacity` of a port in use, seconds.
fn port_bounds(component: &Component<'_>) -> (f64, f64) {
    let ports = || component.sides.iter().flat_map(|side| &side.bytes).copied();
    let most = ports().fold(0.0, f64::max);
    let least = ports().filter(|&bytes| bytes > 0.0).fold(most, f64::min);
    (least / component.port, most / component.port)
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
struct Levels {
    /// Length of the epoch.
    seconds: f64,
    /// By side and row; the flow cap where the port is not full.
    port: [Vec<f32>; 2],
    /// By side (up, down) and core link; the flow cap where it is not full.
    core: [Vec<f32>; 2],
    /// By side and core link: the bytes over it in the epoch, `None` where it is full.
    core_rest: [Vec<Option<f64>>; 2],
    /// `min(port, core)` of each row for pooled core links.
    through: [Vec<f32>; 2],
    scratch: Vec<f32>,
}

impl Levels {
    fn new(component: &Component<'_>, seconds: f64) -> Levels {
        let cap = (component.cap * seconds) as f32;
        let port = component
            .sides
            .each_ref()
            .map(|side| vec![cap; side.ranks.len()]);
        let core = component
            .sides
            .each_ref()
            .map(|side| vec![cap; side.by_leaf.len() * component.planes]);
        Levels {
            seconds,
            through: port.clone(),
            core_rest: core.each_ref().map(|links| vec![None; links.len()]),
            port,
            core,
            scratch: Vec::new(),
        }
    }

    /// Settles the level of every link, the lowest first.
    fn fill(&mut self, component: &Component<'_>) {
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
            let link = links[index];
            let room = match link {
                Link::Port(..) => port_room,
                Link::Core(..) => core_room,
            };
            let Some(level) = self.root(component, link, room, f32::from_bits(key)) else {
                continue;
            };
            match heap.peek() {
                Some(&Reverse((next, _))) if level > f32::from_bits(next) * CLOSE => {
                    heap.push(Reverse((level.to_bits(), index)));
                }
                Some(_) | None => self.settle(component, link, level),
            }
        }
    }

    /// The level from `level` on at which a link is full, or `None` if it never is.
    fn root(
        &mut self,
        component: &Component<'_>,
        link: Link,
        room: f64,
        mut level: f32,
    ) -> Option<f32> {
        loop {
            let (used, rising) = self.used(component, link, level);
            let missing = room - used;
            if missing <= room * FULL {
                return Some(level);
            }
            if rising == 0 {
                if let Link::Core(s, link) = link {
                    self.core_rest[s][link] = Some(used);
                }
                return None;
            }
            let next = (f64::from(level) + missing / f64::from(rising)) as f32;
            if next <= level * CLOSE {
                return Some(next);
            }
            level = next;
        }
    }

    fn settle(&mut self, component: &Component<'_>, link: Link, level: f32) {
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
    fn used(&mut self, component: &Component<'_>, link: Link, level: f32) -> (f64, u32) {
        let mut limits = std::mem::take(&mut self.scratch);
        let mut total = (0.0, 0);
        match link {
            Link::Port(s, i) => {
                let left = component.sides[s].row(i);
                let limits = self.limits_beyond_port(component, s, i, &mut limits);
                total = used(left, limits, level);
            }
            Link::Core(s, link) => {
                let side = &component.sides[s];
                for &i in &side.by_leaf[link / component.planes] {
                    if side.live[i] > 0 {
                        let (bytes, rising) =
                            self.used_by_row(component, (s, link), i, level, &mut limits);
                        total = (total.0 + bytes, total.1 + rising);
                    }
                }
            }
        }
        self.scratch = limits;
        total
    }

    /// The limit of each flow of row `i` by all links but the port of the row.
    fn limits_beyond_port<'s>(
        &'s self,
        component: &Component<'_>,
        s: usize,
        i: usize,
        out: &'s mut Vec<f32>,
    ) -> &'s [f32] {
        let (side, other) = (&component.sides[s], &component.sides[1 - s]);
        let ports = &self.port[1 - s];
        out.clear();
        match component.core {
            Core::Free => return ports,
            Core::Pooled => {
                let up = self.core[s][side.leaf[i]];
                out.extend(self.through[1 - s].iter().map(|level| lesser(*level, up)));
                for &j in &other.by_leaf[side.leaf[i]] {
                    out[j] = ports[j];
                }
            }
            Core::Hashed => {
                out.extend_from_slice(ports);
                for plane in 0..component.planes {
                    let near = self.core[s][side.leaf[i] * component.planes + plane];
                    for &j in side.over_plane(i, plane, component.planes) {
                        let j = j as usize;
                        let far = self.core[1 - s][other.leaf[j] * component.planes + plane];
                        out[j] = out[j].min(near).min(far);
                    }
                }
            }
        }
        out
    }

    /// As [`used`] for the part of core link `link` that comes from row `i`.
    fn used_by_row(
        &self,
        component: &Component<'_>,
        (s, link): (usize, usize),
        i: usize,
        level: f32,
        limits: &mut Vec<f32>,
    ) -> (f64, u32) {
        let (side, other) = (&component.sides[s], &component.sides[1 - s]);
        let (left, own) = (side.row(i), self.port[s][i]);
        match component.core {
            Core::Free => (0.0, 0),
            Core::Pooled => {
                limits.clear();
                limits.extend(self.through[1 - s].iter().map(|level| lesser(*level, own)));
                for &j in &other.by_leaf[side.leaf[i]] {
                    limits[j] = 0.0;
                }
                used(left, limits, level)
            }
            Core::Hashed => {
                let plane = link % component.planes;
                let (mut bytes, mut rising) = (0.0, 0);
                for &j in side.over_plane(i, plane, component.planes) {
                    let j = j as usize;
                    let far = self.core[1 - s][other.leaf[j] * component.planes + plane];
                    let most = left[j].min(self.port[1 - s][j]).min(far).min(own);
                    bytes += f64::from(most.min(level));
                    rising += u32::from(most > level);
                }
                (bytes, rising)
            }
        }
    }

    /// What the epoch leaves of each row of side `s`.
    fn remaining(&mut self, component: &Component<'_>, s: usize) -> Vec<Rest> {
        let mut limits = std::mem::take(&mut self.scratch);
        let side = &component.sides[s];
        let rest = (0..side.ranks.len())
            .map(|i| {
                let limits = self.limits_beyond_port(component, s, i, &mut limits);
                rest(side.row(i), limits, self.port[s][i])
            })
            .collect();
        self.scratch = limits;
        rest
    }

    /// Takes the bytes of the epoch off side `s`.
    fn apply(&mut self, component: &mut Component<'_>, s: usize, rest: &[Rest]) {
        let mut limits = std::mem::take(&mut self.scratch);
        for (i, rest) in rest.iter().enumerate() {
            let limits = self.limits_beyond_port(component, s, i, &mut limits);
            let side = &mut component.sides[s];
            let own = self.port[s][i];
            for (left, &limit) in side.row_mut(i).iter_mut().zip(limits) {
                *left -= lesser(*left, lesser(limit, own));
            }
            (side.live[i], side.bytes[i]) = (rest.flows, rest.bytes);
        }
        self.scratch = limits;
    }

    /// Seconds from the start of the epoch until row `i`, which it drains, is done: the latest of
    /// its bytes through its own port and of its [`CANDIDATES`] slowest flows. Flows are ranked by
    /// the part of their level that they need, which is the time if levels rise steadily; where no
    /// link is full, by the time at an equal share of the peer's port.
    fn last_byte(&mut self, component: &Component<'_>, s: usize, i: usize) -> f64 {
        let (side, other) = (&component.sides[s], &component.sides[1 - s]);
        let mut limits = std::mem::take(&mut self.scratch);
        let beyond = self.limits_beyond_port(component, s, i, &mut limits);
        let share = 1.0 / (component.port * self.seconds) as f32;
        let flows = side.row(i).iter().zip(beyond).enumerate();
        let mut slowest = [(0.0f32, 0); CANDIDATES];
        for (j, (&left, &limit)) in flows {
            let even = (left * other.live[j] as f32 * share).min(1.0);
            let rank = even.max(left / limit);
            // Nearly all flows stop at this comparison.
            if rank > slowest[CANDIDATES - 1].0 {
                slowest[CANDIDATES - 1] = (rank, j);
                slowest.sort_by(|a, b| b.0.total_cmp(&a.0));
            }
        }
        self.scratch = limits;
        let own = side.bytes[i] / component.port;
        slowest
            .iter()
            .filter(|&&(rank, _)| rank > 0.0)
            .map(|&(_, j)| self.flow_end(component, s, i, j))
            .fold(own, f64::max)
            .min(self.seconds)
    }

    /// Seconds from the start of the epoch until the flow from row `i` of side `s` to row `j` is
    /// done: when its fullest link has passed this flow and as much, or less, of each other, and
    /// the core links that do not fill up have passed all they get.
    fn flow_end(&mut self, component: &Component<'_>, s: usize, i: usize, j: usize) -> f64 {
        let (side, other) = (&component.sides[s], &component.sides[1 - s]);
        let left = side.row(i)[j];
        let mut fullest = (self.port[1 - s][j], Link::Port(1 - s, j), component.port);
        let mut end = f64::from(left) / component.cap;
        let (here, there) = (side.leaf[i], other.leaf[j]);
        if component.core != Core::Free && here != there {
            let plane = match component.core {
                Core::Hashed => component.plane(s, i, j),
                Core::Free | Core::Pooled => 0,
            };
            for (s, leaf) in [(s, here), (1 - s, there)] {
                let link = leaf * component.planes + plane;
                if let Some(bytes) = self.core_rest[s][link] {
                    end = end.max(bytes / component.core_link);
                } else if self.core[s][link] < fullest.0 {
                    fullest = (self.core[s][link], Link::Core(s, link), component.core_link);
                }
            }
        }
        let (_, link, capacity) = fullest;
        let (before, _) = self.used(component, link, left);
        end.max(before / capacity)
    }
}

/// How many flows of a drained row are timed.
const CANDIDATES: usize = 4;
const LANES: usize = 8;
/// `f32` sums and counts stay exact enough for this many entries.
const BLOCK: usize = 512;

/// `sum min(left, limit, level)`, and how many terms `level` would stop.
fn used(left: &[f32], limits: &[f32], level: f32) -> (f64, u32) {
    sweep(left, limits, |left, limit| {
        let most = lesser(left, limit);
        (lesser(most, level), exceeds(most, level))
    })
}

/// `sum max(0, left - min(limit, level))`, and how many terms are above zero.
fn rest(left: &[f32], limits: &[f32], level: f32) -> Rest {
    let (bytes, flows) = sweep(left, limits, |left, limit| {
        let most = lesser(limit, level);
        (left - lesser(left, most), exceeds(left, most))
    });
    Rest { flows, bytes }
}

/// The sum of the terms and the number of hits. This is where the time goes: lanes of independent
/// sums are what compilers turn into vector code.
#[inline(always)]
fn sweep(left: &[f32], limits: &[f32], term: impl Fn(f32, f32) -> (f32, u32)) -> (f64, u32) {
    let (mut total, mut hit) = (0.0, [0u32; LANES]);
    for (left, limits) in left.chunks(BLOCK).zip(limits.chunks(BLOCK)) {
        let mut sum = [0.0f32; LANES];
        let mut add = |lane: usize, left, limit| {
            let (bytes, one) = term(left, limit);
            sum[lane] += bytes;
            hit[lane] += one;
        };
        let (lefts, left_tail) = left.as_chunks::<LANES>();
        let (limits, limit_tail) = limits.as_chunks::<LANES>();
        for (left, limit) in lefts.iter().zip(limits) {
            for lane in 0..LANES {
                add(lane, left[lane], limit[lane]);
            }
        }
        for (&left, &limit) in left_tail.iter().zip(limit_tail) {
            add(0, left, limit);
        }
        total += f64::from(sum.iter().sum::<f32>());
    }
    (total, hit.iter().sum())
}

/// 1 if `a > b`, else 0, for `a` and `b` not negative: such floats are ordered as their bits.
fn exceeds(a: f32, b: f32) -> u32 {
    b.to_bits().wrapping_sub(a.to_bits()) >> 31
}

/// As `a.min(b)` for numbers: without the care for NaN it is one instruction.
fn lesser(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}
