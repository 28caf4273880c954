//! What a collective sends: bytes from every rank to every peer.

use super::fabric::Fabric;

/// Which peers a rank exchanges with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everyone: the linear all-to-all. The k-th peer of a rank is rank k.
    World,
    /// Its own node: the first phase of 2DH. The k-th peer is local rank k.
    Node,
    /// Equal local ranks of all nodes: the second phase of 2DH. The k-th peer is in node k.
    Rail,
}

impl Scope {
    /// Number of peers of a rank, itself included.
    pub const fn size(self, fabric: &Fabric) -> u32 {
        match self {
            Scope::World => fabric.world_size(),
            Scope::Node => fabric.gpus_per_node(),
            Scope::Rail => fabric.nodes(),
        }
    }

    /// The rank of the `k`-th peer of `rank`.
    pub const fn peer(self, fabric: &Fabric, rank: u32, k: u32) -> u32 {
        let g = fabric.gpus_per_node();
        match self {
            Scope::World => k,
            Scope::Node => rank / g * g + k,
            Scope::Rail => k * g + rank % g,
        }
    }

    /// The place of `rank` among its own peers.
    pub const fn own_place(self, fabric: &Fabric, rank: u32) -> u32 {
        match self {
            Scope::World => rank,
            Scope::Node => rank % fabric.gpus_per_node(),
            Scope::Rail => rank / fabric.gpus_per_node(),
        }
    }
}

/// Bytes between ordered pairs of ranks. What a rank sends to itself crosses no link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// The same bytes from every rank to each of its peers.
    Uniform {
        /// Who the peers are.
        scope: Scope,
        /// Bytes of each ordered pair.
        bytes_per_pair: u64,
    },
    /// Row-major `world_size x scope.size()`: entry `(rank, k)` is what `rank` sends to its k-th
    /// peer. For [`Scope::World`] that is the full matrix. Entries to itself are ignored.
    Matrix {
        /// Who the peers are.
        scope: Scope,
        /// The matrix.
        bytes: Vec<u64>,
    },
}

/// The matrix does not fit the fabric.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the traffic matrix has {found} entries, expected {expected} (world size x peers)")]
pub struct TrafficError {
    /// Entries the fabric asks for.
    pub expected: usize,
    /// Entries found.
    pub found: usize,
}

impl Traffic {
    /// The same bytes between all ordered pairs.
    pub const fn uniform(bytes_per_pair: u64) -> Traffic {
        Traffic::Uniform {
            scope: Scope::World,
            bytes_per_pair,
        }
    }

    /// A full matrix, row = sender.
    pub const fn matrix(bytes: Vec<u64>) -> Traffic {
        Traffic::Matrix {
            scope: Scope::World,
            bytes,
        }
    }

    /// Who exchanges with whom.
    pub const fn scope(&self) -> Scope {
        match self {
            Traffic::Uniform { scope, .. } | Traffic::Matrix { scope, .. } => *scope,
        }
    }

    /// Whether the matrix has the size that the fabric asks for.
    pub fn check(&self, fabric: &Fabric) -> Result<(), TrafficError> {
        let expected = fabric.world_size() as usize * self.scope().size(fabric) as usize;
        match self {
            Traffic::Matrix { bytes, .. } if bytes.len() != expected => Err(TrafficError {
                expected,
                found: bytes.len(),
            }),
            Traffic::Matrix { .. } | Traffic::Uniform { .. } => Ok(()),
        }
    }

    /// Bytes `rank` sends to its `k`-th peer; zero to itself.
    pub fn bytes(&self, fabric: &Fabric, rank: u32, k: u32) -> u64 {
        let scope = self.scope();
        if scope.own_place(fabric, rank) == k {
            return 0;
        }
        match self {
            Traffic::Uniform { bytes_per_pair, .. } => *bytes_per_pair,
            Traffic::Matrix { bytes, .. } => {
                bytes[rank as usize * scope.size(fabric) as usize + k as usize]
            }
        }
    }

    /// All non-empty transfers `(src, dst, bytes)`, by sender, then receiver.
    pub fn flows<'a>(
        &'a self,
        fabric: &'a Fabric,
    ) -> impl Iterator<Item = (u32, u32, u64)> + use<'a> {
        let scope = self.scope();
        (0..fabric.world_size()).flat_map(move |src| {
            (0..scope.size(fabric)).filter_map(move |k| {
                let bytes = self.bytes(fabric, src, k);
                (bytes > 0).then(|| (src, scope.peer(fabric, src, k), bytes))
            })
        })
    }

    /// Bytes each rank sends to others.
    pub fn sent(&self, fabric: &Fabric) -> Vec<u64> {
        let mut sent = vec![0u64; fabric.world_size() as usize];
        for (src, _, bytes) in self.flows(fabric) {
            sent[src as usize] = sent[src as usize].saturating_add(bytes);
        }
        sent
    }

    /// Bytes each rank receives from others.
    pub fn received(&self, fabric: &Fabric) -> Vec<u64> {
        let mut received = vec![0u64; fabric.world_size() as usize];
        for (_, dst, bytes) in self.flows(fabric) {
            received[dst as usize] = received[dst as usize].saturating_add(bytes);
        }
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bandwidth;

    #[test]
    fn scopes_name_the_same_flows_as_a_full_matrix() {
        let gb = Bandwidth::from_bytes_per_second(1e9).unwrap();
        let fabric = Fabric::new(6, 2, gb, gb).unwrap();
        let pairs = |scope| {
            let traffic = Traffic::Uniform {
                scope,
                bytes_per_pair: 7,
            };
            traffic
                .flows(&fabric)
                .map(|(src, dst, _)| (src, dst))
                .collect::<Vec<_>>()
        };
        assert_eq!(pairs(Scope::World).len(), 30);
        assert_eq!(
            pairs(Scope::Node),
            [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)]
        );
        assert_eq!(pairs(Scope::Rail)[..3], [(0, 2), (0, 4), (1, 3)]);
    }

    #[test]
    fn the_diagonal_is_never_sent() {
        let gb = Bandwidth::from_bytes_per_second(1e9).unwrap();
        let fabric = Fabric::new(2, 2, gb, gb).unwrap();
        let traffic = Traffic::matrix(vec![9, 1, 2, 9]);
        assert_eq!(traffic.sent(&fabric), [1, 2]);
        assert_eq!(traffic.received(&fabric), [2, 1]);
        assert!(Traffic::matrix(vec![1]).check(&fabric).is_err());
    }
}
