//! The `[collectives]` section of a hardware preset, and what makes it usable.

use super::CollectiveKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// One value for every collective.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct PerKind<T> {
    /// The value for `all-to-all`.
    pub all_to_all: T,
    /// The value for `all-gather`.
    pub all_gather: T,
    /// The value for `reduce-scatter`.
    pub reduce_scatter: T,
    /// The value for `all-reduce`.
    pub all_reduce: T,
}

impl<T> PerKind<T> {
    /// The value for `kind`.
    pub const fn get(&self, kind: CollectiveKind) -> &T {
        match kind {
            CollectiveKind::AllToAll => &self.all_to_all,
            CollectiveKind::AllGather => &self.all_gather,
            CollectiveKind::ReduceScatter => &self.reduce_scatter,
            CollectiveKind::AllReduce => &self.all_reduce,
        }
    }
}

/// NCCL's wire protocols, in the order in which growing messages pass through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// 8-byte stores, half of them flags: lowest latency, at most half the bandwidth.
    Ll,
    /// 128-byte lines with 8 bytes of flag: 120/128 of the bandwidth.
    Ll128,
    /// Whole chunks behind a fence: highest latency, full bandwidth.
    Simple,
}

impl Protocol {
    /// All protocols, smallest messages first.
    pub const ALL: [Protocol; 3] = [Protocol::Ll, Protocol::Ll128, Protocol::Simple];
}

/// What NCCL's own tuner believes about one ring protocol; it decides which protocol runs, not how
/// long it takes. Source: NCCL 2.27.3 `src/graph/tuning.cc` (`baseLat`, `hwLat`, `llMaxBws`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TunerProtocol {
    /// Fixed latency, microseconds.
    pub base_us: f64,
    /// Latency of one ring step over NVLink, microseconds.
    pub step_us: f64,
    /// Bus bandwidth, GB/s.
    pub gb_per_s: f64,
}

/// NCCL's choice of protocol.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Tuner {
    /// LL on a ring.
    pub ll: TunerProtocol,
    /// LL128 on a ring.
    pub ll128: TunerProtocol,
    /// Simple on a ring.
    pub simple: TunerProtocol,
    /// Largest point-to-point message that travels by LL, bytes: 16 KiB a channel, 32 channels
    /// (`P2P_LL_THRESHOLD` in `src/enqueue.cc`).
    pub p2p_ll_limit_bytes: f64,
}

/// Time of one collective in one protocol on one node, as six terms (see [`Segment::terms`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Segment {
    /// Launch and first step, microseconds.
    pub base_us: f64,
    /// Each step of the ring (or each peer of an all-to-all), microseconds.
    pub step_us: f64,
    /// What filling all channels and threads adds to a large message, microseconds.
    pub ramp_us: f64,
    /// The same for each step, microseconds.
    pub ramp_step_us: f64,
    /// Slice (bytes / GPUs) at which half of the ramp is reached, bytes.
    pub ramp_half_bytes: f64,
    /// Steepness of the ramp: 1 or 2.
    pub ramp_power: u32,
    /// Each byte through the port, picoseconds.
    pub wire_ps_per_byte: f64,
    /// Each byte of a GPU's own slice, copied locally, picoseconds.
    pub own_ps_per_byte: f64,
}

impl Segment {
    /// What multiplies `base_us, step_us, ramp_us, ramp_step_us, wire_ps_per_byte, own_ps_per_byte`
    /// to give microseconds, for `bytes` in nccl-tests size on `gpus` GPUs in `steps` ring steps:
    /// `1, steps, r, r * steps, bytes * steps / gpus, bytes / gpus`, the last two in megabytes, with
    /// `r = x^p / (1 + x^p)`, `x = bytes / gpus / ramp_half_bytes`.
    pub fn terms(bytes: f64, gpus: f64, steps: f64, half_bytes: f64, power: u32) -> [f64; 6] {
        let slice = bytes / gpus;
        let x = (slice / half_bytes).powi(i32::try_from(power).unwrap_or(i32::MAX));
        // Written so that an infinite `x` gives 1.
        let ramp = if x > 0.0 { 1.0 / (1.0 + 1.0 / x) } else { 0.0 };
        [
            1.0,
            steps,
            ramp,
            ramp * steps,
            slice * steps / 1e6,
            slice / 1e6,
        ]
    }

