//! Which buffers may share memory, and where each lies.
//!
//! Addresses are in the tables that kernels read, so they are fixed before the step. Two buffers share memory where the
//! program's own order has all uses of one end before any of the other starts: sharing then needs no further wait, and adds
//! no order that the program does not have.

use crate::backend::Job;
use crate::memory::{Allocation, modelled_bytes};
use moeplan_sim::ir::{BufferId, Lifetime, Program, Stream};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Range;

/// Every buffer starts at a multiple of this, as allocations do.
const ALIGNMENT: usize = 256;

/// Operations that have ended when another one starts: one row of bits an operation.
pub(super) struct Order {
    words: usize,
    bits: Vec<u64>,
}

impl Order {
    /// The order that dependencies and streams give.
    pub(super) fn new(program: &Program) -> Order {
        let words = program.ops.len().div_ceil(64);
        let mut bits = vec![0; words * program.ops.len()];
        let mut last: [Option<usize>; 2] = [None; 2];
        for (id, op) in program.iter() {
            let stream = &mut last[usize::from(op.stream == Stream::Communication)];
            let before = op.after.iter().map(|before| before.index());
            let (earlier, own) = bits.split_at_mut(id.index() * words);
            for before in before.chain(*stream) {
                let theirs = &earlier[before * words..(before + 1) * words];
                own.iter_mut()
                    .zip(theirs)
                    .for_each(|(own, bit)| *own |= bit);
                own[before / 64] |= 1 << (before % 64);
            }
            *stream = Some(id.index());
        }
        Order { words, bits }
    }

    fn precedes(&self, a: usize, b: usize) -> bool {
        self.bits[b * self.words + a / 64] >> (a % 64) & 1 == 1
    }
}

/// A buffer of one rank: its size, and what keeps its memory.
struct Use {
    buffer: BufferId,
    bytes: usize,
    ops: Vec<usize>,
    /// Filled before the step, or there all along.
    from_start: bool,
    /// Read after the step, or there all along.
    to_end: bool,
}

impl Use {
    /// From its first operation to its last.
    fn life(&self, ops: usize) -> Range<usize> {
        let first = if self.from_start { 0 } else { self.ops[0] };
        let end = match self.ops.last() {
            Some(last) if !self.to_end => last + 1,
            _ => ops,
        };
        first..end
    }

    /// What puts it before others, by order: its size, size times life, life, an early start.
    fn weights(&self, ops: usize) -> [usize; ORDERS] {
        let life = self.life(ops);
        let size_and_life = self.bytes * life.len();
        [self.bytes, size_and_life, life.len(), ops - life.start]
    }

    fn ends_before(&self, other: &Use, order: &Order) -> bool {
        let apart = |a: &usize| other.ops.iter().all(|b| order.precedes(*a, *b));
        !self.to_end && !other.from_start && self.ops.iter().all(apart)
    }
}

/// Where the buffers of one rank lie.
#[derive(Default)]
pub(super) struct Layout {
    /// First byte and bytes of each buffer that the rank uses.
    pub(super) places: BTreeMap<BufferId, (usize, usize)>,
    /// All of them together.
    pub(super) bytes: usize,
    /// Which of the buffers, in the order they were placed in, ends last.
    last: usize,
}

/// Orders to begin with.
const ORDERS: usize = 4;

/// Orders tried from each of them, while what is found takes more than what is alive at once.
const ATTEMPTS: usize = 64;

/// Lays out the buffers of `rank`: the largest first and, while that takes more than what may be alive at once, in other
/// orders too, each again and again with the buffer that ends last put before all others.
pub(super) fn layout(job: &Job<'_>, rank: usize, order: &Order) -> Layout {
    let uses = used(job, rank);
    let least = modelled_bytes(job.program, job.lowered, Allocation::Ahead, rank);
    let ops = job.program.ops.len();
    let mut best = Layout {
        bytes: usize::MAX,
        ..Layout::default()
    };
    for order_of in 0..ORDERS {
        let mut uses: Vec<&Use> = uses.iter().collect();
        uses.sort_by_key(|one| (Reverse(one.weights(ops)[order_of]), one.buffer));
        for _ in 0..ATTEMPTS {
            let found = placed(&uses, order);
            uses[..=found.last].rotate_right(1);
            if found.bytes < best.bytes {
                best = found;
            }
            if best.bytes as u64 <= least {
                return best;
            }
        }
    }
    best
}

