//! One node: which protocol runs, and how long it takes.

use super::{CollectiveKind, Nccl, Protocol, Segment};

impl super::Tuner {
    /// The largest sizes (bytes, nccl-tests convention) that run in LL and in LL128 on one node; 0
    /// where a protocol never runs. NCCL takes the protocol with the least
    /// `base + step * steps + bytes * steps / n / bandwidth`; for point-to-point it compares the
    /// message with a limit and has no LL128.
    pub fn limits(&self, kind: CollectiveKind, gpus: usize) -> [f64; 2] {
        let n = gpus as f64;
        if kind == CollectiveKind::AllToAll {
            return [self.p2p_ll_limit_bytes * n, 0.0];
        }
        let steps = kind.steps(gpus) as f64;
        let line = |p: &super::TunerProtocol| {
            (
                p.base_us + p.step_us * steps,
                steps / n / (p.gb_per_s * 1e3),
            )
        };
        // Where the flatter line `b` meets the steeper line `a`.
        let crossing = |a: (f64, f64), b: (f64, f64)| {
            if b.1 < a.1 {
                ((b.0 - a.0) / (a.1 - b.1)).max(0.0)
            } else if b.0 < a.0 {
                0.0
            } else {
                f64::INFINITY
            }
        };
        let (ll, ll128, simple) = (line(&self.ll), line(&self.ll128), line(&self.simple));
        let ll_until = crossing(ll, ll128).min(crossing(ll, simple));
        let ll128_until = crossing(ll128, simple);
        [
            ll_until,
            if ll128_until > ll_until {
                ll128_until
            } else {
                0.0
            },
        ]
    }

    /// The protocol that a collective of `bytes` runs in on one node.
    pub fn protocol(&self, kind: CollectiveKind, bytes: f64, gpus: usize) -> Protocol {
        let [ll, ll128] = self.limits(kind, gpus);
        if bytes <= ll {
            Protocol::Ll
        } else if bytes <= ll128 {
            Protocol::Ll128
        } else {
            Protocol::Simple
        }
    }
}

impl super::IntraParams {
    /// The fitted terms of one collective in one protocol.
    pub const fn segment(&self, kind: CollectiveKind, protocol: Protocol) -> &Segment {
        match protocol {
            Protocol::Ll => self.ll.get(kind),
            Protocol::Ll128 => &self.ll128,
            Protocol::Simple => self.simple.get(kind),
        }
    }
}

impl Nccl {
    /// Time of one protocol, microseconds, with the library's factors.
    fn protocol_us(
        &self,
        kind: CollectiveKind,
        protocol: Protocol,
        bytes: f64,
        gpus: usize,
    ) -> f64 {
        let (latency, byte_time) = self.params.intra.segment(kind, protocol).parts_us(
            bytes,
            gpus as f64,
            kind.steps(gpus) as f64,
        );
        latency * self.library.latency.get(kind) + byte_time * self.library.byte_time.get(kind)
    }

    /// Time of a collective on one node, microseconds. Never falls as `bytes` grows: a protocol
    /// starts no lower than the one before it ended, which the fits alone do not promise.
    pub(super) fn intra_us(&self, kind: CollectiveKind, bytes: f64, gpus: usize) -> f64 {
        let [ll_until, ll128_until] = self.params.tuner.limits(kind, gpus);
        let protocol = self.params.tuner.protocol(kind, bytes, gpus);
        let mut us = self.protocol_us(kind, protocol, bytes, gpus);
        if protocol > Protocol::Ll && ll_until > 0.0 {
            us = us.max(self.protocol_us(kind, Protocol::Ll, ll_until, gpus));
        }
        if protocol > Protocol::Ll128 && ll128_until > 0.0 {
            us = us.max(self.protocol_us(kind, Protocol::Ll128, ll128_until, gpus));
        }
        let carried = bytes * kind.steps(gpus) as f64 / gpus as f64;
        us.max(carried / (self.params.intra.port_gb_per_s * 1e3))
    }

    /// [`Nccl::intra_us`] on a node that may be wider than any that was measured. There the fit is a guess;
    /// the same GPUs on nodes as measured bound it from above, as a wider NVLink domain can do all that
    /// those can.
    pub(super) fn wide_intra_us(&self, kind: CollectiveKind, bytes: f64, gpus: usize) -> f64 {
        let us = self.intra_us(kind, bytes, gpus);
        let widest = self.params.intra.fitted_gpus[1];
        if gpus <= widest || kind == CollectiveKind::AllToAll {
            return us;
        }
        let local = (1..=widest).rev().find(|local| gpus.is_multiple_of(*local));
        let local = local.unwrap_or(1);
        us.min(self.inter_ring_us(kind, bytes, gpus / local, local, 1.0))
    }

    /// Latency of an all-to-all, microseconds: see [`Nccl::all_to_all_latency`].
    pub(super) fn all_to_all_latency_us(&self, local_peers: usize, remote_peers: usize) -> f64 {
        let kind = CollectiveKind::AllToAll;
        let ll = self.params.intra.segment(kind, Protocol::Ll);
        let scale = self.library.latency.get(kind);
        let local = ll.step_us * scale * local_peers as f64;
        if remote_peers == 0 {
            ll.base_us * scale + local
        } else {
            let nic = &self.params.nic;
            nic.base_us + local + nic.remote_peer_us * remote_peers as f64
        }
    }

    /// Time beyond the latency in which a GPU sends `message` bytes to each of `peers` GPUs of its
    /// node, microseconds.
    pub(super) fn nvlink_us(&self, message: f64, peers: usize) -> f64 {
        let gpus = peers + 1;
        let total = self.intra_us(CollectiveKind::AllToAll, message * gpus as f64, gpus);
        let port = message * peers as f64 / (self.params.intra.port_gb_per_s * 1e3);
        (total - self.all_to_all_latency_us(peers, 0)).max(port)
    }
}
