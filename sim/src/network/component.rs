//! Independent parts of a collective: flows that share no link with those of another part.
//!
//! NVLink flows of different nodes never meet, nor do NIC flows of different rails when nobody
//! crosses rails. A part is a small dense matrix kept both by rows and by columns, so that every
//! port reads its flows in one sweep.

use super::fabric::{Fabric, Routing};
use super::traffic::{Scope, Traffic};
use std::ops::Range;

/// How leaf links take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Core {
    /// Never limiting.
    Free,
    /// One link up and one down for each leaf.
    Pooled,
    /// One link up and one down for each leaf and spine; flows are hashed.
    Hashed,
}

/// The senders or the receivers of a component, with what is left of each flow.
#[derive(Debug, Clone, Default)]
pub(super) struct Side {
    /// The rank of each row.
    pub(super) ranks: Vec<u32>,
    /// The leaf of each row, as an index among the leaves of the component.
    pub(super) leaf: Vec<usize>,
    /// The rows of each leaf.
    pub(super) by_leaf: Vec<Vec<usize>>,
    /// Bytes left, a row for each port of this side, a column for each of the other.
    pub(super) left: Vec<f32>,
    /// Flows left in each row.
    pub(super) live: Vec<u32>,
    /// Bytes left in each row.
    pub(super) bytes: Vec<f64>,
    /// With hashed core links, the columns of each row by plane: all that cross that plane.
    routes: Vec<u32>,
    /// Where the columns of a row and plane start in `routes`, and after the last, where they end.
    starts: Vec<usize>,
}

/// A set of flows that meets no other.
pub(super) struct Component<'a> {
    fabric: &'a Fabric,
    /// Senders, then receivers.
    pub(super) sides: [Side; 2],
    /// Port capacity, bytes/s.
    pub(super) port: f64,
    /// Cap of one flow, bytes/s; may be infinite.
    pub(super) cap: f64,
    /// How leaf links take part.
    pub(super) core: Core,
    /// Capacity of a leaf link, bytes/s.
    pub(super) core_link: f64,
    /// Separately routed links of each leaf.
    pub(super) planes: usize,
}

