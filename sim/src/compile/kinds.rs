//! Operations that forward and backward pass both emit.

use super::Source;
use super::tensors::Shapes;
use crate::ir::OpKind;

pub(super) fn gate(source: &Source<'_>) -> OpKind {
    OpKind::Gate {
        encode: source.plan.encode,
        tokens: source.layer.tokens(),
        experts: source.layer.gate_experts,
        model_dim: source.layer.spec.model_dim,
        top_k: source.layer.spec.top_k,
        gate: source.layer.spec.gate,
    }
}

/// Declares the constructors of operations between tokens and the dispatch or combine buffer.
macro_rules! buffer_kinds {
    ($($name:ident => $variant:ident $(, $top_k:ident)?);+) => {$(
        pub(super) fn $name(source: &Source<'_>, shapes: &Shapes) -> OpKind {
            OpKind::$variant {
                encode: source.plan.encode,
                tokens: source.layer.tokens(),
                copies: source.load.kept.clone(),
                slots: shapes.slots.clone(),
                model_dim: shapes.model_dim,
                $($top_k: source.layer.spec.top_k,)?
            }
        }
    )+};
}

buffer_kinds!(encode => Encode; decode => Decode, top_k; score_gradient => ScoreGradient, top_k);
