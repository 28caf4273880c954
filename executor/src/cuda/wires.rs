//! What ranks on different GPUs send each other for one operation.
//!
//! Rows that lie together travel from where they are, others are packed in the sender's outbox first. Rows that belong
//! together at the receiver go where they belong, others into its inbox, from where the task takes them as it takes those of
//! ranks on its own GPU: so copies, and sums in their order, are the same for any number of GPUs.
//! Collectives are on the communication stream, so a rank needs one inbox and one outbox.

use super::plan::{Planner, Steps};
use crate::task::RowCopy;
use moeplan_kernels::CopyRun;

/// Where messages start, as allocations do.
const ALIGNMENT: usize = 256;

/// Bytes that one rank sends to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parcel {
    pub(super) sender: usize,
    pub(super) receiver: usize,
    /// Address at the sender.
    pub(super) from: u64,
    /// Address at the receiver.
    pub(super) to: u64,
    pub(super) bytes: usize,
}

/// Packing and messages of one operation.
#[derive(Debug, Default)]
pub(super) struct Wires {
    /// What every rank does before messages leave, if any do.
    pub(super) packing: Vec<Steps>,
    pub(super) parcels: Vec<Parcel>,
    /// Bytes of every rank's inbox and outbox that are taken.
    inbox: Vec<usize>,
    outbox: Vec<usize>,
}

impl Wires {
    pub(super) fn new(world: usize) -> Wires {
        Wires {
            packing: vec![Vec::new(); world],
            parcels: Vec::new(),
            inbox: vec![0; world],
            outbox: vec![0; world],
        }
    }

    /// Whether anything is sent.
    pub(super) fn is_used(&self) -> bool {
        !self.parcels.is_empty()
    }

    /// Bytes of the inbox and the outbox of a rank.
    pub(super) fn boxes(&self, rank: usize) -> [usize; 2] {
        [self.inbox[rank], self.outbox[rank]]
    }
}

/// Takes the next `bytes` of a box; where they start.
fn take(taken: &mut usize, bytes: usize) -> u64 {
    let at = taken.next_multiple_of(ALIGNMENT);
    *taken = at + bytes;
    at as u64
}

impl Planner<'_> {
    fn is_here(&self, rank: usize, copy: &RowCopy) -> bool {
        self.dealt.device_of(copy.rank) == self.dealt.device_of(rank)
    }

    /// Copies into `target`; only those that are still to be made once messages have arrived.
    pub(super) fn pulled(
        &mut self,
        rank: usize,
        target: u64,
        width: usize,
        copies: &[RowCopy],
    ) -> Vec<CopyRun> {
        let mut runs = Vec::new();
        for of_sender in copies.chunk_by(|one, next| one.rank == next.rank) {
            let own = of_sender.iter().map(|copy| self.copy_run(copy, width));
            let mut own: Vec<CopyRun> = own.collect();
            if !self.is_here(rank, &of_sender[0]) {
                let together = own
                    .windows(2)
                    .all(|pair| pair[0].at + pair[0].bytes == pair[1].at);
                let to = together.then(|| target + own[0].at as u64);
                let arrived = self.send(rank, of_sender[0].rank, &own, to);
                if together {
                    continue;
                }
                own.iter_mut()
                    .zip(arrived)
                    .for_each(|(run, at)| run.source = at);
            }
            runs.append(&mut own);
        }
        runs
    }

    /// Addresses of elements of one sender, on the receiver's GPU.
    pub(super) fn gathered(&mut self, rank: usize, copies: &[RowCopy]) -> Vec<i64> {
        let runs: Vec<CopyRun> = copies.iter().map(|copy| self.copy_run(copy, 1)).collect();
        match copies.first() {
            Some(first) if !self.is_here(rank, first) => self.send(rank, first.rank, &runs, None),
            _ => runs.iter().map(|run| run.source).collect(),
        }
    }

    /// Sends `runs` to `to`, one after the other, or into the inbox; where each of them arrives.
    fn send(
        &mut self,
        receiver: usize,
        sender: usize,
        runs: &[CopyRun],
        to: Option<u64>,
    ) -> Vec<i64> {
        let ends: Vec<i64> = runs
            .iter()
            .scan(0, |end, run| {
                *end += run.bytes;
                Some(*end)
            })
            .collect();
        let bytes = ends.last().copied().unwrap_or(0) as usize;
        let inbox = self.blocks.boxes[receiver][0];
        let to = to.unwrap_or_else(|| inbox + take(&mut self.wires.inbox[receiver], bytes));
        let starts = ends.iter().zip(runs).map(|(end, run)| end - run.bytes);
        let starts: Vec<i64> = starts.collect();
        let arrived = starts.iter().map(|start| to as i64 + start).collect();
        if bytes == 0 {
            return arrived;
        }
        let together = runs
            .windows(2)
            .all(|pair| pair[0].source + pair[0].bytes == pair[1].source);
        let from = match together {
            true => runs[0].source as u64,
            false => {
                let from =
                    self.blocks.boxes[sender][1] + take(&mut self.wires.outbox[sender], bytes);
                let packed = runs.iter().zip(&starts).filter(|(run, _)| run.bytes > 0);
                let packed = packed.map(|(run, &at)| CopyRun { at, ..*run }).collect();
                let mut packing = std::mem::take(&mut self.wires.packing[sender]);
                let here = std::mem::replace(&mut self.device, self.dealt.device_of(sender));
                self.copy(from, packed, &mut packing);
                self.device = here;
                self.wires.packing[sender] = packing;
                from
            }
        };
        self.wires.parcels.push(Parcel {
            sender,
            receiver,
            from,
            to,
            bytes,
        });
        arrived
    }
}
