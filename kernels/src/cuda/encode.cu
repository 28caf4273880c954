// K0 of Figure 21, fast encode: scatters token rows to their slots, times the score where `scores` is given
// (backward of decode). One warp a token; slots that no token fills must have been zeroed.
REAL_KERNEL(encode)(const real* __restrict__ tokens, const int* __restrict__ rows, const float* __restrict__ scores,
                    real* __restrict__ slots, i64 num_tokens, int top_k, i64 model_dim) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        const real* from = tokens + token * model_dim;
        for (int choice = 0; choice < top_k; choice++) {
            i64 row = rows[token * top_k + choice];
            if (row < 0) continue;  // dropped
            float score = scores ? scores[token * top_k + choice] : 1.0f;
            real* to = slots + row * model_dim;
            for_each(model_dim, address(from) | address(to), lane(), WARP, [&](i64 at, auto width) {
                auto v = load<width.n>(from + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) v.v[i] *= score;
                store(to + at, v);
            });
        }
    }
}
