//! A program of one All-to-All, to price it without a layer around it.

use super::exchange::{self, Exchange};
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
    let elements = |bytes: u64| bytes.div_ceil(dtype.bytes());
    let mut builder = ProgramBuilder::new(world_size, gpus_per_node, dtype);
    let (exchanges, sent, received) = match payload {
        Payload::Uniform { bytes_per_peer } => {
            let bytes = bytes_per_peer.saturating_mul(world_size as u64);
            let held = PerRank::Same(elements(bytes));
            let exchanges = exchange::uniform_phases(algorithm, *bytes_per_peer, &held, world);
            (exchanges, PerRank::Same(bytes), PerRank::Same(bytes))
        }
        Payload::Matrix { rows, row_bytes } => {
            let phases = exchange::uneven_phases(algorithm, rows, world);
            let exchanges = phases.iter().map(|phase| Exchange {
                traffic: Traffic::Matrix {
                    scope: phase.scope,
                    rows: phase.rows.clone(),
                    row_bytes: *row_bytes,
                    chunk: 0,
                    chunks: 1,
                },
                held: phase
                    .held
                    .map(|rows| elements(rows.saturating_mul(*row_bytes))),
            });
            let bytes = |rows: &u64| rows.saturating_mul(*row_bytes);
            let mut received = vec![0; world_size];
            for row in rows.chunks(world_size) {
                let row = row.iter().map(|&rows| u64::from(rows));
                received
                    .iter_mut()
                    .zip(row)
                    .for_each(|(sum, rows)| *sum += rows);
            }
            let received = PerRank::Each(received.iter().map(bytes).collect());
            (exchanges.collect(), phases[0].held.map(bytes), received)
        }
    };
    let input = builder.buffer("send", sent);
    let output = builder.buffer("receive", received);
    builder.at(Stage::Dispatch, crate::ir::Pass::Forward, 0);
    exchange::emit(&mut builder, algorithm, exchanges, input, output);
    builder.finish()
}
