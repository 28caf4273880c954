//! Other releases of NCCL, and the NIC.

use crate::one_node::per_kind;
use crate::{Data, linear, round};
use moeplan_sim::cost::nccl::{CollectiveKind, LibraryParams, Nccl, NcclParams, NicParams};
use moeplan_sim::cost::nccl_table::NcclMeasurement;
use std::error::Error;

const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

/// The time of a row of the several-nodes table, microseconds.
fn measured(
    data: &Data,
    kind: CollectiveKind,
    (nodes, gpus_per_node): (usize, usize),
    bytes: u64,
) -> Result<f64, Box<dyn Error>> {
    let shape = |row: &&NcclMeasurement| {
        (row.kind, row.gpus, row.gpus_per_node, row.bytes)
            == (kind, nodes * gpus_per_node, gpus_per_node, bytes)
    };
    match data.multi_node.iter().find(shape) {
        Some(row) => Ok(row.time.as_secs_f64() * 1e6),
        None => Err(format!("no row {kind} {nodes}x{gpus_per_node} {bytes}").into()),
    }
}

/// Latency and time of the bytes, microseconds, on eight GPUs of one node.
fn parts(params: &NcclParams, kind: CollectiveKind, bytes: u64) -> (f64, f64) {
    let protocol = params.tuner.protocol(kind, bytes as f64, 8);
    params
        .intra
        .segment(kind, protocol)
        .parts_us(bytes as f64, 8.0, kind.steps(8) as f64)
}

/// Factors that meet the two rows of each collective on 1x8 GPUs; reduce-scatter has none and gets
/// those of all-gather, the same ring the other way round.
pub(crate) fn library_2_17(
    data: &Data,
    params: &NcclParams,
) -> Result<LibraryParams, Box<dyn Error>> {
    let factors = |kind| -> Result<(f64, f64), Box<dyn Error>> {
        let (l1, b1) = parts(params, kind, KIB);
        let (l2, b2) = parts(params, kind, GIB);
        let (t1, t2) = (
            measured(data, kind, (1, 8), KIB)?,
            measured(data, kind, (1, 8), GIB)?,
        );
        let det = l1 * b2 - l2 * b1;
        Ok((
            round((t1 * b2 - t2 * b1) / det),
            round((l1 * t2 - l2 * t1) / det),
        ))
    };
    let (to_all, gather, reduce) = (
        factors(CollectiveKind::AllToAll)?,
        factors(CollectiveKind::AllGather)?,
        factors(CollectiveKind::AllReduce)?,
    );
    let of = |kind| match kind {
        CollectiveKind::AllToAll => to_all,
        CollectiveKind::AllGather | CollectiveKind::ReduceScatter => gather,
        CollectiveKind::AllReduce => reduce,
    };
    Ok(LibraryParams {
        latency: per_kind(|kind| of(kind).0),
        byte_time: per_kind(|kind| of(kind).1),
        measured: vec![
            CollectiveKind::AllToAll,
            CollectiveKind::AllGather,
            CollectiveKind::AllReduce,
        ],
        fitted_bytes: [KIB, GIB],
        fewest_gpus: 8,
    })
}

/// Two factors on the whole all-reduce curve of `SuperBench`. The other collectives were not
/// measured: they get its latency, and the time per byte of 2.17.1, whose all-reduce moves bytes at
/// the same rate to 1%.
pub(crate) fn library_2_10(
    data: &Data,
    params: &NcclParams,
    newer: &LibraryParams,
) -> LibraryParams {
    let kind = CollectiveKind::AllReduce;
    let rows: Vec<([f64; 2], f64)> = data
        .all_reduce
        .iter()
        .map(|&(bytes, us)| (parts(params, kind, bytes).into(), us))
        .collect();
    let (factors, _) = linear::fit(&rows, [true, true]);
    let mut byte_time = newer.byte_time;
    byte_time.all_reduce = round(factors[1]);
    LibraryParams {
        latency: per_kind(|_| round(factors[0])),
        byte_time,
        measured: vec![kind],
        fitted_bytes: [8, 8 * GIB],
        fewest_gpus: 8,
    }
}

/// Error of `max(gap, overhead + bytes / wire)` on the `ib_write` curve: mean of absolute values.
fn ib_write_error(curve: &[(u64, f64)], nic: &NicParams) -> f64 {
    let error = |&(bytes, rate): &(u64, f64)| {
        let us = nic.message_overhead_us + bytes as f64 / (nic.wire_gb_per_s * 1e3);
        let modelled = bytes as f64 / us.max(nic.message_gap_us) / 1e3;
        (modelled / rate - 1.0).abs()
    };
    curve.iter().map(error).sum::<f64>() / curve.len() as f64
}

/// The NIC by message size (wire: the best of the curve; gap and overhead: a grid of nanoseconds),
/// the rest still to be fitted.
pub(crate) fn start(curve: &[(u64, f64)]) -> NicParams {
    let peak = curve.iter().map(|point| point.1).fold(0.0, f64::max);
    let mut nic = NicParams {
        wire_gb_per_s: round(peak),
        message_gap_us: 0.0,
        message_overhead_us: 0.0,
        efficiency: 0.9,
        peer_half: 0.3,
        base_us: 0.0,
        remote_peer_us: 0.0,
        ring_step_us: 0.0,
        // A ring of two GPUs copies its own slice half of the time; with the wire full for the rest
        // that copy runs at the rate that one-node rings show per channel.
        ring_efficiency: 1.0,
        ring_own_ps_per_byte: 0.0,
        // NCCL: 0.92 for trees, 0.85 for their pattern.
        tree_efficiency: 0.782,
        fitted_bytes: [KIB, GIB],
        fitted_nodes: 2,
    };
    let mut best = (f64::INFINITY, nic);
    for gap in 200..500 {
        for overhead in 0..100 {
            nic.message_gap_us = f64::from(gap) / 1e3;
            nic.message_overhead_us = f64::from(overhead) / 1e3;
            let error = ib_write_error(curve, &nic);
            if error < best.0 {
                best = (error, nic);
            }
        }
    }
    best.1
}

