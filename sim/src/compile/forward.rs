//! Forward pass: gate, encode, dispatch, expert, combine, decode.

use super::tensors::{Shapes, Weights};
use super::{Source, exchange, kinds};
use crate::ir::{
    BufferId, Elementwise, Expert, Gradient, OpKind, Pass, PerRank, ProgramBuilder, Stage, Stream,
};
use crate::spec::{Encode, Phase, ResolvedLayer};

/// What the backward pass needs again.
#[derive(Debug)]
pub(super) struct Saved {
    pub(super) tokens: BufferId,
    pub(super) scores: BufferId,
    /// Cosine gate: normalised vectors of tokens and experts.
    pub(super) directions: Option<BufferId>,
    /// Dense path: combine weights and dispatch mask, both (T, E, C_g).
    pub(super) dense: Option<[BufferId; 3]>,
    /// By chunk.
    pub(super) expert_input: Vec<BufferId>,
    pub(super) activation: Vec<BufferId>,
    pub(super) combined: Vec<BufferId>,
    /// Gathered weights, where a GPU computes with more than its slice.
    pub(super) weights: BufferId,
}

/// Emits the forward pass over `tokens`; also returns the layer's output.
pub(super) fn emit(
    builder: &mut ProgramBuilder,
    source: &Source<'_>,
    shapes: &Shapes,
    weights: &Weights,
    tokens: BufferId,
) -> (Saved, BufferId) {
    let Source {
        layer, plan, phase, ..
    } = *source;
    let (d, h) = (shapes.model_dim, shapes.hidden_dim);
    let degree = if plan.adaptive_r == 0 {
        1
    } else {
        plan.forward_degree
    };
    let own_rows = PerRank::Same(layer.tokens());

    let (scores, directions) = gate(builder, source, tokens, weights);
    if source.load.capacity.agreed {
        builder.push(
            Stream::Communication,
            OpKind::CapacitySync,
            &[scores],
            &[scores],
        );
    }

    builder.at(Stage::Encode, Pass::Forward, 0);
    let dense =
        (plan.encode == Encode::Dense).then(|| dense_tensors(builder, shapes, layer.tokens()));
    let chunk_rows = |chunk: u64| shapes.sent_rows(chunk, degree);
    let inputs: Vec<BufferId> = (0..degree)
        .map(|chunk| {
            builder.buffer(
                of_chunk!("dispatch input", chunk),
                shapes.bytes(&chunk_rows(chunk), d),
            )
        })
        .collect();
    let kind = kinds::encode(source, shapes);
    // The dense path makes its mask here, from one tensor a choice that nothing else reads.
    let mut writes = inputs.clone();
    writes.extend(dense.iter().flatten());
    writes.extend(dense.map(|_| per_choice_tensors(builder, shapes, layer)));
    builder.push(Stream::Compute, kind, &[tokens, scores], &writes);
    if plan.adaptive_r > 1 {
        let what = Elementwise::Repeat {
            copies: plan.adaptive_r as u32,
        };
        let elements = shapes.slots.map(|rows| rows * d);
        builder.push(
            Stream::Compute,
            OpKind::Elementwise { what, elements },
            &inputs,
            &inputs,
        );
    }

    let compute_weights = gather_weights(builder, weights, inputs[0]);
    let mut saved = Saved {
        tokens,
        scores,
        directions,
        dense,
        expert_input: Vec::new(),
        activation: Vec::new(),
        combined: Vec::new(),
        weights: compute_weights,
    };

    // All dispatches are issued before the first combine, as in the paper's pipeline (Figure 9).
    for (chunk, &input) in inputs.iter().enumerate() {
        if plan.adaptive_r == 0 {
            saved.expert_input.push(input);
            continue;
        }
        builder.at(Stage::Dispatch, Pass::Forward, chunk);
        let rows = shapes.received_rows(chunk as u64, degree);
        let output = builder.buffer(of_chunk!("dispatch output", chunk), shapes.bytes(&rows, d));
        let exchanges = shapes.all_to_all(plan.all_to_all, chunk as u64, degree, false);
        exchange::emit(builder, plan.all_to_all, exchanges, input, output);
        saved.expert_input.push(output);
    }
    for chunk in 0..degree {
        let output = expert(builder, shapes, &mut saved, chunk, degree, h, phase);
        if plan.adaptive_r == 0 {
            saved.combined.push(output);
            continue;
        }
        builder.at(Stage::Combine, Pass::Forward, chunk as usize);
        let combined = builder.buffer(
            of_chunk!("combined", chunk),
            shapes.bytes(&chunk_rows(chunk), d),
        );
        let exchanges = shapes.all_to_all(plan.all_to_all, chunk, degree, true);
        exchange::emit(builder, plan.all_to_all, exchanges, output, combined);
        saved.combined.push(combined);
    }

    builder.at(Stage::Decode, Pass::Forward, 0);
    if plan.adaptive_r > 1 {
        let what = Elementwise::LocalSum {
            copies: plan.adaptive_r as u32,
        };
        let elements = shapes.slots.map(|rows| rows * d);
        builder.push(
            Stream::Compute,
            OpKind::Elementwise { what, elements },
            &saved.combined,
            &saved.combined,
        );
    }
    let output = builder.buffer("output", shapes.bytes(&own_rows, d));
    let kind = kinds::decode(source, shapes);
    let mut reads = vec![scores];
    reads.extend(&saved.combined);
    reads.extend(saved.dense.iter().flatten());
    builder.push(Stream::Compute, kind, &reads, &[output]);
    (saved, output)
}

