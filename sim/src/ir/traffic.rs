//! Who sends how much to whom in one exchange.

use super::Scope;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Index of a byte matrix in [`Program::traffic`](super::Program).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrafficId(pub u32);

/// Bytes of one all-to-all exchange. A rank's message to itself is a local copy and not counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Traffic {
    /// Every rank sends `bytes_per_peer` to every other rank of its group.
    Uniform {
        /// Which ranks form a group.
        scope: Scope,
        /// Bytes of one message.
        bytes_per_peer: u64,
    },
    /// Uneven: an All-to-All-v of one chunk of a matrix of rows.
    Matrix {
        /// Which ranks form a group; entries outside it are zero.
        scope: Scope,
        /// Rows by `[source * world_size + destination]`, over all chunks.
        rows: Arc<Vec<u32>>,
        /// Bytes of a row.
        row_bytes: u64,
        /// Which chunk this is.
        chunk: u32,
        /// Of how many.
        chunks: u32,
    },
}

/// How many items part `chunk` has when `total` items are cut into `chunks` nearly equal parts; the parts of all chunks
/// add up to `total`.
pub fn share_of_chunk(total: u64, chunk: u64, chunks: u64) -> u64 {
    total * (chunk + 1) / chunks - total * chunk / chunks
}

/// Turns after which the shifts of [`rows_of_chunk`] repeat.
const TURNS: u32 = 64;

/// The rows of part `chunk` when `rows` rows of a source for an expert are cut into `chunks` nearly equal parts, one after
/// the other. Rows that are left over go to other parts on another `turn`, so that many short lists, each cut for itself,
/// fill all chunks alike and each nearly is the [`share_of_chunk`] of them all.
///
/// A cut is shifted by as much of a row whatever `chunks` is, so a row of the first half of one cut is in the first half of
/// any other.
pub fn rows_of_chunk(rows: u64, chunk: u64, chunks: u64, turn: u64) -> std::ops::Range<u64> {
    let turns = u64::from(TURNS);
    // Bits reversed: any few turns in a row lie far from each other.
    let shift = u64::from((turn as u32 % TURNS).reverse_bits() >> (u32::BITS - TURNS.ilog2()));
    let bound = |chunk: u64| (turns * rows * chunk + shift * chunks) / (turns * chunks);
    bound(chunk)..bound(chunk + 1)
}

impl Traffic {
    /// Which ranks exchange with each other.
    pub fn scope(&self) -> Scope {
        match self {
            Traffic::Uniform { scope, .. } | Traffic::Matrix { scope, .. } => *scope,
        }
    }

    /// Bytes `source` sends to `destination`, another rank of its group.
    pub fn bytes(&self, source: usize, destination: usize, world_size: usize) -> u64 {
        match self {
            Traffic::Uniform {
                scope,
                bytes_per_peer,
            } => {
                let peers =
                    source != destination && scope.group_of(source) == scope.group_of(destination);
                if peers { *bytes_per_peer } else { 0 }
            }
            Traffic::Matrix {
                rows,
                row_bytes,
                chunk,
                chunks,
                ..
            } => {
                let rows = u64::from(rows[source * world_size + destination]);
                match source == destination {
                    true => 0,
                    false => {
                        row_bytes * share_of_chunk(rows, u64::from(*chunk), u64::from(*chunks))
                    }
                }
            }
        }
    }

    /// Bytes `rank` sends to all others.
    pub fn sent_by(&self, rank: usize, world_size: usize) -> u64 {
        match self {
            Traffic::Uniform {
                scope,
                bytes_per_peer,
            } => bytes_per_peer * (scope.group_size(world_size) as u64 - 1),
            Traffic::Matrix { .. } => (0..world_size)
                .map(|peer| self.bytes(rank, peer, world_size))
                .sum(),
        }
    }

    /// Bytes `rank` receives from all others.
    pub fn received_by(&self, rank: usize, world_size: usize) -> u64 {
        match self {
            Traffic::Uniform { .. } => self.sent_by(rank, world_size),
            Traffic::Matrix { .. } => (0..world_size)
                .map(|peer| self.bytes(peer, rank, world_size))
                .sum(),
        }
    }
}
