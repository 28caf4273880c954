//! Rows by (source, destination) of a dropless All-to-All-v, and their hierarchical phases.

use super::exchange::{self, UnevenPhase};
use crate::ir::Homes;
use crate::spec::{AllToAll, ResolvedLayer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The exchanges of one All-to-All.
pub(super) type Phases = Arc<Vec<UnevenPhase>>;

/// An uneven routing step, laid out over ranks for one value of r.
#[derive(Debug)]
pub(super) struct Uneven {
    dispatch: Arc<Vec<u32>>,
    combine: Arc<Vec<u32>>,
    /// Rows by `[rank * experts + local expert]`.
    pub(super) expert_rows: Arc<Vec<u32>>,
    /// Experts a rank computes.
    pub(super) experts: u32,
    /// Phases already worked out, by algorithm and direction: all chunks and degrees share them.
    phases: Mutex<BTreeMap<(AllToAll, bool), Phases>>,
}

impl Uneven {
    /// Lays `counts` (`[source * num_experts + expert]`) out over [`Homes`]: a source's rows go to
    /// one row group, on each of its r hidden slices. r = 0 moves nothing: every GPU runs all
    /// experts on its own rows.
    pub(super) fn new(layer: &ResolvedLayer, adaptive_r: u64, counts: &Arc<Vec<u32>>) -> Uneven {
        let world = layer.world_size as usize;
        let experts = layer.num_experts as usize;
        let local = layer.local_experts as usize;
        if adaptive_r == 0 {
            return Uneven {
                dispatch: Arc::default(),
                combine: Arc::default(),
                expert_rows: counts.clone(),
                experts: experts as u32,
                phases: Mutex::default(),
            };
        }
        let homes = Homes::new(layer, adaptive_r);
        let mut dispatch = vec![0u32; world * world];
        let mut expert_rows = vec![0u32; world * local];
        for source in 0..world {
            let row = &mut dispatch[source * world..(source + 1) * world];
            for (expert, &count) in counts[source * experts..(source + 1) * experts]
                .iter()
                .enumerate()
            {
                for slice in 0..homes.slices {
                    let group = homes.group_of_source(source as u64);
                    let home = homes.rank(expert as u64, slice, group) as usize;
                    row[home] += count;
                    expert_rows[home * local + expert % local] += count;
                }
            }
        }
        let combine = transpose(&dispatch, world);
        Uneven {
            dispatch: Arc::new(dispatch),
            combine: Arc::new(combine),
            expert_rows: Arc::new(expert_rows),
            experts: local as u32,
            phases: Mutex::default(),
        }
    }

    /// The exchanges `algorithm` makes of the dispatch (or, `transposed`, the combine).
    pub(super) fn phases(
        &self,
        algorithm: AllToAll,
        transposed: bool,
        world: (usize, usize),
    ) -> Phases {
        let mut known = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = if transposed {
            &self.combine
        } else {
            &self.dispatch
        };
        known
            .entry((algorithm, transposed))
            .or_insert_with(|| Arc::new(exchange::uneven_phases(algorithm, rows, world)))
            .clone()
    }
}

/// Transposes in tiles, so that neither side of a 2,048 x 2,048 matrix thrashes the cache.
fn transpose(matrix: &[u32], n: usize) -> Vec<u32> {
    const TILE: usize = 32;
    let mut transposed = vec![0u32; matrix.len()];
    for rows in (0..n).step_by(TILE) {
        for columns in (0..n).step_by(TILE) {
            for row in rows..(rows + TILE).min(n) {
                for column in columns..(columns + TILE).min(n) {
                    transposed[column * n + row] = matrix[row * n + column];
                }
            }
        }
    }
    transposed
}
