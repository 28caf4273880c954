//! Between nodes: one NIC a GPU.
//!
//! Why two GPUs on two nodes gather at 15.8 GB/s over a wire of 23.9: in a ring of two every second
//! chunk is the GPU's own, copied by the same two thread blocks that feed the NIC. `ring-efficiency`
//! 1 with that copy as the rest gives 23 GB/s a thread block, near the 18 GB/s that one-node rings
//! show (`own-ps-per-byte` over 24 channels). On eight rails and more nodes the copy all but vanishes.
//!
//! Dropped: the send/recv table of microsoft/vidur. Its sizes are bytes (229 GB/s inside a node; as
//! halves it would be 457, above the port), and then it says 7.8 GB/s between nodes, on one channel
//! of another cluster's network: half of what two channels reach on ND A100 v4.

use super::{CollectiveKind, Nccl, Protocol};

impl Nccl {
    /// Time of one RDMA message on an idle NIC, microseconds: `max(gap, overhead + bytes / wire)`.
    pub(super) fn message_us(&self, message: f64) -> f64 {
        let nic = &self.params.nic;
        (nic.message_overhead_us + message / (nic.wire_gb_per_s * 1e3)).max(nic.message_gap_us)
    }

    /// Time in which a NIC sends `message` bytes to each of `peers`, microseconds:
    /// `(peers + peer_half) * message time / efficiency`. A single peer leaves gaps that other peers
    /// would fill; the law meets 2x1 and 2x8 GPUs and tends to `efficiency * wire`.
    pub(super) fn nic_us(&self, message: f64, peers: f64, congestion: f64) -> f64 {
        let nic = &self.params.nic;
        (peers + nic.peer_half) * self.message_us(message) / (nic.efficiency * congestion)
    }

    /// Linear all-to-all over several nodes, microseconds.
    pub(super) fn inter_all_to_all_us(
        &self,
        bytes: f64,
        gpus: usize,
        local: usize,
        congestion: f64,
    ) -> f64 {
        let message = bytes / gpus as f64;
        let remote = gpus - local;
        let nvlink = if local > 1 {
            self.nvlink_us(message, local - 1)
        } else {
            0.0
        };
        let nic = self.nic_us(message, remote as f64, congestion);
        self.all_to_all_latency_us(local - 1, remote) + nvlink.max(nic)
    }

    /// All-gather, reduce-scatter and all-reduce over several nodes, microseconds: a ring through
    /// all GPUs for each NIC, every ring carrying an equal share; for all-reduce the tree where it
    /// is faster.
    pub(super) fn inter_ring_us(
        &self,
        kind: CollectiveKind,
        bytes: f64,
        nodes: usize,
        local: usize,
        congestion: f64,
    ) -> f64 {
        let nic = &self.params.nic;
        let ll = self.params.intra.segment(kind, Protocol::Ll);
        let simple = self.params.intra.segment(kind, Protocol::Simple);
        let latency = *self.library.latency.get(kind);
        let byte_time = *self.library.byte_time.get(kind);
        let gpus = (nodes * local) as f64;
        let steps = kind.steps(nodes * local) as f64;
        let remote_steps = kind.steps(nodes) as f64;
        let (base, step) = (ll.base_us * latency, ll.step_us * latency);

        // A ring on every rail: each NIC carries bytes * steps / gpus / rails, in `steps` messages.
        let message = bytes / gpus / local as f64;
        let wire = steps * self.message_us(message) / (nic.ring_efficiency * congestion);
        let own = message * nic.ring_own_ps_per_byte * 1e-6;
        let nvlink = if local > 1 {
            let port = bytes / gpus * 1e-6;
            port * (steps * simple.wire_ps_per_byte + simple.own_ps_per_byte) * byte_time
        } else {
            0.0
        };
        let ring = base
            + step * (steps - remote_steps)
            + nic.ring_step_us * remote_steps
            + nvlink.max(wire + own);
        if kind != CollectiveKind::AllReduce {
            return ring;
        }

        // Double binary tree: up and down, a chain inside each node. A node sends
        // 2 * bytes * (nodes - 1) / nodes over its NICs.
        let depth = f64::from(nodes.next_power_of_two().ilog2());
        let share = 2.0 * (nodes as f64 - 1.0) / nodes as f64;
        let slowdown = nic.ring_efficiency * nic.tree_efficiency * congestion;
        let wire = share * bytes / local as f64 / (nic.wire_gb_per_s * 1e3 * slowdown);
        let nvlink = if local > 1 {
            2.0 * bytes * 1e-6 * simple.wire_ps_per_byte * byte_time / nic.tree_efficiency
        } else {
            0.0
        };
        let tree = base
            + 2.0 * (step * (local as f64 - 1.0) + nic.ring_step_us * depth)
            + nvlink.max(wire);
        ring.min(tree)
    }
}
