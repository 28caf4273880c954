// The (T, E, C_g) tensors of the dense (GShard, Fairseq) encode and decode, pass by pass as their framework makes them; the
// einsums over them are plain products. Here they are (T, columns); columns (T, k) says which column a copy fills.

// One tensor a choice (k, T, columns): the score at the copy's column, else zero. One warp a token and choice.
REAL_KERNEL(dense_choices)(const i64* __restrict__ columns_of, const float* __restrict__ scores,
                           real* __restrict__ weights, i64 num_tokens, int top_k, i64 columns) {
    i64 copies = num_tokens * top_k;
    for (i64 copy = global_warp(); copy < copies; copy += num_warps()) {
        i64 choice = copy % top_k, token = copy / top_k;
        real* row = weights + (choice * num_tokens + token) * columns;
        for_each(columns, address(row), lane(), WARP, [&](i64 at, auto width) {
            Floats<width.n> zero;
#pragma unroll
            for (int i = 0; i < width.n; i++) zero.v[i] = 0.0f;
            store(row + at, zero);
        });
        __syncwarp();
        i64 column = columns_of[copy];
        if (lane() == 0 && column >= 0) row[column] = to_real(scores[copy]);
    }
}

// The boolean of the combine weights, a byte an element.
REAL_KERNEL(dense_boolean)(const real* __restrict__ weights, unsigned char* __restrict__ boolean, i64 count) {
    for (i64 i = global_thread(); i < count; i += num_threads()) boolean[i] = to_float(weights[i]) != 0.0f;
}

// The dispatch mask: the boolean as a number.
REAL_KERNEL(dense_mask)(const unsigned char* __restrict__ boolean, real* __restrict__ mask, i64 count) {
    for (i64 i = global_thread(); i < count; i += num_threads()) mask[i] = to_real(boolean[i] ? 1.0f : 0.0f);
}

// gradient (T, k) of the scores, picked from the gradient of the combine weights, one copy of it a choice
// (k, T, columns); zero where dropped.
REAL_KERNEL(dense_scores)(const real* __restrict__ weights_gradient, const i64* __restrict__ columns_of,
                          float* __restrict__ gradient, i64 num_tokens, int top_k, i64 columns) {
    i64 copies = num_tokens * top_k;
    for (i64 copy = global_thread(); copy < copies; copy += num_threads()) {
        i64 choice = copy % top_k, token = copy / top_k, column = columns_of[copy];
        const real* row = weights_gradient + (choice * num_tokens + token) * columns;
        gradient[copy] = column < 0 ? 0.0f : to_float(row[column]);
    }
}
