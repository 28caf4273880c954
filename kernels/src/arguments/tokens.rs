//! Between tokens and the dispatch or combine buffer.

use super::kernel;
use crate::{Geometry, In, Out, Real};

kernel! {
    /// K0: slots[places[t, i]] = tokens[t] (times scores[t, i]).
    Encode {
        /// (T, D).
        tokens: In<Real>,
        /// (T, k), element offsets from `slots`, -1 where dropped.
        places: In<i64>,
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
    /// K1: tokens[t] = sum over i of slots[places[t, i]] (times scores[t, i]).
    Decode {
        /// (rows, D).
        slots: In<Real>,
        /// (T, k), element offsets from `slots`, -1 where dropped.
        places: In<i64>,
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
    /// K2: gradient[t, i] = output_gradient[t] · slots[places[t, i]], zero where dropped.
    ScoreGradient {
        /// (T, D).
        output_gradient: In<Real>,
        /// (rows, D).
        slots: In<Real>,
        /// (T, k), element offsets from `slots`, -1 where dropped.
        places: In<i64>,
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
    /// One tensor (T, columns) a choice: the score at the copy's column, else zero.
    DenseChoices {
        /// (T, k), -1 where dropped.
        columns_of: In<i64>,
        /// (T, k).
        scores: In<f32>,
        /// (k, T, columns).
        weights: Out<Real>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// E C_g.
        columns: i64,
    }
    |args| Geometry::warp_each(args.num_tokens * i64::from(args.top_k))
}

kernel! {
    /// The boolean of the combine weights, a byte an element.
    DenseBoolean {
        /// (count).
        weights: In<Real>,
        /// (count).
        boolean: Out<u8>,
        /// Elements.
        count: i64,
    }
    |args| Geometry::thread_each(args.count)
}

kernel! {
    /// Zeros and ones of the boolean.
    DenseMask {
        /// (count).
        boolean: In<u8>,
        /// (count).
        mask: Out<Real>,
        /// Elements.
        count: i64,
    }
    |args| Geometry::thread_each(args.count)
}

kernel! {
    /// Score gradients (T, k) picked from the gradient of the combine weights.
    DenseScores {
        /// (k, T, columns).
        weights_gradient: In<Real>,
        /// (T, k), -1 where dropped.
        columns_of: In<i64>,
        /// (T, k).
        gradient: Out<f32>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// E C_g.
        columns: i64,
    }
    |args| Geometry::thread_each(args.num_tokens * i64::from(args.top_k))
}
