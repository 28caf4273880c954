//! Gate and slot kernels: fp32 and integers whatever the layer's number type.

use super::kernel;
use crate::{Geometry, In, Out};

/// Items that one warp walks in order when slots are assigned.
pub const SLOT_TILE: i32 = 256;

/// Rows of the scratch counts of [`SlotCount`] for `items` token copies.
pub fn slot_tiles(items: i64) -> i64 {
    (items + i64::from(SLOT_TILE) - 1) / i64::from(SLOT_TILE)
}

kernel! {
    /// scores (T, E) = softmax(logits (T, E)); in place is allowed.
    GateSoftmax {
        /// (T, E).
        logits: In<f32>,
        /// (T, E).
        scores: Out<f32>,
        /// T.
        num_tokens: i64,
        /// E.
        num_experts: i32,
    }
    |args| Geometry::warp_each(args.num_tokens)
}

kernel! {
    /// The experts of the k largest scores of every token, best first, ties to the lower expert.
    GateTopK {
        /// (T, E).
        scores: In<f32>,
        /// (T, k).
        experts: Out<i32>,
        /// T.
        num_tokens: i64,
        /// E.
        num_experts: i32,
        /// k.
        top_k: i32,
    }
    |args| Geometry::warp_each(args.num_tokens)
}

kernel! {
    /// The scores of the chosen experts.
    GateChosen {
        /// (T, E).
        scores: In<f32>,
        /// (T, k).
        experts: In<i32>,
        /// (T, k).
        chosen: Out<f32>,
        /// T.
        num_tokens: i64,
        /// E.
        num_experts: i32,
        /// k.
        top_k: i32,
        /// Divide the scores of a token by their sum.
        normalize: bool,
    }
    |args| Geometry::thread_each(args.num_tokens)
}

kernel! {
    /// From the gradient of the chosen (normalised) scores to that of the logits.
    GateGradient {
        /// (T, E).
        scores: In<f32>,
        /// (T, k).
        experts: In<i32>,
        /// (T, k).
        chosen_gradient: In<f32>,
        /// (E), added to the gradient of every token's scores.
        balance: Option<In<f32>>,
        /// (T, E).
        logits_gradient: Out<f32>,
        /// T.
        num_tokens: i64,
        /// E.
        num_experts: i32,
        /// k.
        top_k: i32,
        /// Whether the chosen scores were divided by their sum.
        normalize: bool,
    }
    |args| Geometry::warp_each(args.num_tokens)
}

kernel! {
    /// Vectors at length exp(min(temperature, ln 100)), or 1; in place is allowed.
    Normalize {
        /// Vectors at the strides below.
        from: In<f32>,
        /// One number; absent: length 1.
        temperature: Option<In<f32>>,
        /// As `from`.
        to: Out<f32>,
        /// What each vector was multiplied by.
        factors: Out<f32>,
        /// Vectors.
        num_vectors: i64,
        /// Channels of a vector.
        channels: i64,
        /// Elements from vector to vector.
        vector_stride: i64,
        /// Elements from channel to channel.
        channel_stride: i64,
    }
    |args| Geometry::warp_each(args.num_vectors)
}

kernel! {
    /// Backward of [`Normalize`]; in place is allowed.
    NormalizeGradient {
        /// What it wrote.
        normalized: In<f32>,
        /// As it wrote them.
        factors: In<f32>,
        /// As it read it.
        temperature: Option<In<f32>>,
        /// Of what it wrote.
        normalized_gradient: In<f32>,
        /// Of what it read.
        gradient: Out<f32>,
        /// A number a vector, whose sum is the gradient of the temperature; zeros without one that learns.
        dots: Out<f32>,
        /// Vectors.
        num_vectors: i64,
        /// Channels of a vector.
        channels: i64,
        /// Elements from vector to vector.
        vector_stride: i64,
        /// Elements from channel to channel.
        channel_stride: i64,
    }
    |args| Geometry::warp_each(args.num_vectors)
}

kernel! {
    /// Copies of each expert in each tile of [`SLOT_TILE`] items, over the first `choices` of k.
    SlotCount {
        /// (T, k).
        experts: In<i32>,
        /// (T): the token at each position; absent: token order.
        order: Option<In<i32>>,
        /// ([`slot_tiles`], E), zeroed.
        counts: Out<i32>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// Choices counted: k for slots, 1 for the balancing loss.
        choices: i32,
        /// E.
        num_experts: i32,
        /// [`SLOT_TILE`].
        tile: i32,
    }
    |args| Geometry::warp_each(slot_tiles(args.num_tokens * i64::from(args.choices)))
}

kernel! {
    /// Exclusive sums of the counts over tiles, in place, and totals.
    SlotScan {
        /// (tiles, E).
        counts: Out<i32>,
        /// (E).
        totals: Out<i32>,
        /// Rows of `counts`.
        tiles: i64,
        /// E.
        num_experts: i32,
    }
    |args| Geometry::warp_each(i64::from(args.num_experts))
}

kernel! {
    /// Location of every token copy in its expert's queue; uses the scanned counts up.
    SlotAssign {
        /// (T, k).
        experts: In<i32>,
        /// (T): the token at each position; absent: token order.
        order: Option<In<i32>>,
        /// (tiles, E), from [`SlotScan`].
        counts: Out<i32>,
        /// (T, k).
        locations: Out<i32>,
        /// T.
        num_tokens: i64,
        /// k.
        top_k: i32,
        /// E.
        num_experts: i32,
        /// [`SLOT_TILE`].
        tile: i32,
    }
    |args| Geometry::warp_each(slot_tiles(args.num_tokens * i64::from(args.top_k)))
}

kernel! {
    /// Element offset of every copy's slot in the dispatch buffer, -1 where dropped.
    SlotPlaces {
        /// (T, k).
        experts: In<i32>,
        /// (T, k).
        locations: In<i32>,
        /// (E, groups): slots.
        rows: In<i64>,
        /// (degree, E, groups): the first slot in a chunk.
        firsts: In<i64>,
        /// (degree, E, groups): its element offset.
        bases: In<i64>,
        /// (T, k).
        places: Out<i64>,
        /// T k.
        copies: i64,
        /// E.
        num_experts: i32,
        /// Row groups of an expert.
        groups: i32,
        /// Chunks.
        degree: i32,
        /// Copies an expert takes.
        limit: i64,
        /// The only group that is used, or -1 where groups fill one after the other.
        own_group: i32,
        /// D.
        model_dim: i64,
    }
    |args| Geometry::thread_each(args.copies)
}
