//! A program of one All-to-All, to price it without a layer around it.

use super::exchange;
use crate::ir::{PerRank, Program, ProgramBuilder, Stage, Traffic};
use crate::spec::{AllToAll, DType};
use std::sync::Arc;

/// What a lone All-to-All carries.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Every rank sends every rank, itself included, as much.
    Uniform {
        /// Bytes of one message.
        bytes_per_peer: u64,
    },
    /// Rows by `[source * world_size + destination]`.
    Matrix {
        /// The rows.
        rows: Arc<Vec<u32>>,
        /// Bytes of one.
        row_bytes: u64,
    },
}

/// One All-to-All over `world_size` ranks, `gpus_per_node` to a node, with the copies of
/// hierarchical ones. Matrices have `world_size` squared entries, and nodes divide the world.
pub fn all_to_all(
    algorithm: AllToAll,
    payload: &Payload,
    world_size: usize,
    gpus_per_node: usize,
) -> Program {
    let world = (world_size, gpus_per_node);
    let dtype = DType::Fp32;
    let (phases, bytes) = match payload {
        Payload::Uniform { bytes_per_peer } => (
            exchange::uniform_phases(algorithm, *bytes_per_peer, world),
            PerRank::Same(bytes_per_peer.saturating_mul(world_size as u64)),
        ),
        Payload::Matrix { rows, row_bytes } => {
            let phases = exchange::uneven_phases(algorithm, rows, world);
            let traffic = |(scope, rows)| Traffic::Matrix {
                scope,
                rows,
                row_bytes: *row_bytes,
                chunk: 0,
                chunks: 1,
            };
            let sent = rows.chunks(world_size).map(|row| {
                let rows: u64 = row.iter().map(|&rows| u64::from(rows)).sum();
                rows.saturating_mul(*row_bytes)
            });
            (
                phases.into_iter().map(traffic).collect(),
                PerRank::Each(sent.collect()),
            )
        }
    };
    let mut builder = ProgramBuilder::new(world_size, gpus_per_node, dtype);
    let input = builder.buffer("send", bytes.clone());
    let output = builder.buffer("receive", bytes.clone());
    let elements = bytes.map(|bytes| bytes.div_ceil(dtype.bytes()));
    builder.at(Stage::Dispatch, crate::ir::Pass::Forward, 0);
    exchange::emit(&mut builder, algorithm, phases, &elements, input, output);
    builder.finish()
}