/// Puts each buffer, in this order, at the lowest place where no other is in its way.
fn placed(uses: &[&Use], order: &Order) -> Layout {
    let mut layout = Layout::default();
    let mut placed: Vec<(usize, &Use)> = Vec::new();
    for (index, one) in uses.iter().enumerate() {
        let conflicts = placed
            .iter()
            .filter(|(_, other)| !one.ends_before(other, order) && !other.ends_before(one, order));
        let mut taken: Vec<(usize, usize)> = conflicts
            .map(|(at, other)| (*at, at + other.bytes))
            .collect();
        taken.sort_unstable();
        let mut at = 0_usize;
        for (start, end) in taken {
            if start >= at + one.bytes {
                break;
            }
            at = at.max(end.next_multiple_of(ALIGNMENT));
        }
        layout.places.insert(one.buffer, (at, one.bytes));
        if at + one.bytes > layout.bytes {
            (layout.bytes, layout.last) = (at + one.bytes, index);
        }
        placed.push((at, one));
    }
    layout
}

fn used(job: &Job<'_>, rank: usize) -> Vec<Use> {
    let lowered = job.lowered;
    let mut ops: BTreeMap<BufferId, Vec<usize>> = BTreeMap::new();
    for (op, buffers) in lowered.uses(job.program, rank).into_iter().enumerate() {
        for buffer in buffers {
            ops.entry(buffer).or_default().push(op);
        }
    }
    let results = lowered.results();
    let uses = ops.into_iter().map(|(buffer, ops)| {
        let plan = &lowered.buffers[buffer.0 as usize];
        let lasting = plan.lifetime != Lifetime::Transient;
        Use {
            buffer,
            bytes: plan.bytes(rank),
            ops,
            from_start: lasting,
            to_end: lasting || results.contains(&buffer),
        }
    });
    uses.filter(|one| one.bytes > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::{Inputs, Routing as Routed};
    use crate::lower::lower;
    use moeplan_sim::compile::{Load, Plan, Routing, Source, compile};
    use moeplan_sim::ir::OpKind;
    use moeplan_sim::policy::candidates;
    use moeplan_sim::spec::{
        DType, Encode, Experts, LayerSpec, Layout, Padding, Phase, ResolvedLayer, Strategy,
    };
    use moeplan_traces::{RoutingSpec, RoutingStep, Shape, TokenStep};

    const RANKS: usize = 8;

    fn layer(experts: u64) -> ResolvedLayer {
        let layer = LayerSpec {
            tokens_per_step: 256,
            model_dim: 128,
            hidden_dim: 192,
            experts: Experts::Total(experts),
            dtype: DType::Fp16,
            ..LayerSpec::default()
        };
        layer.resolve(RANKS as u64).unwrap()
    }

    fn program(layer: &ResolvedLayer, plan: Plan, counts: &RoutingStep) -> Program {
        let load = Load::new(layer, 1.0, plan.padding, &Routing::Step(counts));
        let source = Source {
            layer,
            gpus_per_node: 4,
            plan,
            load: &load,
            phase: Phase::Training,
        };
        compile(source).unwrap()
    }

    fn tokens(experts: usize, routing: &str) -> TokenStep {
        let shape = Shape {
            ranks: RANKS,
            experts,
            tokens_per_rank: 256,
            top_k: 2,
        };
        let routing: RoutingSpec = routing.parse().unwrap();
        let counts = routing.generate(&shape, 1, 0, 0).unwrap();
        crate::assign::tokens_of(&counts).unwrap()
    }

    /// Bytes that each of `ranks` takes, over those that the memory model says.
    fn of_model(
        layer: &ResolvedLayer,
        plan: Plan,
        tokens: &TokenStep,
        ranks: Range<usize>,
    ) -> Vec<f64> {
        let program = program(layer, plan, &tokens.counts());
        let lowered = lower(&program, &tokens.counts()).unwrap();
        let inputs = Inputs::random(layer, 0, Routed::Forced(tokens.clone()));
        let job = Job {
            program: &program,
            lowered: &lowered,
            inputs: &inputs,
            weights: &[],
            tokens,
        };
        let order = Order::new(&program);
        let ratio = |rank| {
            let model = modelled_bytes(&program, &lowered, Allocation::Ahead, rank);
            layout(&job, rank, &order).bytes as f64 / model as f64
        };
        ranks.map(ratio).collect()
    }

    #[test]
    fn order_is_that_of_dependencies_and_streams() {
        let plan = Plan {
            forward_degree: 2,
            ..Plan::PLAIN
        };
        let program = program(&layer(8), plan, &tokens(8, "uniform").counts());
        let order = Order::new(&program);
        for (id, op) in program.iter() {
            let index = id.index();
            assert!(op.after.iter().all(|a| order.precedes(a.index(), index)));
            assert!((index..program.ops.len()).all(|later| !order.precedes(later, index)));
        }
        // The second dispatch and the first expert run at once.
        let find = |wanted: &dyn Fn(&moeplan_sim::ir::Op) -> bool| {
            program.ops.iter().position(wanted).unwrap()
        };
        let dispatch = find(&|op| op.stream == Stream::Communication && op.chunk == 1);
        let expert = find(&|op| matches!(op.kind, OpKind::ExpertGemm { .. }));
        assert!(!order.precedes(dispatch, expert) && !order.precedes(expert, dispatch));
    }

    /// What is alive at once lies apart, and all of it takes what the memory model says: to the byte, but where no order
    /// of placing finds the best layout.
    #[test]
    fn a_rank_needs_what_the_memory_model_says() {
        for experts in [8, 4] {
            let (layer, tokens) = (layer(experts), tokens(experts as usize, "uniform"));
            let paddings = [Padding::Capacity, Padding::Dropless];
            for plan in paddings
                .into_iter()
                .flat_map(|padding| plans(&layer, padding))
            {
                let ratio = of_model(&layer, plan, &tokens, 0..1)[0];
                assert!(
                    (1.0..1.001).contains(&ratio),
                    "{plan}: {ratio} of the model"
                );
            }
        }
    }

    /// Programs state chunks of dropless plans as equal shares; really each expert's rows are cut for themselves.
    #[test]
    fn skewed_dropless_ranks_need_about_what_the_memory_model_says() {
        for (experts, routing) in [(8, "zipf:1.2"), (16, "hot:0.5"), (64, "zipf:1.2")] {
            let (layer, tokens) = (layer(experts), tokens(experts as usize, routing));
            for plan in plans(&layer, Padding::Dropless) {
                for backward_degree in [plan.forward_degree, 8] {
                    let plan = Plan {
                        backward_degree,
                        ..plan
                    };
                    for (rank, ratio) in of_model(&layer, plan, &tokens, 0..RANKS)
                        .into_iter()
                        .enumerate()
                    {
                        assert!(
                            (0.98..1.08).contains(&ratio),
                            "{experts} experts, {routing}, {plan}, rank {rank}: {ratio} of the model"
                        );
                    }
                }
            }
        }
    }

    /// Sparse plans, and where they pad also dense ones, in both layouts.
    fn plans(layer: &ResolvedLayer, padding: Padding) -> Vec<Plan> {
        let (sparse, flexible) = (Encode::Sparse, Layout::Flexible);
        let kinds: &[(Encode, Layout)] = match padding {
            Padding::Dropless => &[(sparse, flexible)],
            Padding::Capacity => &[
                (sparse, flexible),
                (sparse, Layout::Conventional),
                (Encode::Dense, flexible),
                (Encode::Dense, Layout::Conventional),
            ],
        };
        let of_kind = |&(encode, layout): &(Encode, Layout)| {
            let strategy = Strategy {
                encode,
                layout,
                padding,
                ..Strategy::tutel()
            };
            candidates(&strategy, layer).unwrap()
        };
        kinds.iter().flat_map(of_kind).collect()
    }
}
