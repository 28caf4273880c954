//! Backward pass: decode, combine, expert, dispatch, encode, gate, each mirrored.

use super::forward::{Saved, dense_bytes, directions};
use super::tensors::{Shapes, Weights};
use super::{Source, exchange, kinds};
use crate::ir::{
    BufferId, Elementwise, Expert, ExpertRows, Gradient, OpKind, Pass, PerRank, ProgramBuilder,
    Stage, Stream, share_of_chunk,
};

/// Emits the backward pass of what [`super::forward`] saved.
///
/// Its degree may differ from the forward pass; chunks are then cut anew from the saved tensors,
/// which lie one after the other. Returns the gradient of the tokens.
pub(super) fn emit(
    builder: &mut ProgramBuilder,
    source: &Source<'_>,
    shapes: &Shapes,
    weights: &Weights,
    saved: Saved,
    output_gradient: BufferId,
) -> BufferId {
    let Source { layer, plan, .. } = *source;
    let d = shapes.model_dim;
    let degree = if plan.adaptive_r == 0 {
        1
    } else {
        plan.backward_degree
    };
    let own_rows = PerRank::Same(layer.tokens());
    let repeated = shapes.slots.map(|rows| rows * d);

    builder.at(Stage::Decode, Pass::Backward, 0);
    let score_gradient = builder.buffer(
        "score gradient",
        PerRank::Same(layer.tokens() * layer.gate_experts * 4),
    );
    let combined_gradient: Vec<BufferId> = (0..degree)
        .map(|chunk| {
            let rows = shapes.sent_rows(chunk, degree);
            builder.buffer(
                of_chunk!("combined gradient", chunk),
                shapes.bytes(&rows, d),
            )
        })
        .collect();
    let kind = kinds::score_gradient(source, shapes);
    let mut reads = vec![output_gradient];
    reads.extend(&saved.combined);
    let mut writes = vec![score_gradient];
    if let Some(dense) = saved.dense {
        // The gradient of the combine weights, one more a choice, and the copy einsum makes to
        // bring it into the order of its batched product.
        let full = dense_bytes(shapes, layer.tokens());
        let gradients = full.map(|bytes| bytes * (2 + u64::from(layer.spec.top_k)));
        reads.extend(dense);
        writes.push(builder.buffer("combine weight gradients (T,E,C)", gradients));
    }
    builder.push(Stream::Compute, kind, &reads, &writes);
    let kind = kinds::decode(source, shapes);
    let mut reads = vec![output_gradient, saved.scores];
    reads.extend(saved.dense.iter().flatten());
    builder.push(Stream::Compute, kind, &reads, &combined_gradient);
    if plan.adaptive_r > 1 {
        let what = Elementwise::Repeat {
            copies: plan.adaptive_r as u32,
        };
        let kind = OpKind::Elementwise {
            what,
            elements: repeated.clone(),
        };
        builder.push(
            Stream::Compute,
            kind,
            &combined_gradient,
            &combined_gradient,
        );
    }

    let gradients = Chain {
        shapes,
        weights,
        saved: &saved,
        degree,
    };
    let mut expert_gradient = Vec::new();
    for (chunk, &gradient) in combined_gradient.iter().enumerate() {
        if plan.adaptive_r == 0 {
            expert_gradient.push(gradient);
            continue;
        }
        builder.at(Stage::Combine, Pass::Backward, chunk);
        let rows = shapes.received_rows(chunk as u64, degree);
        let received = builder.buffer(
            of_chunk!("expert output gradient", chunk),
            shapes.bytes(&rows, d),
        );
        let exchanges = shapes.all_to_all(plan.all_to_all, chunk as u64, degree, false);
        exchange::emit(builder, plan.all_to_all, exchanges, gradient, received);
        expert_gradient.push(received);
    }
    let mut input_gradient = Vec::new();
    let mut weight_gradient = None;
    for chunk in 0..degree {
        let gradient = gradients.expert(
            builder,
            chunk,
            expert_gradient[chunk as usize],
            &mut weight_gradient,
        );
        if plan.adaptive_r == 0 {
            input_gradient.push(gradient);
            continue;
        }
        builder.at(Stage::Dispatch, Pass::Backward, chunk as usize);
        let rows = shapes.sent_rows(chunk, degree);
        let returned = builder.buffer(
            of_chunk!("dispatch input gradient", chunk),
            shapes.bytes(&rows, d),
        );
        let exchanges = shapes.all_to_all(plan.all_to_all, chunk, degree, true);
        exchange::emit(builder, plan.all_to_all, exchanges, gradient, returned);
        input_gradient.push(returned);
    }
    if let (Some((scope, bytes)), Some(full), Some(slice)) =
        (weights.gather, weight_gradient, weights.gradient)
    {
        builder.at(Stage::Weights, Pass::Backward, 0);
        builder.push(
            Stream::Communication,
            OpKind::ReduceScatter { scope, bytes },
            &[full],
            &[slice],
        );
    }

    builder.at(Stage::Encode, Pass::Backward, 0);
    if plan.adaptive_r > 1 {
        let what = Elementwise::LocalSum {
            copies: plan.adaptive_r as u32,
        };
        builder.push(
            Stream::Compute,
            OpKind::Elementwise {
                what,
                elements: repeated,
            },
            &input_gradient,
            &input_gradient,
        );
    }
    let token_gradient = builder.buffer("token gradient", shapes.bytes(&own_rows, d));
    let kind = kinds::encode(source, shapes);
    let mut reads = input_gradient;
    reads.extend(saved.dense.iter().flatten());
    builder.push(Stream::Compute, kind, &reads, &[token_gradient]);

    builder.at(Stage::Gate, Pass::Backward, 0);
    let kind = kinds::gate(source);
    let mut reads = vec![score_gradient, saved.scores, saved.tokens, weights.gate];
    reads.extend(saved.directions);
    let mut writes = vec![token_gradient];
    writes.extend(weights.gate_gradient);
    writes.extend(directions(builder, layer, "gate directions gradient"));
    builder.push(Stream::Compute, kind, &reads, &writes);
    token_gradient
}