    /// The six coefficients in the order of [`Segment::terms`].
    pub const fn coefficients(&self) -> [f64; 6] {
        [
            self.base_us,
            self.step_us,
            self.ramp_us,
            self.ramp_step_us,
            self.wire_ps_per_byte,
            self.own_ps_per_byte,
        ]
    }

    /// The part of the time that a library profile scales as latency, and the part that it scales as
    /// time per byte, microseconds.
    pub fn parts_us(&self, bytes: f64, gpus: f64, steps: f64) -> (f64, f64) {
        let terms = Segment::terms(bytes, gpus, steps, self.ramp_half_bytes, self.ramp_power);
        let c = self.coefficients();
        (
            c[0] * terms[0] + c[1] * terms[1] + c[2] * terms[2] + c[3] * terms[3],
            c[4] * terms[4] + c[5] * terms[5],
        )
    }
}

/// One node: NVLink and NVSwitch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct IntraParams {
    /// Datasheet bandwidth of a GPU's NVLink port in one direction, GB/s: no estimate goes below it.
    pub port_gb_per_s: f64,
    /// Fewest and most GPUs that the fit has seen.
    pub fitted_gpus: [usize; 2],
    /// Small messages.
    pub ll: PerKind<Segment>,
    /// The middle sizes of rings of more than about four GPUs: one fit for all rings, as only three
    /// sizes of the table run in it. An all-to-all never does.
    pub ll128: Segment,
    /// Large messages.
    pub simple: PerKind<Segment>,
}

/// Between nodes: one NIC a GPU, reached without crossing to another rail.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NicParams {
    /// RDMA-write bandwidth of one NIC at large messages, GB/s.
    pub wire_gb_per_s: f64,
    /// Least time between two RDMA messages, microseconds.
    pub message_gap_us: f64,
    /// Time that a message takes beyond its bytes, microseconds.
    pub message_overhead_us: f64,
    /// Share of the wire that a point-to-point collective reaches with many remote peers.
    pub efficiency: f64,
    /// Number of remote peers at which half of that is reached (below 1: a single peer gets more
    /// than half).
    pub peer_half: f64,
    /// Base latency of an all-to-all that leaves the node, microseconds.
    pub base_us: f64,
    /// Added latency of each remote peer, microseconds.
    pub remote_peer_us: f64,
    /// A ring step from node to node, microseconds.
    pub ring_step_us: f64,
    /// Share of the wire that a ring reaches.
    pub ring_efficiency: f64,
    /// Each byte of a GPU's own slice in the one ring through a NIC, picoseconds.
    pub ring_own_ps_per_byte: f64,
    /// Bandwidth of the tree all-reduce as a share of the ring's (NCCL's own derating).
    pub tree_efficiency: f64,
    /// Fewest and most bytes that the fit has seen.
    pub fitted_bytes: [u64; 2],
    /// Most nodes that the fit has seen.
    pub fitted_nodes: usize,
}

/// How one release of NCCL differs from the one that the segments were fitted to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LibraryParams {
    /// Factor on every latency inside a node.
    pub latency: PerKind<f64>,
    /// Factor on every time per byte inside a node.
    pub byte_time: PerKind<f64>,
    /// Collectives that were measured with this release; others are extrapolated.
    pub measured: Vec<CollectiveKind>,
    /// Fewest and most bytes that were measured.
    pub fitted_bytes: [u64; 2],
    /// Fewest GPUs that were measured on one node.
    pub fewest_gpus: usize,
}

/// The `[collectives]` section of a hardware preset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NcclParams {
    /// The profile taken when a study names none.
    pub default_library: String,
    /// Choice of protocol.
    pub tuner: Tuner,
    /// Inside a node.
    pub intra: IntraParams,
    /// Between nodes.
    pub nic: NicParams,
    /// Profiles by name.
    pub library: BTreeMap<String, LibraryParams>,
}

/// A value of the `[collectives]` section that no model can be built from.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("`collectives.{field}`: expected {expected}, found {found}")]
pub struct ParamProblem {
    /// Path of the field below `[collectives]`.
    pub field: String,
    /// What it should have been.
    pub expected: &'static str,
    /// What it is.
    pub found: String,
}

