//! Gradients: gathered in buckets as the backward pass makes them, added up over micro-batches, summed over GPUs, and
//! what the optimizer makes of them.

use super::Writer;
use crate::ir::{BufferId, Kernels, OpKind, Pass, PerRank, Stage, Stream};
use crate::model::{Part, Work};

/// Bytes of gradients that are all-reduced together (the default of PyTorch's DistributedDataParallel).
const BUCKET_BYTES: u64 = 25 << 20;

/// What is kept for the optimizer.
#[derive(Debug, Default)]
pub(super) struct Gradients {
    /// In the order of the backward pass: all of a bucket, or a GPU's share of it.
    kept: Vec<BufferId>,
    /// Micro-batches done.
    done: u64,
    /// How many of `kept` this one has got to.
    reached: usize,
    /// Parameters gathered for the next bucket, and the tensors they are in.
    open: [u64; 2],
}

impl Gradients {
    /// All buffers are there: what follows is added to them.
    pub(super) fn next_micro_batch(&mut self) {
        self.done += 1;
        self.reached = 0;
    }
}

impl Writer<'_> {
    /// The next buffer that is kept over micro-batches.
    fn keep(&mut self, name: &'static str, bytes: u64) -> BufferId {
        let gradients = &mut self.gradients;
        if gradients.reached == gradients.kept.len() {
            gradients.kept.push(self.builder.persistent(name, bytes));
        }
        gradients.reached += 1;
        gradients.kept[gradients.reached - 1]
    }

    /// An empty bucket; sized when it is full.
    pub(super) fn bucket(&mut self) -> BufferId {
        match self.source.shards_gradients() {
            true => {
                let none = PerRank::Same(0);
                self.builder.buffer("gradients to be summed", none)
            }
            false => self.keep("gradients", 0),
        }
    }

    /// Puts the gradients of `part` in the bucket; whether that is full.
    pub(super) fn gather_gradients(&mut self, part: &Part) -> bool {
        let source = &self.source;
        let [parameters, tensors] = &mut self.gradients.open;
        *parameters += part.held_parameters(source.tensor_parallel);
        // Experts are not in buckets, their gate is.
        *tensors += match part.work {
            Work::Moe(_) => 1,
            _ => part.tensors(),
        };
        *parameters * source.model.gradient_bytes >= BUCKET_BYTES
    }

    /// Sums a full bucket over all GPUs while the backward pass goes on: where gradients are not sharded, once that of
    /// the last micro-batch is in it.
    pub(super) fn reduce(&mut self, bucket: BufferId) {
        let source = self.source;
        let [parameters, tensors] = std::mem::take(&mut self.gradients.open);
        let bytes = parameters * source.model.dtype.bytes();
        self.builder.resize(bucket, bytes);
        if !source.shards_gradients() {
            self.accumulate(bucket, bucket, bytes, tensors);
            if self.gradients.done + 1 < source.saving.micro_batches {
                return;
            }
        }
        if source.replicas() == 1 || parameters == 0 {
            return;
        }
        let scope = source.data_parallel();
        let reduced = parameters * source.model.gradient_bytes;
        let kind = if source.shards() > 1 {
            OpKind::ReduceScatter {
                scope,
                bytes: reduced,
            }
        } else {
            OpKind::AllReduce {
                scope,
                bytes: reduced,
            }
        };
        let share_bytes = bytes.div_ceil(source.replicas());
        let share = source
            .shards_gradients()
            .then(|| self.keep("gradients, own share", share_bytes));
        let summed = match share {
            None => bucket,
            Some(share) if self.gradients.done == 0 => share,
            Some(_) => {
                let bytes = PerRank::Same(share_bytes);
                self.builder.buffer("share of a micro-batch", bytes)
            }
        };
        self.builder.at(Stage::AllReduce, Pass::Backward, 0);
        let stream = Stream::Communication;
        self.builder.push(stream, kind, &[bucket], &[summed]);
        if let Some(share) = share {
            self.accumulate(summed, share, share_bytes, 1);
        }
    }

    /// Adds the gradients of a further micro-batch to those of the ones before: two reads and a write, a kernel a tensor
    /// (PyTorch's AccumulateGrad).
    fn accumulate(&mut self, new: BufferId, kept: BufferId, bytes: u64, tensors: u64) {
        if self.gradients.done == 0 || bytes == 0 {
            return;
        }
        let kernels = Kernels::Pass {
            kernels: tensors,
            forward: 3 * bytes,
            backward: 0,
        };
        self.builder.at(Stage::Optimizer, Pass::Forward, 0);
        let kind = self.source.op(kernels);
        self.builder
            .push(Stream::Compute, kind, &[new, kept], &[kept]);
    }

    /// The same of the experts of MoE layer `layer`, which is `part`.
    pub(super) fn accumulate_experts(&mut self, part: &Part, layer: usize) {
        let (run, _, weights) = &self.moe[layer];
        let spec = &run.layer.spec;
        let bytes = run.layer.local_parameters() * spec.dtype.bytes();
        if let Some(gradient) = weights.gradient {
            self.accumulate(gradient, gradient, bytes, part.tensors() - 1);
        }
    }

    /// Sums over a tensor-parallel group the gradients of what each of its GPUs holds whole, from its own tokens.
    pub(super) fn reduce_uncut(&mut self) {
        if self.source.tensor_parallel == 1 {
            return;
        }
        let parts = self.source.model.parts.iter();
        let whole = parts.map(|part| part.shared_parameters() - part.cut_parameters());
        let parameters: u64 = whole.sum();
        let kind = OpKind::AllReduce {
            scope: self.source.sharing(),
            bytes: parameters * self.source.model.gradient_bytes,
        };
        self.builder.at(Stage::AllReduce, Pass::Backward, 0);
        let gradients = self.gradients.kept.clone();
        self.builder
            .push(Stream::Communication, kind, &gradients, &gradients);
    }

    /// The optimizer, and the all-gather of what it updated where states are sharded.
    pub(super) fn update(&mut self) {
        let (source, model) = (self.source, self.source.model);
        let local: u64 = source
            .moe
            .iter()
            .map(|run| run.layer.local_parameters())
            .sum();
        let parameters = source.parameters().div_ceil(source.shards()) + local;
        let tensors: u64 = model.parts.iter().map(Part::tensors).sum();
        let kernels = Kernels::Pass {
            kernels: model.optimizer_kernels * tensors,
            forward: parameters * model.optimizer_bytes,
            backward: 0,
        };
        self.builder.at(Stage::Optimizer, Pass::Forward, 0);
        let (reads, writes) = (self.gradients.kept.clone(), [self.weights]);
        let kind = source.op(kernels);
        self.builder.push(Stream::Compute, kind, &reads, &writes);
        if source.shards() > 1 {
            self.builder.at(Stage::AllReduce, Pass::Forward, 0);
            let kind = OpKind::AllGather {
                scope: source.data_parallel(),
                bytes: source.parameters() * model.dtype.bytes(),
            };
            let stream = Stream::Communication;
            self.builder.push(stream, kind, &writes, &writes);
        }
    }
}