struct Chain<'a> {
    shapes: &'a Shapes,
    weights: &'a Weights,
    saved: &'a Saved,
    degree: u64,
}

impl Chain<'_> {
    /// Gradients of the expert FFN on one chunk; returns the gradient of its input.
    fn expert(
        &self,
        builder: &mut ProgramBuilder,
        chunk: u64,
        output_gradient: BufferId,
        weight_gradient: &mut Option<BufferId>,
    ) -> BufferId {
        let Chain {
            shapes,
            weights,
            saved,
            degree,
        } = *self;
        builder.at(Stage::Expert, Pass::Backward, chunk as usize);
        let (d, h) = (shapes.model_dim, shapes.hidden_dim);
        let rows = shapes.received_rows(chunk, degree);
        let expert_rows = shapes.expert_rows(chunk, degree);
        let blocks_apart = matches!(
            expert_rows,
            ExpertRows::Padded {
                experts: 2..,
                blocks: 2..,
                ..
            }
        );
        let gemm = |matrix, gradient| OpKind::ExpertGemm {
            matrix,
            gradient,
            rows: expert_rows.clone(),
            model_dim: d,
            hidden_dim: h,
        };
        let pass = |what, channels: u64| OpKind::Elementwise {
            what,
            elements: rows.map(|rows| rows * channels),
        };
        let compute = Stream::Compute;

        let full_gradient =
            *weight_gradient.get_or_insert_with(|| match (weights.gather, weights.gradient) {
                (None, Some(slice)) => slice,
                (gather, _) => {
                    let bytes = gather.map_or(0, |(_, bytes)| bytes);
                    builder.buffer("full weight gradient", PerRank::Same(bytes))
                }
            });
        let activation = self.part(&saved.activation, chunk);
        let input = self.part(&saved.expert_input, chunk);
        let hidden_gradient =
            builder.buffer(of_chunk!("hidden gradient", chunk), shapes.bytes(&rows, h));
        let input_gradient = builder.buffer(
            of_chunk!("expert input gradient", chunk),
            shapes.bytes(&rows, d),
        );

        builder.push(
            compute,
            pass(Elementwise::BiasGradient(Expert::Down), d),
            &[output_gradient],
            &[full_gradient],
        );
        builder.push(
            compute,
            gemm(Expert::Down, Gradient::Input),
            &[output_gradient, saved.weights],
            &[hidden_gradient],
        );
        // Where the blocks of one expert are apart, a product that sums over all of them gathers both factors first.
        let factors = |builder: &mut ProgramBuilder, parts: [(&str, &[BufferId], u64); 2]| {
            if !blocks_apart {
                return parts.map(|(_, reads, _)| reads.to_vec()).concat();
            }
            parts
                .map(|(name, reads, channels)| {
                    let name = format!("gathered {name} {chunk}");
                    let gathered = builder.buffer(name, shapes.bytes(&rows, channels));
                    let kind = pass(Elementwise::Gather, channels);
                    builder.push(compute, kind, reads, &[gathered]);
                    gathered
                })
                .to_vec()
        };
        let reads = factors(
            builder,
            [
                ("expert output gradient", &[output_gradient], d),
                ("hidden", &activation, h),
            ],
        );
        builder.push(
            compute,
            gemm(Expert::Down, Gradient::Weight),
            &reads,
            &[full_gradient],
        );
        let mut reads = vec![hidden_gradient];
        reads.extend(&activation);
        builder.push(
            compute,
            pass(Elementwise::ActivationGradient, h),
            &reads,
            &[hidden_gradient],
        );
        builder.push(
            compute,
            pass(Elementwise::BiasGradient(Expert::Up), h),
            &[hidden_gradient],
            &[full_gradient],
        );
        let reads = factors(
            builder,
            [
                ("hidden gradient", &[hidden_gradient], h),
                ("expert input", &input, d),
            ],
        );
        builder.push(
            compute,
            gemm(Expert::Up, Gradient::Weight),
            &reads,
            &[full_gradient],
        );
        // Last, so that what waits for the input gradient waits for the weight gradient too:
        // autograd computes both in one node, and a collective waits for all kernels before it.
        builder.push(
            compute,
            gemm(Expert::Up, Gradient::Input),
            &[hidden_gradient, saved.weights],
            &[input_gradient],
        );
        input_gradient
    }

    /// The saved forward chunks that backward chunk `chunk` overlaps.
    fn part(&self, saved: &[BufferId], chunk: u64) -> Vec<BufferId> {
        let (forward, degree) = (saved.len() as u64, self.degree);
        let begin = chunk * forward / degree;
        let end = ((chunk + 1) * forward).div_ceil(degree);
        debug_assert!(
            share_of_chunk(forward * degree, chunk, degree) > 0,
            "every chunk holds rows"
        );
        saved[begin as usize..end as usize].to_vec()
    }
}