/// Meets the rows on 2x1 and 2x8 GPUs, by turns until nothing moves.
pub(crate) fn fit_nic(data: &Data, params: &NcclParams) -> Result<NicParams, Box<dyn Error>> {
    let all_to_all = |shape, bytes| measured(data, CollectiveKind::AllToAll, shape, bytes);
    let gather = |bytes| measured(data, CollectiveKind::AllGather, (2, 1), bytes);
    let mut params = params.clone();
    for _ in 0..20 {
        let model = Nccl::new(params.clone(), Some("nccl-2.17.1"))?;
        let us = |kind, bytes, gpus, per_node| {
            let time = model.estimate(kind, bytes, gpus, per_node).time;
            time.as_secs_f64() * 1e6
        };
        // Large: (peers + half) * message time / efficiency + latency.
        let latency = |local, remote| {
            let time = model.all_to_all_latency(local, remote).time;
            time.as_secs_f64() * 1e6
        };
        let message = |bytes: u64| {
            let nic = &params.nic;
            nic.message_overhead_us + bytes as f64 / (nic.wire_gb_per_s * 1e3)
        };
        let one = (all_to_all((2, 1), GIB)? - latency(0, 1)) / message(GIB / 2);
        let eight = (all_to_all((2, 8), GIB)? - latency(7, 8)) / message(GIB / 16);
        let efficiency = 7.0 / (eight - one);
        let mut nic = params.nic;
        nic.efficiency = efficiency;
        nic.peer_half = one * efficiency - 1.0;
        // Small: what the model says now, corrected by what is missing.
        let short = all_to_all((2, 1), KIB)? - us(CollectiveKind::AllToAll, KIB, 2, 1);
        let long = all_to_all((2, 8), KIB)? - us(CollectiveKind::AllToAll, KIB, 16, 8);
        nic.remote_peer_us = (nic.remote_peer_us + (long - short) / 7.0).max(0.0);
        nic.base_us = (nic.base_us + short - (long - short) / 7.0).max(0.0);
        nic.ring_step_us =
            (nic.ring_step_us + gather(KIB)? - us(CollectiveKind::AllGather, KIB, 2, 1)).max(0.0);
        let short = gather(GIB)? - us(CollectiveKind::AllGather, GIB, 2, 1);
        nic.ring_own_ps_per_byte =
            (nic.ring_own_ps_per_byte + short / (GIB as f64 / 2.0) * 1e6).max(0.0);
        params.nic = nic;
    }
    let nic = &mut params.nic;
    for value in [
        &mut nic.efficiency,
        &mut nic.peer_half,
        &mut nic.base_us,
        &mut nic.remote_peer_us,
        &mut nic.ring_step_us,
        &mut nic.ring_own_ps_per_byte,
    ] {
        *value = round(*value);
    }
    Ok(params.nic)
}

/// Prints how well the rows are met and what follows for shapes without a row.
pub(crate) fn report(data: &Data, params: &NcclParams) -> Result<(), Box<dyn Error>> {
    let error = ib_write_error(&data.ib_write, &params.nic);
    println!(
        "# NIC by message size, mean error on ib_write: {:.1}%",
        error * 100.0
    );
    let model = Nccl::new(params.clone(), Some("nccl-2.17.1"))?;
    let worst = data
        .multi_node
        .iter()
        .map(|row| {
            let us = model.estimate(row.kind, row.bytes, row.gpus, row.gpus_per_node);
            (us.time.as_secs_f64() / row.time.as_secs_f64() - 1.0).abs()
        })
        .fold(0.0, f64::max);
    println!(
        "# nccl-2.17.1 on the 12 rows of ND A100 v4, with 12 parameters: within {:.1}%",
        worst * 100.0
    );
    let older = Nccl::new(params.clone(), Some("nccl-2.10.3"))?;
    let errors: Vec<f64> = data
        .all_reduce
        .iter()
        .map(|&(bytes, us)| {
            let time = older.estimate(CollectiveKind::AllReduce, bytes, 8, 8).time;
            (time.as_secs_f64() * 1e6 / us - 1.0).abs()
        })
        .collect();
    println!(
        "# nccl-2.10.3, two factors on {} all-reduce sizes: mean error {:.1}%, largest {:.1}%",
        errors.len(),
        errors.iter().sum::<f64>() / errors.len() as f64 * 100.0,
        errors.iter().copied().fold(0.0, f64::max) * 100.0
    );
    println!("# What follows for shapes that no row of ours holds, bus bandwidth in GB/s:");
    for (kind, nodes, local) in [
        (CollectiveKind::AllGather, 1, 4),
        (CollectiveKind::AllReduce, 1, 4),
        (CollectiveKind::AllToAll, 1, 4),
        (CollectiveKind::AllGather, 2, 8),
        (CollectiveKind::ReduceScatter, 2, 8),
        (CollectiveKind::AllReduce, 2, 8),
    ] {
        let gpus = nodes * local;
        let at = |bytes| model.estimate(kind, bytes, gpus, local).time;
        println!(
            "#   {kind} {nodes}x{local}: 1 KiB {}, 1 GiB {:.1}",
            at(KIB),
            kind.busbw_gbps(GIB, gpus, at(GIB))
        );
    }
    Ok(())
}