fn gate(
    builder: &mut ProgramBuilder,
    source: &Source<'_>,
    tokens: BufferId,
    weights: &Weights,
) -> (BufferId, Option<BufferId>) {
    let layer = source.layer;
    builder.at(Stage::Gate, Pass::Forward, 0);
    let scores = builder.buffer(
        "gate scores",
        PerRank::Same(layer.tokens() * layer.gate_experts * 4),
    );
    let directions = directions(builder, layer, "gate directions");
    let mut writes = vec![scores];
    writes.extend(directions);
    let kind = kinds::gate(source);
    builder.push(Stream::Compute, kind, &[tokens, weights.gate], &writes);
    (scores, directions)
}

/// What a cosine gate keeps of tokens and experts, or the gradient of that.
pub(super) fn directions(
    builder: &mut ProgramBuilder,
    layer: &ResolvedLayer,
    name: &'static str,
) -> Option<BufferId> {
    let saved = layer.spec.gate.saved(layer.tokens(), layer.gate_experts)?;
    Some(builder.buffer(name, PerRank::Same(saved * 4)))
}

/// Combine weights and dispatch mask of the dense path, (T, E, C_g) each, and the boolean mask.
fn dense_tensors(builder: &mut ProgramBuilder, shapes: &Shapes, tokens: u64) -> [BufferId; 3] {
    let full = dense_bytes(shapes, tokens);
    let element = shapes.bytes(&PerRank::Same(1), 1);
    let boolean = full.map(|bytes| bytes / element.max());
    [
        builder.buffer("combine weights (T,E,C)", full.clone()),
        builder.buffer("dispatch mask (T,E,C)", full),
        builder.buffer("boolean mask (T,E,C)", boolean),
    ]
}

/// One (T, E, C_g) tensor a choice, summed into the combine weights.
fn per_choice_tensors(
    builder: &mut ProgramBuilder,
    shapes: &Shapes,
    layer: &ResolvedLayer,
) -> BufferId {
    let bytes =
        dense_bytes(shapes, layer.tokens()).map(|bytes| bytes * u64::from(layer.spec.top_k));
    builder.buffer("combine weights by choice (T,E,C)", bytes)
}

/// Bytes of one (T, E, C_g) tensor.
pub(super) fn dense_bytes(shapes: &Shapes, tokens: u64) -> PerRank<u64> {
    shapes.bytes(&shapes.slots.map(|slots| slots.saturating_mul(tokens)), 1)
}

/// All-gather of weights, where a GPU computes with more than its slice. It runs after encode, as
/// the authors' code gathers on entry to the expert.
fn gather_weights(builder: &mut ProgramBuilder, weights: &Weights, after: BufferId) -> BufferId {
    let Some((scope, bytes)) = weights.gather else {
        return weights.slice;
    };
    builder.at(Stage::Weights, Pass::Forward, 0);
    let gathered = builder.buffer("gathered weights", PerRank::Same(bytes));
    let kind = OpKind::AllGather { scope, bytes };
    builder.push(
        Stream::Communication,
        kind,
        &[weights.slice, after],
        &[gathered],
    );
    gathered
}

/// The expert FFN on one chunk; returns its output.
fn expert(
    builder: &mut ProgramBuilder,
    shapes: &Shapes,
    saved: &mut Saved,
    chunk: u64,
    degree: u64,
    h: u64,
    phase: Phase,
) -> BufferId {
    builder.at(Stage::Expert, Pass::Forward, chunk as usize);
    let d = shapes.model_dim;
    let rows = shapes.received_rows(chunk, degree);
    let input = saved.expert_input[chunk as usize];
    let hidden = builder.buffer(of_chunk!("hidden", chunk), shapes.bytes(&rows, h));
    let output = builder.buffer(of_chunk!("expert output", chunk), shapes.bytes(&rows, d));
    let gemm = |matrix| OpKind::ExpertGemm {
        matrix,
        gradient: Gradient::Output,
        rows: shapes.expert_rows(chunk, degree),
        model_dim: d,
        hidden_dim: h,
    };
    let pass = |what, channels: u64| OpKind::Elementwise {
        what,
        elements: rows.map(|rows| rows * channels),
    };
    let weights = saved.weights;
    builder.push(
        Stream::Compute,
        gemm(Expert::Up),
        &[input, weights],
        &[hidden],
    );
    builder.push(
        Stream::Compute,
        pass(Elementwise::Bias(Expert::Up), h),
        &[hidden, weights],
        &[hidden],
    );
    // A training step keeps the activation for the backward pass; ReLU needs nothing else, so the
    // pre-activation is overwritten.
    builder.push(
        Stream::Compute,
        pass(Elementwise::Activation, h),
        &[hidden],
        &[hidden],
    );
    builder.push(
        Stream::Compute,
        gemm(Expert::Down),
        &[hidden, weights],
        &[output],
    );
    builder.push(
        Stream::Compute,
        pass(Elementwise::Bias(Expert::Down), d),
        &[output, weights],
        &[output],
    );
    if phase == Phase::Training {
        saved.activation.push(hidden);
    }
    output
}
