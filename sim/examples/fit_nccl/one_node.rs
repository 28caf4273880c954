//! The one-node segments.

use crate::{linear, round};
use moeplan_sim::cost::nccl::{
    CollectiveKind, IntraParams, PerKind, Protocol, Segment, Tuner, TunerProtocol,
};
use moeplan_sim::cost::nccl_table::NcclMeasurement;

/// NCCL's constants for an A100 node whose ring graph has 240 GB/s (24 channels of 10).
pub(crate) fn tuner() -> Tuner {
    let protocol = |base_us, step_us, gb_per_s| TunerProtocol {
        base_us,
        step_us,
        gb_per_s,
    };
    Tuner {
        ll: protocol(6.6, 0.6, 87.7),
        ll128: protocol(14.0, 1.9, 220.8),
        simple: protocol(8.4, 3.4, 240.0),
        p2p_ll_limit_bytes: f64::from(32 * 16_384),
    }
}

type Point = ([f64; 6], f64);

fn points(rows: &[&NcclMeasurement], half: f64, power: u32) -> Vec<Point> {
    rows.iter()
        .map(|row| {
            let (bytes, gpus) = (row.bytes as f64, row.gpus as f64);
            let steps = row.kind.steps(row.gpus) as f64;
            let terms = Segment::terms(bytes, gpus, steps, half, power);
            (terms, row.time.as_secs_f64() * 1e6)
        })
        .collect()
}

fn segment(c: [f64; 6], half: f64, power: u32) -> Segment {
    Segment {
        base_us: round(c[0]),
        step_us: round(c[1]),
        ramp_us: round(c[2]),
        ramp_step_us: round(c[3]),
        ramp_half_bytes: round(half),
        ramp_power: power,
        wire_ps_per_byte: round(c[4]),
        own_ps_per_byte: round(c[5]),
    }
}

/// Sizes from `low` on, `count` of them, a factor of the square root of 2 apart.
fn grid(low: f64, count: i32) -> impl Iterator<Item = f64> {
    (0..count).map(move |i| low * 2.0_f64.powf(f64::from(i) / 2.0))
}

const ALL: [bool; 6] = [true; 6];

/// Fits all segments to `rows`.
pub(crate) fn fit(rows: &[NcclMeasurement], tuner: &Tuner) -> IntraParams {
    let select = |kind: Option<CollectiveKind>, protocol: Protocol| -> Vec<&NcclMeasurement> {
        rows.iter()
            .filter(|row| kind.is_none_or(|kind| kind == row.kind))
            .filter(|row| tuner.protocol(row.kind, row.bytes as f64, row.gpus) == protocol)
            .collect()
    };
    // Small messages: each collective has its own ramp.
    let ll = |kind| {
        let rows = select(Some(kind), Protocol::Ll);
        let mut best = (f64::INFINITY, segment([0.0; 6], 1.0, 1));
        for half in grid(512.0, 14) {
            for power in [1, 2] {
                let (c, error) = linear::fit(&points(&rows, half, power), ALL);
                if error < best.0 {
                    best = (error, segment(c, half, power));
                }
            }
        }
        best.1
    };
    // Large messages: the size at which pipelines are full is shared, or a left-out size moves it.
    let simple = |half: f64| {
        let one = |kind| {
            let rows = select(Some(kind), Protocol::Simple);
            let (c, error) = linear::fit(&points(&rows, half, 1), ALL);
            (error, segment(c, half, 1))
        };
        let all = per_kind(one);
        let error: f64 = CollectiveKind::ALL.map(|kind| all.get(kind).0).iter().sum();
        (error, per_kind(|kind| all.get(kind).1))
    };
    let mut large = simple(1e6);
    for half in grid(1e6, 14).skip(1) {
        let next = simple(half);
        if next.0 < large.0 {
            large = next;
        }
    }
    // Three sizes are too few for a ramp or an own-slice term; and where a fold leaves one size only,
    // bytes and steps cannot be told from a constant, but bytes do cost time.
    let middle = points(&select(None, Protocol::Ll128), 1e6, 1);
    let c = [(true, true), (false, true), (false, false)]
        .into_iter()
        .map(|(base, step)| linear::fit(&middle, [base, step, false, false, true, false]).0)
        .find(|c| c[4] > 0.0)
        .unwrap_or_default();
    IntraParams {
        port_gb_per_s: 300.0,
        fitted_gpus: [2, 8],
        ll: per_kind(ll),
        ll128: segment(c, 1e6, 1),
        simple: large.1,
    }
}

/// `value` for each collective.
pub(crate) fn per_kind<T>(mut value: impl FnMut(CollectiveKind) -> T) -> PerKind<T> {
    PerKind {
        all_to_all: value(CollectiveKind::AllToAll),
        all_gather: value(CollectiveKind::AllGather),
        reduce_scatter: value(CollectiveKind::ReduceScatter),
        all_reduce: value(CollectiveKind::AllReduce),
    }
}
