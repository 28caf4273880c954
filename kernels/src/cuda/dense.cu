// The (T, E, C_g) tensors of the dense (GShard, Fairseq) encode and decode; the einsums over them are plain products.

// weights (T, slots): the score of the copy of token t that fills slot s (1 without `scores`: the dispatch mask),
// else zero. One warp a token.
REAL_KERNEL(dense_weights)(const int* __restrict__ rows, const float* __restrict__ scores, real* __restrict__ weights,
                           i64 num_tokens, int top_k, i64 slots) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        real* row = weights + token * slots;
        for_each(slots, address(row), lane(), WARP, [&](i64 at, auto width) {
            Floats<width.n> zero;
#pragma unroll
            for (int i = 0; i < width.n; i++) zero.v[i] = 0.0f;
            store(row + at, zero);
        });
        __syncwarp();
        for (int choice = lane(); choice < top_k; choice += WARP) {
            i64 slot = rows[token * top_k + choice];
            if (slot >= 0) row[slot] = to_real(scores ? scores[token * top_k + choice] : 1.0f);
        }
    }
}

// gradient (T, k) of the scores, picked from that of the combine weights (T, slots); zero where dropped.
REAL_KERNEL(dense_score_gradient)(const real* __restrict__ weights_gradient, const int* __restrict__ rows,
                                  float* __restrict__ gradient, i64 copies, int top_k, i64 slots) {
    for (i64 copy = global_thread(); copy < copies; copy += num_threads()) {
        i64 slot = rows[copy];
        gradient[copy] = slot < 0 ? 0.0f : to_float(weights_gradient[copy / top_k * slots + slot]);
    }
}
