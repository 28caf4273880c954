//! Between tokens and the dispatch or combine buffer.

use super::kernel;
use crate::{Geometry, In, Out, Real};

kernel! {
    /// K0: slots[rows[t, i]] = tokens[t] (times scores[t, i]).
    Encode {
        /// (T, D).
        tokens: In<Real>,
        /// (T, k), -1 where dropped.
        rows: In<i32>,
        /// (T, k): given in the backward pass of decode.
        scores: Option<In<f32>>,
        /// (rows, D), zeroed.
        slots: Out<Real>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// D.
        model_dim: i64,
    }
    |args| Geometry::warp_each(args.num_tokens)
}

kernel! {
    /// K1: tokens[t] = sum over i of slots[rows[t, i]] (times scores[t, i]).
    Decode {
        /// (rows, D).
        slots: In<Real>,
        /// (T, k), -1 where dropped.
        rows: In<i32>,
        /// (T, k): absent in the backward pass of encode.
        scores: Option<In<f32>>,
        /// (T, D).
        tokens: Out<Real>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// D.
        model_dim: i64,
        /// Add to what `tokens` holds.
        accumulate: bool,
    }
    |args| Geometry::warp_each(args.num_tokens)
}

kernel! {
    /// K2: gradient[t, i] = output_gradient[t] · slots[rows[t, i]], zero where dropped.
    ScoreGradient {
        /// (T, D).
        output_gradient: In<Real>,
        /// (rows, D).
        slots: In<Real>,
        /// (T, k), -1 where dropped.
        rows: In<i32>,
        /// (T, k).
        gradient: Out<f32>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// D.
        model_dim: i64,
    }
    |args| Geometry::warp_each(args.num_tokens * i64::from(args.top_k))
}

kernel! {
    /// Combine weights (T, slots) of the dense path, or without scores the dispatch mask.
    DenseWeights {
        /// (T, k), -1 where dropped.
        rows: In<i32>,
        /// (T, k).
        scores: Option<In<f32>>,
        /// (T, slots).
        weights: Out<Real>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// E C_g.
        slots: i64,
    }
    |args| Geometry::warp_each(args.num_tokens)
}

kernel! {
    /// Score gradients (T, k) picked from the gradient of the combine weights.
    DenseScoreGradient {
        /// (T, slots).
        weights_gradient: In<Real>,
        /// (T, k), -1 where dropped.
        rows: In<i32>,
        /// (T, k).
        gradient: Out<f32>,
        /// T k.
        copies: i64,
        /// k.
        top_k: i32,
        /// E C_g.
        slots: i64,
    }
    |args| Geometry::thread_each(args.copies)
}