impl<'a> Component<'a> {
    /// The flows inside one node.
    pub(super) fn local(
        fabric: &'a Fabric,
        traffic: &Traffic,
        node: u32,
        port: f64,
    ) -> Component<'a> {
        let g = fabric.gpus_per_node();
        let ranks: Vec<u32> = (node * g..(node + 1) * g).collect();
        let first = match traffic.scope() {
            Scope::World => node * g,
            Scope::Node | Scope::Rail => 0,
        };
        let own = |_: u32, place: usize| place..place + 1;
        Component::new(fabric, traffic, ranks, first as usize, own, port, true)
    }

    /// The flows between the nodes: all of them, or those of one rail.
    pub(super) fn remote(
        fabric: &'a Fabric,
        traffic: &Traffic,
        rail: Option<u32>,
        port: f64,
    ) -> Component<'a> {
        let g = fabric.gpus_per_node();
        match rail {
            None => {
                let own = move |rank: u32, _: usize| {
                    let node = (rank / g * g) as usize;
                    node..node + g as usize
                };
                let ranks = (0..fabric.world_size()).collect();
                Component::new(fabric, traffic, ranks, 0, own, port, false)
            }
            Some(rail) => {
                let ranks = (0..fabric.nodes()).map(|node| node * g + rail).collect();
                let own = |_: u32, place: usize| place..place + 1;
                Component::new(fabric, traffic, ranks, 0, own, port, false)
            }
        }
    }

    /// `ranks` against each other. The row of a rank in the traffic matrix holds its bytes to
    /// them from entry `first` on; the entries `own` are not part of this component.
    fn new(
        fabric: &'a Fabric,
        traffic: &Traffic,
        ranks: Vec<u32>,
        first: usize,
        own: impl Fn(u32, usize) -> Range<usize>,
        port: f64,
        local: bool,
    ) -> Component<'a> {
        let n = ranks.len();
        let width = traffic.scope().size(fabric) as usize;
        let mut left = vec![0.0; n * n];
        for (place, (&rank, row)) in ranks.iter().zip(left.chunks_exact_mut(n)).enumerate() {
            match traffic {
                Traffic::Uniform { bytes_per_pair, .. } => row.fill(*bytes_per_pair as f32),
                Traffic::Matrix { bytes, .. } => {
                    let start = rank as usize * width + first;
                    for (left, &b) in row.iter_mut().zip(&bytes[start..start + n]) {
                        *left = b as f32;
                    }
                }
            }
            row[own(rank, place)].fill(0.0);
        }
        let core = match (local, fabric.leaves().routing) {
            (true, _) => Core::Free,
            (false, _) if fabric.core_is_non_blocking() => Core::Free,
            (false, Routing::Adaptive) => Core::Pooled,
            (false, Routing::Static) => Core::Hashed,
        };
        // Leaves are numbered in order of appearance; without leaf links there are none.
        let mut leaves: Vec<u32> = Vec::new();
        if core != Core::Free {
            leaves = ranks.iter().map(|&rank| fabric.leaf_of(rank)).collect();
            leaves.sort_unstable();
            leaves.dedup();
        }
        let leaf_of = |&rank: &u32| leaves.binary_search(&fabric.leaf_of(rank)).unwrap_or(0);
        let senders = Side {
            leaf: ranks.iter().map(leaf_of).collect(),
            by_leaf: vec![Vec::new(); leaves.len()],
            ranks,
            left,
            ..Side::default()
        };
        let receivers = Side {
            left: transpose(&senders.left, n, n),
            ..senders.clone()
        };
        let mut component = Component {
            fabric,
            sides: [senders, receivers],
            port,
            cap: fabric.flow_cap(local),
            core,
            core_link: fabric
                .capacity(super::fabric::LinkClass::LeafUp)
                .bytes_per_second(),
            planes: fabric.planes() as usize,
        };
        component.count();
        component
    }

    /// The plane of the flow between row `i` of side `s` and row `j` of the other.
    pub(super) fn plane(&self, s: usize, i: usize, j: usize) -> usize {
        let (rank, peer) = (self.sides[s].ranks[i], self.sides[1 - s].ranks[j]);
        let (src, dst) = if s == 0 { (rank, peer) } else { (peer, rank) };
        self.fabric.plane_of(src, dst) as usize
    }

    /// Drops finished ranks once they are at least half of the matrix.
    pub(super) fn compact(&mut self) {
        let live = self.sides.each_ref().map(Side::live_rows);
        let [senders, receivers] = &self.sides;
        if 2 * live[0].len() * live[1].len() > senders.ranks.len() * receivers.ranks.len() {
            return;
        }
        for (s, keep) in live.iter().enumerate() {
            self.sides[s].keep(keep, &live[1 - s]);
        }
        self.count();
    }

    /// Recounts what follows from `left`.
    fn count(&mut self) {
        let widths = [self.sides[1].ranks.len(), self.sides[0].ranks.len()];
        for (side, width) in self.sides.iter_mut().zip(widths) {
            let rows = || side.left.chunks_exact(width.max(1));
            side.live = rows()
                .map(|row| row.iter().filter(|&&left| left > 0.0).count() as u32)
                .collect();
            side.bytes = rows()
                .map(|row| row.iter().map(|&left| f64::from(left)).sum())
                .collect();
            side.by_leaf.iter_mut().for_each(Vec::clear);
            if !side.by_leaf.is_empty() {
                for (row, &leaf) in side.leaf.iter().enumerate() {
                    side.by_leaf[leaf].push(row);
                }
            }
        }
        if self.core == Core::Hashed {
            self.route();
        }
    }

    /// Sorts the columns of each row by plane. Hashing once is cheaper than in every sweep.
    fn route(&mut self) {
        for s in [0, 1] {
            let (side, other) = (&self.sides[s], &self.sides[1 - s]);
            let (mut routes, mut starts) = (Vec::with_capacity(side.left.len()), vec![0]);
            let mut by_plane = vec![Vec::new(); self.planes];
            for (&rank, &leaf) in side.ranks.iter().zip(&side.leaf) {
                for (column, (&peer, &there)) in (0u32..).zip(other.ranks.iter().zip(&other.leaf)) {
                    if there != leaf {
                        let (src, dst) = if s == 0 { (rank, peer) } else { (peer, rank) };
                        by_plane[self.fabric.plane_of(src, dst) as usize].push(column);
                    }
                }
                for columns in &mut by_plane {
                    routes.append(columns);
                    starts.push(routes.len());
                }
            }
            let side = &mut self.sides[s];
            (side.routes, side.starts) = (routes, starts);
        }
    }
}

impl Side {
    /// The bytes left of row `i`.
    pub(super) fn row(&self, i: usize) -> &[f32] {
        let width = self.left.len() / self.ranks.len();
        &self.left[i * width..(i + 1) * width]
    }

    /// The bytes left of row `i`, to change.
    pub(super) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let width = self.left.len() / self.ranks.len();
        &mut self.left[i * width..(i + 1) * width]
    }

    /// The columns that row `i` reaches over a plane, with hashed core links of `planes` planes.
    pub(super) fn over_plane(&self, i: usize, plane: usize, planes: usize) -> &[u32] {
        let k = i * planes + plane;
        &self.routes[self.starts[k]..self.starts[k + 1]]
    }

    fn live_rows(&self) -> Vec<usize> {
        (0..self.ranks.len())
            .filter(|&row| self.live[row] > 0)
            .collect()
    }

    fn keep(&mut self, rows: &[usize], columns: &[usize]) {
        let mut left = Vec::with_capacity(rows.len() * columns.len());
        for &row in rows {
            let old = self.row(row);
            left.extend(columns.iter().map(|&column| old[column]));
        }
        self.left = left;
        self.ranks = rows.iter().map(|&row| self.ranks[row]).collect();
        self.leaf = rows.iter().map(|&row| self.leaf[row]).collect();
    }
}

/// The `rows x columns` matrix by columns, in tiles that stay in the cache.
fn transpose(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; matrix.len()];
    for top in (0..rows).step_by(TILE) {
        for start in (0..columns).step_by(TILE) {
            for row in top..rows.min(top + TILE) {
                for column in start..columns.min(start + TILE) {
                    out[column * rows + row] = matrix[row * columns + column];
                }
            }
        }
    }
    out
}
