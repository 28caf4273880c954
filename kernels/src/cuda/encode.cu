// K0 of Figure 21, fast encode: scatters token rows to their slots, times the score where `scores` is given
// (backward of decode). places (T, k) are element offsets from `slots`, so that slots may lie in several buffers; -1 is
// dropped. One warp a token; slots that no token fills must have been zeroed.
REAL_KERNEL(encode)(const real* __restrict__ tokens, const i64* __restrict__ places, const float* __restrict__ scores,
                    real* __restrict__ slots, i64 num_tokens, int top_k, i64 model_dim) {
    for (i64 token = global_warp(); token < num_tokens; token += num_warps()) {
        const real* from = tokens + token * model_dim;
        for (int choice = 0; choice < top_k; choice++) {
            i64 place = places[token * top_k + choice];
            if (place < 0) continue;  // dropped
            float score = scores ? scores[token * top_k + choice] : 1.0f;
            real* to = slots + place;
            for_each(model_dim, address(from) | address(to), lane(), WARP, [&](i64 at, auto width) {
                auto v = load<width.n>(from + at);
#pragma unroll
                for (int i = 0; i < width.n; i++) v.v[i] *= score;
                store(to + at, v);
            });
        }
    }
}