impl NcclParams {
    /// Every value that no model can be built from; empty when all is well.
    pub fn problems(&self) -> Vec<ParamProblem> {
        let mut problems = Vec::new();
        let mut check = |field: String, value: f64, ok: bool, expected: &'static str| {
            if !ok {
                problems.push(ParamProblem {
                    field,
                    expected,
                    found: value.to_string(),
                });
            }
        };
        let positive = |v: f64| v.is_finite() && v > 0.0;
        let not_negative = |v: f64| v.is_finite() && v >= 0.0;
        let share = |v: f64| v > 0.0 && v <= 1.0;
        const POSITIVE: &str = "a finite number above 0";
        const NOT_NEGATIVE: &str = "a finite number, 0 or more";
        const SHARE: &str = "a share above 0 and at most 1";

        for (name, p) in [
            ("ll", &self.tuner.ll),
            ("ll128", &self.tuner.ll128),
            ("simple", &self.tuner.simple),
        ] {
            for (part, v) in [("base-us", p.base_us), ("step-us", p.step_us)] {
                let field = format!("tuner.{name}.{part}");
                check(field, v, not_negative(v), NOT_NEGATIVE);
            }
            let v = p.gb_per_s;
            check(format!("tuner.{name}.gb-per-s"), v, positive(v), POSITIVE);
        }
        let v = self.tuner.p2p_ll_limit_bytes;
        check(
            "tuner.p2p-ll-limit-bytes".into(),
            v,
            not_negative(v),
            NOT_NEGATIVE,
        );
        let mut segments = vec![("ll128".to_owned(), &self.intra.ll128)];
        for kind in CollectiveKind::ALL {
            segments.push((format!("ll.{kind}"), self.intra.ll.get(kind)));
            segments.push((format!("simple.{kind}"), self.intra.simple.get(kind)));
        }
        for (name, s) in segments {
            let at = |part: &str| format!("intra.{name}.{part}");
            for (part, v) in [
                ("base-us", s.base_us),
                ("step-us", s.step_us),
                ("ramp-us", s.ramp_us),
                ("ramp-step-us", s.ramp_step_us),
                ("own-ps-per-byte", s.own_ps_per_byte),
            ] {
                check(at(part), v, not_negative(v), NOT_NEGATIVE);
            }
            let v = s.ramp_half_bytes;
            check(at("ramp-half-bytes"), v, positive(v), POSITIVE);
            let v = s.wire_ps_per_byte;
            check(at("wire-ps-per-byte"), v, positive(v), POSITIVE);
            let power = s.ramp_power;
            let ok = (1..=2).contains(&power);
            check(at("ramp-power"), f64::from(power), ok, "1 or 2");
        }
        let n = &self.nic;
        for (part, v) in [
            ("intra.port-gb-per-s", self.intra.port_gb_per_s),
            ("nic.wire-gb-per-s", n.wire_gb_per_s),
        ] {
            check(part.into(), v, positive(v), POSITIVE);
        }
        for (part, v) in [
            ("message-gap-us", n.message_gap_us),
            ("message-overhead-us", n.message_overhead_us),
            ("peer-half", n.peer_half),
            ("base-us", n.base_us),
            ("remote-peer-us", n.remote_peer_us),
            ("ring-step-us", n.ring_step_us),
            ("ring-own-ps-per-byte", n.ring_own_ps_per_byte),
        ] {
            check(format!("nic.{part}"), v, not_negative(v), NOT_NEGATIVE);
        }
        for (part, v) in [
            ("efficiency", n.efficiency),
            ("ring-efficiency", n.ring_efficiency),
            ("tree-efficiency", n.tree_efficiency),
        ] {
            check(format!("nic.{part}"), v, share(v), SHARE);
        }
        for (name, library) in &self.library {
            for kind in CollectiveKind::ALL {
                for (part, v) in [
                    ("latency", *library.latency.get(kind)),
                    ("byte-time", *library.byte_time.get(kind)),
                ] {
                    let field = format!("library.\"{name}\".{part}.{kind}");
                    check(field, v, positive(v), POSITIVE);
                }
            }
        }
        problems
    }
}
